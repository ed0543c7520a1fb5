// Tiles of the output grid, and the two ways activations and results that cannot be used in place travel: a band of the
// image copied to channels-last scratch on the way in, a transposed tile on the way out.
#pragma once

#include "cpu/forward/problem.inl"
#include "cpu/simd/vec.h"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// Whole images, or rows of one image, or a part of one row.
struct Tile {
  int64_t n, images, i, height, j, width;
  int64_t rows() const { return images * height * width; }
};

// A division of the grid into tiles of equal shape (the last ones smaller).
struct Tiling {
  int64_t images, height, width;        // of a tile
  int64_t count_n, count_i, count_j;    // tiles along each dimension
  int64_t count() const { return count_n * count_i * count_j; }
  int64_t rows() const { return images * height * width; }

  Tile tile(const Problem& p, int64_t index) const {
    const int64_t j = index % count_j * width, i = index / count_j % count_i * height;
    const int64_t n = index / (count_j * count_i) * images;
    return {n, min(images, p.batch - n), i, min(height, p.h.out - i), j, min(width, p.w.out - j)};
  }
};

// Parts of equal size, at most `limit` each.
static inline int64_t even_part(int64_t extent, int64_t limit) {
  return max(1, ceil_div(extent, ceil_div(extent, max(1, min(limit, extent)))));
}

// Tiles of at most `rows` rows.
static inline Tiling tiling(const Problem& p, int64_t rows) {
  const int64_t h = p.h.out, w = p.w.out;
  Tiling t;
  t.width = w <= rows ? w : even_part(w, rows);
  t.height = t.width < w ? 1 : even_part(h, rows / w);
  t.images = t.height < h ? 1 : even_part(p.batch, rows / (h * w));
  t.count_n = ceil_div(p.batch, t.images);
  t.count_i = ceil_div(h, t.height);
  t.count_j = ceil_div(w, t.width);
  return t;
}

// The image positions [begin, end) that grid positions [at, at + extent) read through taps of an axis.
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};
static inline Span window_of(const Axis& axis, int64_t at, int64_t extent) {
  const int64_t first = at * axis.step + axis.shift;
  return {first, first + (extent - 1) * axis.step + (axis.taps - 1) * axis.spread + 1};
}
static inline Span span_of(const Axis& axis, int64_t at, int64_t extent) {
  const Span window = window_of(axis, at, extent);
  const int64_t begin = min(max(0, window.begin), axis.in);
  return {begin, max(begin, min(axis.in, window.end))};
}

// Pixels to read: `data` is the first channel of image pixel (n, h, w).
struct Source {
  const void* data;
  DType dtype;
  int64_t n, h, w;  // of the first pixel
  int64_t stride_n, stride_c, stride_h, stride_w;

  const char* pixel(int64_t at_n, int64_t at_h, int64_t at_w) const {
    return static_cast<const char*>(data) +
           ((at_n - n) * stride_n + (at_h - h) * stride_h + (at_w - w) * stride_w) * bytes_of(dtype);
  }
};

static inline Source source_of(const Tensor& t, int64_t channel) {
  const char* data = static_cast<const char*>(t.data) + channel * t.stride[1] * bytes_of(t.dtype);
  return {data, t.dtype, 0, 0, 0, t.stride[0], t.stride[1], t.stride[2], t.stride[3]};
}

// A matrix of `rows` runs of `count` elements, `from_pitch` apart, to its transpose with runs `to_pitch` apart.
template <class From, class To>
static inline void transpose_runs(const From* from, int64_t from_pitch, int64_t rows, int64_t count, To* to,
                                  int64_t to_pitch) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int64_t nr = min(kLanes, rows - r);
    for (int64_t x = 0; x < count; x += kLanes) {
      const int64_t nx = min(kLanes, count - x);
      Vec tile[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const From* at = from + (r + i) * from_pitch + x;
        tile[i] = i >= nr ? zero() : nx == kLanes ? load(at) : load(at, nx);
      }
      transpose(tile);
      To* out = to + x * to_pitch + r;
      for (int64_t i = 0; i < nx; ++i) {
        if (nr == kLanes) {
          store(out + i * to_pitch, tile[i]);
        } else {
          store(out + i * to_pitch, tile[i], nr);
        }
      }
    }
  }
}

template <class From, class To>
static inline void convert_run(const From* from, int64_t count, To* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i < count) store(to + i, load(from + i, count - i), count - i);
}

// The pixels a tile reads, channels [0, channels) of `from`, as a dense channels-last block of To at `to`; padded, with
// zeros where there is no image.
template <class From, class To>
static Source copy_band(const Axis& down, const Axis& across, const Tile& tile, const Source& from, int64_t channels,
                        bool padded, DType to_type, To* to) {
  const Span h = span_of(down, tile.i, tile.height), w = span_of(across, tile.j, tile.width);
  const Span rows = padded ? window_of(down, tile.i, tile.height) : h;
  const Span columns = padded ? window_of(across, tile.j, tile.width) : w;
  const int64_t pitch = columns.size() * channels;
  const Source band = {to, to_type, tile.n, rows.begin, columns.begin, rows.size() * pitch, 1, pitch, channels};
  if (padded) std::memset(to, 0, static_cast<size_t>(tile.images * band.stride_n) * sizeof(To));
  if (w.size() == 0) return band;
  // Rows that follow one another without a gap are one run of pixels.
  const bool joined = from.stride_h == w.size() * from.stride_w && columns.size() == w.size();
  const int64_t runs = joined ? min(1, h.size()) : h.size(), length = joined ? h.size() * w.size() : w.size();
  for (int64_t n = tile.n; n < tile.n + tile.images; ++n) {
    To* first = to + (n - tile.n) * band.stride_n;
    first += (h.begin - rows.begin) * pitch + (w.begin - columns.begin) * channels;
    for (int64_t r = 0; r < runs; ++r, first += pitch) {
      const From* at = reinterpret_cast<const From*>(from.pixel(n, h.begin + r, w.begin));
      if (from.stride_c == 1 || channels == 1) {
        if (from.stride_w == channels) {
          convert_run(at, length * channels, first);
        } else {
          for (int64_t x = 0; x < length; ++x) convert_run(at + x * from.stride_w, channels, first + x * channels);
        }
      } else if (from.stride_w == 1) {
        transpose_runs(at, from.stride_c, channels, length, first, channels);
      } else {
        for (int64_t x = 0; x < length; ++x) {
          for (int64_t c = 0; c < channels; ++c) {
            from_float(to_float(at[x * from.stride_w + c * from.stride_c]), first + x * channels + c);
          }
        }
      }
    }
  }
  return band;
}

// The same as a band of each channel, one behind the other.
template <class From, class To>
static Source copy_planes(const Axis& down, const Axis& across, const Tile& tile, const Source& from, int64_t channels,
                          bool padded, DType to_type, To* to) {
  Source bands = {}, plane = from;
  for (int64_t k = 0; k < channels; ++k) {
    plane.data = static_cast<const From*>(from.data) + k * from.stride_c;
    const Source band = copy_band<From>(down, across, tile, plane, 1, padded, to_type, to + k * bands.stride_c);
    if (k == 0) bands = band;
    bands.stride_c = tile.images * band.stride_n;
  }
  return bands;
}

// Writes a tile's results, float32 rows `pitch` apart, to `columns` channels of the output from `channel` on.
template <class To>
static void write_tile(const Problem& p, const Tile& tile, const float* from, int64_t pitch, int64_t channel,
                       int64_t columns) {
  const Tensor& out = p.out;
  const int64_t *stride = out.stride, stride_c = stride[1], stride_w = stride[3];
  const bool joined = stride[2] == tile.width * stride_w;
  const int64_t runs = joined ? 1 : tile.height, length = joined ? tile.height * tile.width : tile.width;
  for (int64_t n = tile.n; n < tile.n + tile.images; ++n) {
    for (int64_t r = 0; r < runs; ++r, from += length * pitch) {
      To* at = static_cast<To*>(out.data) + n * stride[0] + channel * stride_c + (tile.i + r) * stride[2] +
               tile.j * stride_w;
      if (stride_c == 1) {
        for (int64_t x = 0; x < length; ++x) convert_run(from + x * pitch, columns, at + x * stride_w);
      } else if (stride_w == 1) {
        transpose_runs(from, pitch, length, columns, at, stride_c);
      } else {
        for (int64_t x = 0; x < length; ++x) {
          for (int64_t c = 0; c < columns; ++c) from_float(from[x * pitch + c], at + x * stride_w + c * stride_c);
        }
      }
    }
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
