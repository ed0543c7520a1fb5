// The rows of a tile, block by block: where each of them finds its taps and leaves its results.
#pragma once

#include "cpu/forward/plan.inl"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// Room for one gathered row, the longest reduction and the vector that may be stored behind it.
constexpr int64_t kGathered = kPanelBytes / (4 * kMaxVectors * kLanes) + 2 * kLanes;

struct RowBlock {
  int rows;         // of a micro-kernel: of the last several copies, where the tile has fewer
  const void** a;   // [runs][rows]
  float* gathered;  // [kMaxRows][kGathered]
  float* c[kAddressedRows];
};

// Float32 results of a tile; strides in elements.
struct Results {
  float* data;
  int64_t stride_n, stride_h, stride_w;
};

class RowWalk {
 public:
  RowWalk(const Problem& p, const Reduction& r, const Tile& tile, const Source& source, const Results& results,
          Access access, bool padded, const char* zeros)
      : h_(p.h),
        w_(p.w),
        r_(r),
        runs_(runs_of(access, p, r)),
        tile_(tile),
        source_(source),
        results_(results),
        access_(access),
        padded_(padded),
        zeros_(zeros) {
    const int64_t size = bytes_of(source.dtype), planes = access == Access::channel_rows ? r.depth : 1;
    const int64_t taps_per_run = access == Access::kernel_rows || access == Access::channel_rows ? w_.taps : 1;
    int64_t* offset = offsets_;
    for (int64_t k = 0; k < planes; ++k) {
      for (int64_t t = 0; t < r.taps; t += taps_per_run, ++offset) {
        const int64_t u = (r.tap + t) / w_.taps, v = (r.tap + t) % w_.taps;
        *offset = (k * source.stride_c + u * h_.spread * source.stride_h + v * w_.spread * source.stride_w) * size;
      }
    }
    // Where the taps of a kernel row are neighbours in memory, they are one run.
    const bool adjacent = source.stride_c == 1 && source.stride_w == r.depth && w_.spread == 1;
    joined_ = adjacent && r.taps == p.taps() ? w_.taps : 1;
    pixel_step_ = w_.step * source.stride_w * size;
    const int64_t left = w_.in - 1 - (w_.taps - 1) * w_.spread - (tile.j * w_.step + w_.shift);
    inside_w_ = left < 0 ? 0 : min(tile.width, left / w_.step + 1);
    start_row();
  }

  // The next `rows` rows, of which so many must be left, and the last of them again up to `height`. Rows side by side
  // within the image are told together.
  void next(int rows, int height, RowBlock& block) {
    block.rows = height;
    for (int row = 0, count; row < rows; row += count) {
      const bool inside = padded_ || (inside_h_ && x_ >= 0 && j_ < inside_w_);
      count = 1;
      if (access_ == Access::gathered) {
        block.a[row] = gather(inside, block.gathered + row * kGathered);
      } else if (inside) {
        count = static_cast<int>(min(rows - row, (padded_ ? tile_.width : inside_w_) - j_));
        for (int64_t t = 0; t < runs_.count; ++t) pixels(pixel_ + offsets_[t], row, count, block.a + t * height + row);
      } else {
        each_tap([&](int64_t t, bool valid) { block.a[t * height + row] = valid ? pixel_ + offsets_[t] : zeros_; });
      }
      for (int i = 0; i < count; ++i) block.c[row + i] = c_ + i * results_.stride_w;
      step(count);
    }
    if (rows == height) return;
    for (int row = rows; row < height; ++row) {
      for (int64_t t = 0; t < runs_.count; ++t) block.a[t * height + row] = block.a[t * height + rows - 1];
      block.c[row] = block.c[rows - 1];
    }
  }

 private:
  void start_row() {
    y_ = i_ * h_.step + h_.shift + tile_.i * h_.step;
    x_ = tile_.j * w_.step + w_.shift;
    inside_h_ = y_ >= 0 && y_ + (h_.taps - 1) * h_.spread < h_.in;
    pixel_ = source_.pixel(tile_.n + n_, y_, x_);
    c_ = results_.data + n_ * results_.stride_n + i_ * results_.stride_h;
  }

  // Eight at a time, a constant number being a vector: one by one they took half of a depthwise convolution's time.
  // What is written behind the rows of a tap is its next rows or the next tap's, all yet to come if `row` is the first.
  void pixels(const char* first, int row, int count, const void** a) const {
    if (row > 0) {
      for (int i = 0; i < count; ++i) a[i] = first + i * pixel_step_;
      return;
    }
    for (int i = 0; i < count; i += 8) {
#pragma GCC unroll 8
      for (int lane = 0; lane < 8; ++lane) a[i + lane] = first + (i + lane) * pixel_step_;
    }
  }

  void step(int count) {
    j_ += count;
    if (j_ < tile_.width) {
      x_ += count * w_.step;
      pixel_ += count * pixel_step_;
      c_ += count * results_.stride_w;
      return;
    }
    j_ = 0;
    if (++i_ == tile_.height) i_ = 0, ++n_;
    start_row();
  }

  // Runs use(t, whether tap t lies inside the image).
  template <class Use>
  void each_tap(const Use& use) const {
    if (r_.taps == 0) return;
    for (int64_t t = 0, u = r_.tap / w_.taps, v = r_.tap % w_.taps; t < r_.taps; ++t) {
      const uint64_t y = static_cast<uint64_t>(y_ + u * h_.spread), x = static_cast<uint64_t>(x_ + v * w_.spread);
      use(t, y < static_cast<uint64_t>(h_.in) && x < static_cast<uint64_t>(w_.in));
      if (++v == w_.taps) v = 0, ++u;
    }
  }

  // The row's taps side by side in float32.
  const float* gather(bool inside, float* row) const {
    with_type(source_.dtype, [&](auto type) {
      using T = decltype(type);
      float* to = row;
      if (inside) {
        const int64_t run = joined_ * r_.depth;
        for (int64_t t = 0; t < r_.taps; t += joined_, to += run) {
          copy(reinterpret_cast<const T*>(pixel_ + offsets_[t]), run, to);
        }
        return;
      }
      each_tap([&](int64_t t, bool valid) {
        if (valid) {
          copy(reinterpret_cast<const T*>(pixel_ + offsets_[t]), r_.depth, to);
        } else {
          for (int64_t k = 0; k < r_.depth; k += kLanes) store(to + k, zero());
        }
        to += r_.depth;
      });
    });
    return row;
  }

  // Whole vectors: what is stored behind a run is overwritten by the next one.
  template <class T>
  void copy(const T* from, int64_t count, float* to) const {
    if (source_.stride_c == 1) {
      for (int64_t k = 0; k < count; k += kLanes) store(to + k, load(from + k, min(kLanes, count - k)));
    } else {
      for (int64_t k = 0; k < count; ++k) to[k] = to_float(from[k * source_.stride_c]);
    }
  }

  const Axis &h_, &w_;
  const Reduction r_;
  const Runs runs_;
  const Tile tile_;
  const Source source_;
  const Results results_;
  const Access access_;
  const bool padded_;
  const char* const zeros_;
  int64_t joined_;
  int64_t pixel_step_;  // bytes
  int64_t inside_w_;    // behind the last row whose taps the image's right border does not cut
  int64_t offsets_[kMaxTaps];  // bytes from a row's first run to its others
  int64_t n_ = 0, i_ = 0, j_ = 0;  // within the tile
  int64_t y_, x_;                  // the image position of the first tap
  bool inside_h_;
  const char* pixel_;
  float* c_;
};

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
