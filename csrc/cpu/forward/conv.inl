// conv_forward and conv_backward_input: batch-reduce products of activations, read in place by address, with panels of
// the masked weight.
//
// A set that multiplies bfloat16 pairs compiles nothing else: each `kDotBf16` below is a part that one of both has.
#pragma once

#include "cpu/dispatch/scratch.h"
#include "cpu/dispatch/sets.h"
#include "cpu/dispatch/threads.h"
#include "cpu/forward/few_columns.inl"
#include "cpu/forward/few_rows.inl"
#include "cpu/forward/pack.inl"
#include "cpu/forward/patches.inl"
#include "cpu/forward/plan.inl"
#include "cpu/forward/rows.inl"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// One thread's working memory.
struct Workspace {
  char* panels;
  float* stage;  // float32 rows on their way into a panel of another form
  char* band;
  float* results;
  float* start;  // [kMaxColumns]
  RowBlock rows[2];
  const char* zeros;  // a row outside the image

  static constexpr int64_t kWidth = kMaxVectors * kLanes;
  static constexpr int64_t kAddresses = kMaxTaps * kAddressedRows + 8;
  static constexpr int64_t kSizes[] = {kPanelBytes + 64,
                                       kStageRows * kWidth * 4,
                                       kBandBytes,
                                       2 * kMaxRows * kGathered * 4,
                                       kAccumulators * 4,
                                       kMaxColumns * 4,
                                       2 * kAddresses * 8,
                                       kPanelBytes / kWidth};

  static constexpr int64_t bytes() {
    int64_t total = 0;
    for (int64_t size : kSizes) total += (size + 63) / 64 * 64;
    return total;
  }

  explicit Workspace(char* memory) {
    char* part[8];
    for (int i = 0; i < 8; ++i) {
      part[i] = memory;
      memory += round_up(kSizes[i], 64);
    }
    panels = part[0];
    stage = reinterpret_cast<float*>(part[1]);
    band = part[2];
    results = reinterpret_cast<float*>(part[4]);
    start = reinterpret_cast<float*>(part[5]);
    for (int i = 0; i < 2; ++i) {
      rows[i].a = reinterpret_cast<const void**>(part[6]) + i * kAddresses;
      rows[i].gathered = reinterpret_cast<float*>(part[3]) + i * kMaxRows * kGathered;
    }
    zeros = part[7];
    std::memset(part[7], 0, static_cast<size_t>(kSizes[7]));
  }
};
static_assert(Workspace::bytes() < 1 << 20, "the documented bound");
static_assert(kMaxTaps * (kLanes / 2) * kLanes <= kStageRows * Workspace::kWidth, "the stage holds a group's filters");

static inline Range part_of(int64_t extent, int64_t part, int64_t parts) {
  return {extent * part / parts, extent * (part + 1) / parts};
}

class Share {
 public:
  Share(const Problem& problem, const Plan& plan, const Workspace& workspace)
      : p_(problem), plan_(plan), ws_(workspace) {}

  void run(int64_t share) {
    const Range groups = part_of(p_.groups, share / (plan_.shares_r * plan_.shares_c), plan_.shares_g);
    const Range tiles = part_of(plan_.tiles.count(), share / plan_.shares_c % plan_.shares_r, plan_.shares_r);
    const Range vectors = part_of(plan_.vectors, share % plan_.shares_c, plan_.shares_c);
    if (tiles.begin == tiles.end) return;
    const int64_t panels = ceil_div(vectors.end - vectors.begin, plan_.widest);
    const int64_t rounds = ceil_div(panels, plan_.panels);
    for (group_ = groups.begin; group_ < groups.end; ++group_) {
      for (int64_t round = 0; round < rounds; ++round) {
        const Range part = part_of(vectors.end - vectors.begin, round, rounds);
        const int64_t first = (vectors.begin + part.begin) * kLanes, count = part.end - part.begin;
        columns_ = {first, min(count * kLanes, p_.columns - first), count, ceil_div(count, plan_.widest)};
        multiply(tiles);
      }
    }
  }

 private:
  void multiply(Range tiles) {
    set_start();
    if (plan_.blocks() == 1) pack_panels(reduction(0));
    for (int64_t begin = tiles.begin; begin < tiles.end; begin += plan_.chunk) {
      const int64_t end = min(tiles.end, begin + plan_.chunk);
      for (int64_t block = 0; block < plan_.blocks(); ++block) {
        const Reduction r = reduction(block);
        if (plan_.blocks() > 1) pack_panels(r);
        float* results = ws_.results;
        for (int64_t t = begin; t < end; ++t) {
          const Tile tile = plan_.tiles.tile(p_, t);
          multiply_tile(tile, r, block == 0, results);
          results += tile.rows() * pitch();
        }
      }
      if (!plan_.in_place) write(begin, end);
    }
  }

  int64_t pitch() const { return columns_.vectors * kLanes; }

  Reduction reduction(int64_t block) const {
    const int64_t tap_block = block / plan_.k_blocks, k = block % plan_.k_blocks * plan_.k_block;
    const int64_t per_line = max(1, ceil_div(plan_.tap_line, plan_.tap_block));
    const int64_t within = tap_block % per_line * plan_.tap_block, tap = tap_block / per_line * plan_.tap_line + within;
    return {tap, min(plan_.tap_block, plan_.tap_line - within), k, min(plan_.k_block, p_.depth - k)};
  }

  void set_start() {
    for (int64_t i = 0; i < pitch(); ++i) {
      ws_.start[i] = p_.start == nullptr || i >= columns_.count ? 0.0f
                                                                : p_.start[group_ * p_.columns + columns_.first + i];
    }
  }

  // Bytes of a panel.
  int64_t panel_bytes(const Reduction& r, int64_t panel) const {
    const Runs runs = runs_of(plan_.access, p_, r);
    const int64_t rows = runs.count * (kDotBf16 ? round_up(runs.depth, 2) : runs.depth);
    return rows * columns_.width(panel) * kLanes * (kDotBf16 ? 2 : 4);
  }

  void pack_panels(const Reduction& r) {
    if (r.taps == 0 || r.depth == 0) return;
    const Slab all = {group_ * p_.group_column + columns_.first,
                      columns_.count,
                      group_ * p_.group_k + r.k,
                      r.depth,
                      r.tap,
                      r.taps};
    const bool by_group = p_.channelwise && p_.group_k > 0, by_channel = plan_.access == Access::channel_rows;
    if constexpr (!kDotBf16) {
      if (!by_group && !by_channel) {
        float* const out = reinterpret_cast<float*>(ws_.panels);
        pack(p_, all, columns_, out);
        return round_rows(p_, r.taps * r.depth * pitch(), out);
      }
    }
    char* out = ws_.panels;
    for (int64_t i = 0; i < columns_.panels; ++i) {
      const int64_t begin = columns_.begin(i), width = columns_.width(i) * kLanes;
      Slab slab = all;
      slab.column += begin;
      slab.columns = min(width, columns_.count - begin);
      if (by_channel) {
        pack_channels(slab, width, out);
      } else if constexpr (kDotBf16) {
        plan_.access == Access::kernel_rows ? pack_kernel_rows(slab, width, out) : pack_pairs(slab, width, out);
      } else {
        pack_groups(slab, width, reinterpret_cast<float*>(out));
        round_rows(p_, r.taps * r.depth * width, reinterpret_cast<float*>(out));
      }
      out += panel_bytes(r, i);
    }
  }

  // At once where the layout allows; else by way of float32 rows that stay in the first-level cache, as many channels
  // at a time as the stage has room for.
  void pack_pairs(const Slab& slab, int64_t width, char* out) {
    if (pack_paired(p_, slab, width, reinterpret_cast<bf16*>(out))) return;
    const int64_t step = kStageRows / max(1, slab.taps) / 2 * 2;
    const int64_t tap_size = round_up(slab.depth, 2) * width;
    for (int64_t k = 0; k < slab.depth; k += step) {
      Slab part = slab;
      part.k += k;
      part.depth = min(step, slab.depth - k);
      pack(p_, part, width, ws_.stage);
      for (int64_t t = 0; t < slab.taps; ++t) {
        pair_rows(ws_.stage + t * part.depth * width, part.depth, width,
                  reinterpret_cast<bf16*>(out) + t * tap_size + k * width);
      }
    }
  }

  // The taps of a kernel row are one run of the reduction.
  void pack_kernel_rows(const Slab& slab, int64_t width, char* out) {
    const int64_t line = min(slab.taps, p_.w.taps), run = line * slab.depth, together = kStageRows / run * line;
    bf16* to = reinterpret_cast<bf16*>(out);
    for (int64_t tap = 0; tap < slab.taps; tap += together) {
      Slab part = slab;
      part.tap += tap;
      part.taps = min(together, slab.taps - tap);
      const int64_t rows = part.taps / line;
      pack(p_, part, width, ws_.stage);
      for (int64_t i = 0; i < rows; ++i) to = pair_rows(ws_.stage + i * run * width, run, width, to);
    }
  }

  // Kernel rows of one channel, then of the next.
  void pack_channels(Slab slab, int64_t width, char* out) {
    const int64_t depth = slab.depth;
    slab.depth = 1;
    for (int64_t k = 0; k < depth; ++k, ++slab.k) {
      if constexpr (kDotBf16) {
        pack_kernel_rows(slab, width, out);
        const Runs runs = runs_of(plan_.access, p_, {slab.tap, slab.taps, slab.k, 1});
        out += runs.count * round_up(runs.depth, 2) * width * 2;
      } else {
        pack(p_, slab, width, reinterpret_cast<float*>(out));
        round_rows(p_, slab.taps * width, reinterpret_cast<float*>(out));
        out += slab.taps * width * 4;
      }
    }
  }

  // Several groups side by side, each with channels of its own.
  void pack_groups(const Slab& slab, int64_t width, float* out) {
    const int64_t rows = slab.taps * slab.depth;
    std::memset(out, 0, static_cast<size_t>(rows * width * 4));
    for (int64_t column = 0; column < slab.columns; column += slab.depth) {
      const int64_t group = (slab.column + column) / slab.depth;
      pack(p_, {0, slab.depth, group * p_.group_k, slab.depth, slab.tap, slab.taps}, kLanes, ws_.stage);
      for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(out + row * width + column, ws_.stage + row * kLanes, static_cast<size_t>(slab.depth * 4));
      }
    }
  }

  void multiply_tile(const Tile& tile, const Reduction& r, bool first, float* scratch_results) {
    const int64_t channel = p_.channelwise ? columns_.first : group_ * p_.depth + r.k;
    Source source = source_of(p_.in, channel);
    if (plan_.band) source = copy_to_band(tile, r, source, p_.channelwise ? columns_.count : r.depth);

    RowWalk walk(p_, r, tile, source, results(tile, scratch_results), plan_.access, plan_.padded, ws_.zeros);
    int64_t left = tile.rows();
    const auto take = [&](RowBlock& block) {
      const int rows = static_cast<int>(rows_of_block(left));
      walk.next(rows, plan_.tiles_of_rows != nullptr ? rows : next_height(rows), block);
      left -= rows;
    };
    RowBlock pair[2] = {ws_.rows[0], ws_.rows[1]};
    take(pair[0]);
    int now = 0;
    for (; left > 0; now = 1 - now) {
      take(pair[1 - now]);
      multiply_rows(r, first, pair[now], pair[1 - now]);
    }
    multiply_rows(r, first, pair[now], pair[now]);
  }

  void multiply_rows(const Reduction& r, bool first, const RowBlock& now, const RowBlock& next) {
    const Runs runs = runs_of(plan_.access, p_, r);
    const RowBlock& fetched = next.rows < now.rows ? now : next;
    const void* const* ahead = fetched.a + max(0, runs.count - 1) * fetched.rows;
    PanelProduct b = {now.a,   ahead,  runs.count, runs.depth, ws_.panels, now.c, 0,
                      nullptr, kLanes, now.rows,   now.c,      0,          0};
    for (int64_t panel = 0; panel < columns_.panels; ++panel) {
      const int width = columns_.width(panel);
      b.column = columns_.begin(panel);
      b.start = first ? ws_.start + b.column : nullptr;
      // Scratch results have whole vectors of room; the output and the activations do not.
      const bool whole = !plan_.in_place && !p_.channelwise;
      b.tail = whole ? kLanes : min(kLanes, columns_.count - b.column - (width - 1) * kLanes);
      // What the next block adds to or overwrites is a few lines here and there, which it would wait for: 1 to 11 % of
      // a convolution, 6 % of the input gradient of 512 rows by 2048 x 2048 (Ice Lake, 2 cores).
      const bool last = panel + 1 == columns_.panels;
      b.next_c = last ? next.c : now.c;
      b.next_column = last ? 0 : columns_.begin(panel + 1);
      b.next_columns = last && next.rows < now.rows ? 0 : columns_.width(last ? 0 : panel + 1) * kLanes;
      kernel(width, now.rows)(b);
      b.panel = static_cast<const char*>(b.panel) + panel_bytes(r, panel);
    }
  }

  Results results(const Tile& tile, float* scratch_results) const {
    const int64_t* stride = p_.out.stride;
    if (!plan_.in_place) return {scratch_results, tile.height * tile.width * pitch(), tile.width * pitch(), pitch()};
    float* out = static_cast<float*>(p_.out.data) + tile.n * stride[0] + tile.i * stride[2] + tile.j * stride[3] +
                 (group_ * p_.columns + columns_.first) * stride[1];
    return {out, stride[0], stride[2], stride[3]};
  }

  // Of the next block, `left` rows of the tile being left.
  int64_t rows_of_block(int64_t left) const {
    if (plan_.tiles_of_rows == nullptr) return block_of_rows(left, rows_per_block(columns_.widest()));
    return ceil_div(left, ceil_div(left, plan_.tiles_of_rows->rows));
  }

  MicroKernel kernel(int vectors, int m) const {
    if constexpr (kDotBf16) {
      return plan_.tiles_of_rows != nullptr ? plan_.tiles_of_rows->run[vectors - 1] : micro_kernel<Pairs>(vectors, m);
    } else {
      if (plan_.kernel == Kernel::f32) return micro_kernel<F32>(vectors, m);
      return p_.depth > 1 ? grouped_kernel(p_.depth, m) : micro_kernel<Depthwise>(vectors, m);
    }
  }

  // Of the rows that the block's taps read.
  Source copy_to_band(const Tile& tile, const Reduction& r, const Source& source, int64_t channels) {
    Source band = source;
    Axis down = p_.h;
    if (plan_.padded) {
      down.taps = ceil_div(r.taps, p_.w.taps);
      down.shift += r.tap / p_.w.taps * down.spread;
    }
    with_type(source.dtype, [&](auto type) {
      using From = decltype(type);
      const auto copy = [&](DType to_type, auto* to) {
        band = plan_.access == Access::channel_rows
                   ? copy_planes<From>(down, p_.w, tile, source, channels, plan_.padded, to_type, to)
                   : copy_band<From>(down, p_.w, tile, source, channels, plan_.padded, to_type, to);
      };
      if constexpr (kDotBf16) {
        copy(DType::bf16, reinterpret_cast<bf16*>(ws_.band));
      } else {
        copy(DType::f32, reinterpret_cast<float*>(ws_.band));
      }
    });
    return band;
  }

  void write(int64_t begin, int64_t end) {
    const float* from = ws_.results;
    with_type(p_.out.dtype, [&](auto type) {
      for (int64_t t = begin; t < end; ++t) {
        const Tile tile = plan_.tiles.tile(p_, t);
        const int64_t first = group_ * p_.columns + columns_.first;
        if (p_.patch_h > 0) {
          write_patches<decltype(type)>(p_, tile, from, pitch(), first, columns_.count);
        } else {
          write_tile<decltype(type)>(p_, tile, from, pitch(), first, columns_.count);
        }
        from += tile.rows() * pitch();
      }
    });
  }

  const Problem& p_;
  const Plan& plan_;
  const Workspace& ws_;
  int64_t group_ = 0;
  Columns columns_ = {};
};

// Shares are dealt in turn, should the runtime give fewer threads than asked for.
template <class MakeProblem>
static void run_problems(int64_t count, int threads, const MakeProblem& make_problem) {
  char* memory = scratch(static_cast<size_t>(threads * Workspace::bytes()));
  const auto work = [&](int thread, int workers) {
    const Workspace workspace(memory + thread * Workspace::bytes());
    for (int64_t i = 0; i < count; ++i) {
      Problem p = make_problem(i, true);
      if (p.rows() == 0 || p.columns == 0) continue;
      Plan plan = {};
      if (!make_plan(p, threads, false, plan)) {
        p = make_problem(i, false);
        make_plan(p, threads, true, plan);
      }
      for (int64_t share = thread; share < plan.shares(); share += workers) Share(p, plan, workspace).run(share);
    }
  };
  if (threads == 1) return work(0, 1);
#pragma omp parallel num_threads(threads)
  work(thread_number(), thread_count());
}

static inline Tensor images_from(Tensor t, int64_t first) {
  t.data = static_cast<char*>(t.data) + first * t.stride[0] * bytes_of(t.dtype);
  return t;
}

// Whether all these problems are products of pairs.
template <class MakeProblem>
static bool all_pairs(int64_t count, int threads, const MakeProblem& make_problem) {
  for (int64_t i = 0; i < count; ++i) {
    const Problem p = make_problem(i, true);
    Plan plan = {};
    if (p.rows() == 0 || p.columns == 0) continue;
    if (!make_plan(p, threads, false, plan) || plan.kernel != Kernel::pairs) return false;
  }
  return true;
}

static void conv_forward(const Conv& c, const Tensor& x, const Weight& w, const Mask& m, const float* bias,
                         const Tensor& y, int threads) {
  const auto problem = [&](int64_t, bool channelwise) {
    return forward_problem(c, x, w, m, bias, y, channelwise && is_channelwise(c));
  };
  const Problem one = problem(0, false);
  const bool few_rows = has_few_rows(one), few_columns = has_few_columns(one);
  if constexpr (kDotBf16) {
    if (few_rows || few_columns || !all_pairs(1, threads, problem)) {
      return avx512::kForward.conv_forward(c, x, w, m, bias, y, threads);
    }
  } else {
    if (few_rows) return multiply_few_rows(one, threads);
    if (few_columns) return multiply_few_columns(one, threads);
  }
  run_problems(1, threads, problem);
}

// Images of dy that the phases of a strided depthwise gradient read one after the other while the second-level cache
// holds them, where the weight is small enough to be packed for each of them anew.
constexpr int64_t kPhaseBytes = 256 << 10;

static void conv_backward_input(const Conv& c, const Tensor& dy, const Weight& w, const Mask& m, const Tensor& dx,
                                int threads) {
  const int64_t phases = c.stride_h * c.stride_w, image_bytes = c.out_channels * c.out_h * c.out_w * bytes_of(dy.dtype);
  const bool together = phases == 1 || !is_channelwise(c) || c.batch * image_bytes == 0;
  const int64_t images = together ? c.batch : min(c.batch, max(1, kPhaseBytes / image_bytes));
  Problem one = backward_problem(c, dy, w, m, dx, 0, 0, false);
  const bool few_rows = phases == 1 && has_few_rows(one), few_columns = phases == 1 && has_few_columns(one);
  const bool patches = !few_rows && !few_columns && patches_problem(c, dy, w, m, dx, one);
  const int64_t count = patches ? 1 : phases * (together ? 1 : ceil_div(c.batch, images));
  const auto problem = [&](int64_t index, bool channelwise) {
    if (patches) return one;
    const int64_t phase = index % phases;
    Problem p = backward_problem(c, dy, w, m, dx, phase / c.stride_w, phase % c.stride_w,
                                 channelwise && is_channelwise(c));
    const int64_t first = index / phases * images;
    p.batch = min(images, c.batch - first);
    p.in = images_from(dy, first);
    p.out = images_from(p.out, first);
    return p;
  };
  if constexpr (kDotBf16) {
    if (few_rows || few_columns || !all_pairs(count, threads, problem)) {
      return avx512::kForward.conv_backward_input(c, dy, w, m, dx, threads);
    }
  } else {
    if (few_rows) return multiply_few_rows(one, threads);
    if (few_columns) return multiply_few_columns(one, threads);
  }
  run_problems(count, threads, problem);
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
