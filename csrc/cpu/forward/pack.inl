// The masked weight, packed into panels.
//
// A panel covers some columns, taps and channels of B, as float32 rows of N*kLanes columns in the order [tap][channel],
// or as bfloat16 with each two channels of a column side by side; columns that do not exist are zero. Whichever of B's
// dimensions is contiguous in the weight's memory decides how it is read: columns straight, everything else through
// register transposes, so that W and S stream in either way.
#pragma once

#include "cpu/forward/pack_runs.inl"
#include "cpu/forward/pack_signs.inl"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// Part of B: columns [column, column + columns), channels [k, k + depth), taps [tap, tap + taps) of the problem's
// numbering (row-major over its two axes).
struct Slab {
  int64_t column, columns, k, depth, tap, taps;
};

// Columns [first, first + count) of a group, as `panels` panels of nearly equal width.
struct Columns {
  int64_t first, count, vectors, panels;
  int64_t begin(int64_t panel) const { return vectors * panel / panels * kLanes; }
  int width(int64_t panel) const { return static_cast<int>((begin(panel + 1) - begin(panel)) / kLanes); }
  int widest() const { return static_cast<int>(ceil_div(vectors, panels)); }
};

// Rows of contiguous columns that are read side by side. One by one, a page of W and one of S at a time, the input
// gradient of 32 rows by 4096 x 4096 took a tenth longer (Ice Lake, 2 cores).
constexpr int64_t kRowsTogether = 8;

// Larger kernels are read tap by tap.
constexpr int64_t kTransposedTaps = 256;

// How B lies in memory, for the slab in hand.
enum class Layout { columns, taps_of_all_channels, channels, taps, scattered };

static inline Layout layout_of(const Problem& p, const Slab& slab) {
  const auto along = [&](int64_t Steps::*dimension, int64_t step) {
    return p.b.weight_steps.*dimension == step && (p.b.of == Of::bits || p.b.score_steps.*dimension == step);
  };
  const int64_t kernel = p.h.kernel * p.w.kernel;
  const bool taps = (p.w.kernel == 1 || along(&Steps::v, 1)) && (p.h.kernel == 1 || along(&Steps::u, p.w.kernel));
  const bool one_channel = slab.depth == 1;
  if (slab.columns == 1 || along(&Steps::column, 1)) return Layout::columns;
  if (kernel == 1 && (one_channel || along(&Steps::k, 1))) return Layout::channels;
  if (taps && p.h.whole_kernel() && p.w.whole_kernel() && slab.taps == kernel &&
      (one_channel || (along(&Steps::k, kernel) && p.b.index_steps.k == kernel))) {
    return Layout::taps_of_all_channels;
  }
  if (along(&Steps::k, 1)) return Layout::channels;
  if (taps && p.h.whole_kernel() && p.w.whole_kernel()) return Layout::taps;
  // Transposing runs of all taps to use few of them costs more than it saves.
  if (taps && 16 * slab.taps >= kernel && kernel <= kTransposedTaps) return Layout::taps;
  return Layout::scattered;
}

template <class T, Of of>
struct Packer {
  const Problem& problem;
  const Slab& slab;
  const Reader<T, of> read;
  const int64_t width;  // of a panel row, N * kLanes

  Place place(int64_t column, int64_t k, int64_t tap) const {
    const Axis &h = problem.h, &w = problem.w;
    const int64_t u = h.first + (slab.tap + tap) / w.taps * h.every;
    const int64_t v = w.first + (slab.tap + tap) % w.taps * w.every;
    return (slab.column + column) * read.column + (slab.k + k) * read.k + u * read.u + v * read.v;
  }

  // Channels are contiguous: one vector of columns, tap by tap.
  void channels(int64_t column, float* out) const {
    const int64_t columns = min(kLanes, slab.columns - column);
    for (int64_t t = 0; t < slab.taps; ++t, out += slab.depth * width) {
      runs_to_columns(read, place(column, 0, t), read.k, slab.depth, columns, kAhead * read.k, out, width,
                      [](int64_t j) { return j; });
    }
  }

  // Channels and their taps are one run.
  void taps_of_all_channels(int64_t column, float* out) const {
    const int64_t columns = min(kLanes, slab.columns - column);
    int64_t k = 0, tap = 0;  // of the next element: runs are visited in order
    runs_to_columns(read, place(column, 0, 0), tap_step(), slab.taps * slab.depth, columns, kAhead * tap_step(), out,
                    width, [&](int64_t) {
                      const int64_t row = tap * slab.depth + k;
                      if (++tap == slab.taps) tap = 0, ++k;
                      return row;
                    });
  }

  void scattered(int64_t column, float* out) const {
    const int64_t columns = min(kLanes, slab.columns - column);
    for (int64_t t = 0; t < slab.taps; ++t) {
      for (int64_t k = 0; k < slab.depth; ++k, out += width) {
        store(out, read.gather(place(column, k, t), read.column, columns));
      }
    }
  }

  // From one tap to the next in memory, taps being contiguous.
  Place tap_step() const { return problem.w.kernel > 1 ? read.v : read.u; }

  // The slab's tap at position (u, v) of the weight, or -1.
  int64_t tap_of(int64_t u, int64_t v) const {
    const Axis &h = problem.h, &w = problem.w;
    if ((u - h.first) % h.every != 0 || (v - w.first) % w.every != 0) return -1;
    const int64_t row = (u - h.first) / h.every, column = (v - w.first) / w.every;
    if (row < 0 || row >= h.taps || column < 0 || column >= w.taps) return -1;
    const int64_t tap = row * w.taps + column - slab.tap;
    return tap < slab.taps ? tap : -1;
  }

  // Kernels are contiguous: all columns of one channel, then the next channel.
  void kernels(float* out) const {
    if (problem.h.whole_kernel() && problem.w.whole_kernel()) {
      return runs_of_taps(place(0, 0, 0), slab.taps, [&](int64_t j) { return j * slab.depth; }, out);
    }
    const int64_t kernel_w = problem.w.kernel, kernel = problem.h.kernel * kernel_w;
    int64_t rows[kTransposedTaps];
    for (int64_t j = 0; j < kernel; ++j) rows[j] = tap_of(j / kernel_w, j % kernel_w) * slab.depth;
    runs_of_taps(slab.column * read.column + slab.k * read.k, kernel, [&](int64_t j) { return rows[j]; }, out);
  }

  template <class RowOf>
  void runs_of_taps(Place first, int64_t taps, const RowOf& row_of, float* out) const {
    for (int64_t k = 0; k < slab.depth; ++k, out += width) {
      for (int64_t column = 0; column < slab.columns; column += kLanes) {
        runs_to_columns(read, first + column * read.column + k * read.k, tap_step(), taps,
                        min(kLanes, slab.columns - column), kChannelsAhead * read.k, out + column, width, row_of);
      }
    }
  }

  // Columns are contiguous: a row of all panels is one run of the weight. Some rows at a time, vector by vector: as
  // many streams of W and S, which the hardware fetches side by side.
  void straight(const Columns& panels, float* out) const {
    for (int64_t t = 0; t < slab.taps; ++t) {
      for (int64_t k = 0; k < slab.depth; k += kRowsTogether) {
        straight_rows(panels, place(0, k, t), t * slab.depth + k, min(kRowsTogether, slab.depth - k), out);
      }
    }
  }

  void straight_rows(const Columns& panels, Place at, int64_t first_row, int64_t count, float* out) const {
    const int64_t rows = slab.taps * slab.depth;
    for (int64_t panel = 0; panel < panels.panels; ++panel) {
      const int64_t begin = panels.begin(panel), step = panels.begin(panel + 1) - begin;
      copy_rows(read, at + begin * read.column, count, min(step, slab.columns - begin),
                out + begin * rows + first_row * step, step);
    }
  }

  // Only where channels are contiguous. Rows that are contiguous in a weight of floats gain nothing from it: paired as
  // they are read, instead of from the stage, they packed three times slower (1024 x 1024, 4 KB apart, Zen 5).
  bool pack_paired(bf16* out) const {
    const Layout layout = layout_of(problem, slab);
    if (layout == Layout::channels) {
      for (int64_t column = 0; column < slab.columns; column += kLanes) paired_channels(column, out + 2 * column);
      return true;
    }
    if constexpr (kIsSigns<T>) {
      if (layout == Layout::columns) return paired_columns(out), true;
    }
    return false;
  }

  void paired_channels(int64_t column, bf16* out) const {
    const int64_t columns = min(kLanes, slab.columns - column);
    for (int64_t t = 0; t < slab.taps; ++t, out += round_up(slab.depth, 2) * width) {
      runs_to_pairs(read, place(column, 0, t), slab.depth, columns, out, width);
    }
  }

  void paired_columns(bf16* out) const {
    for (int64_t t = 0; t < slab.taps; ++t) {
      for (int64_t k = 0; k < slab.depth; k += 2, out += 2 * width) {
        copy_pair(read, place(0, k, t), k + 1 < slab.depth, slab.columns, out);
      }
    }
  }

  void pack(float* out) const {
    const Layout layout = layout_of(problem, slab);
    if (layout == Layout::columns) return straight({0, slab.columns, width / kLanes, 1}, out);
    if (layout == Layout::taps) return kernels(out);
    for (int64_t column = 0; column < slab.columns; column += kLanes) {
      if (layout == Layout::channels) channels(column, out + column);
      if (layout == Layout::taps_of_all_channels) taps_of_all_channels(column, out + column);
      if (layout == Layout::scattered) scattered(column, out + column);
    }
  }
};

// Calls use(packer) for the weight's type and the mask's kind.
template <class Use>
static inline void with_packer(const Problem& p, const Slab& slab, int64_t width, const Use& use) {
  if (p.b.signs != nullptr) return use(Packer<Signs, Of::bits>{p, slab, Reader<Signs, Of::bits>(p.b), width});
  with_type(p.b.dtype, [&](auto type) {
    using T = decltype(type);
    switch (p.b.of) {
      case Of::abs: return use(Packer<T, Of::abs>{p, slab, Reader<T, Of::abs>(p.b), width});
      case Of::raw: return use(Packer<T, Of::raw>{p, slab, Reader<T, Of::raw>(p.b), width});
      case Of::bits: return use(Packer<T, Of::bits>{p, slab, Reader<T, Of::bits>(p.b), width});
    }
  });
}

// Writes slab.taps * slab.depth rows, at least one, of `width` floats, not rounded.
static void pack(const Problem& p, const Slab& slab, int64_t width, float* out) {
  with_packer(p, slab, width, [&](const auto& packer) { packer.pack(out); });
}

// The same as panels one behind the other. Those of contiguous columns are written side by side, row by row of the
// weight: panel by panel, a run of each row was 256 bytes.
static inline void pack(const Problem& p, const Slab& slab, const Columns& panels, float* out) {
  const int64_t rows = slab.taps * slab.depth;
  if (layout_of(p, slab) == Layout::columns) {
    with_packer(p, slab, 0, [&](const auto& packer) { packer.straight(panels, out); });
    return;
  }
  for (int64_t panel = 0; panel < panels.panels; ++panel) {
    const int64_t begin = panels.begin(panel), width = panels.width(panel) * kLanes;
    Slab part = slab;
    part.column += begin;
    part.columns = min(width, slab.columns - begin);
    pack(p, part, width, out + begin * rows);
  }
}

// The weight takes the activations' precision before the product, as under autocast.
static void round_rows(const Problem& p, int64_t count, float* rows) {
  if (p.in.dtype == DType::f32 || p.b.signs != nullptr) return;
  with_type(p.in.dtype, [&](auto type) {
    for (int64_t i = 0; i < count; i += kLanes) store(rows + i, round_to(load(rows + i), type));
  });
}

// Writes the slab as pairs, slab.taps * ceil(slab.depth / 2) rows of 2 * width; false, and nothing written, where the
// weight's layout does not allow it.
static bool pack_paired(const Problem& p, const Slab& slab, int64_t width, bf16* out) {
  bool packed = false;
  with_packer(p, slab, width, [&](const auto& packer) { packed = packer.pack_paired(out); });
  return packed;
}

// Interleaves rows 2i and 2i+1; the last of an odd count is paired with zero. Returns the end of what was written.
static bf16* pair_rows(const float* rows, int64_t count, int64_t width, bf16* out) {
  for (int64_t r = 0; r < count; r += 2) {
    for (int64_t i = 0; i < width; i += kLanes, out += 2 * kLanes) {
      const Vec odd = r + 1 < count ? load(rows + (r + 1) * width + i) : zero();
      store_pairs(out, narrow_pairs(load(rows + r * width + i), odd));
    }
  }
  return out;
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
