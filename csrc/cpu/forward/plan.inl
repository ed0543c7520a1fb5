// How a problem is cut: along the reduction into blocks whose panel stays in the second-level cache, along rows into
// tiles, and along groups, rows and columns into one share per thread.
//
// The reduction's blocks depend on the problem alone, and every output element is accumulated in their order: results
// are the same bits for any number of threads.
#pragma once

#include "cpu/dispatch/isa.h"
#include "cpu/forward/microkernel.inl"
#include "cpu/forward/tile.inl"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// Working memory per thread, whatever the problem: under 1 MB.
constexpr int64_t kPanelBytes = 1536 * 4 * kMaxVectors * kLanes;  // 384 KB with AVX-512
constexpr int64_t kMaxPanels = 16;                                // packed together, while they fit kPanelBytes
constexpr int64_t kMaxTaps = 96;                                  // or other runs, in one block of the reduction
constexpr int64_t kAddressedRows = kDotBf16 ? 32 : kMaxRows;      // in one block of rows: of tiles, where there are any
constexpr int64_t kBandBytes = 192 << 10;
constexpr int64_t kAccumulators = 32 << 10;  // float32, where results do not go to memory as they are
constexpr int64_t kPassedResults = 64 << 10;  // float32, of results in place that stay in the second-level cache
constexpr int64_t kMaxColumns = 1024;        // of panels packed together
constexpr int64_t kWholeColumns = 256;       // of those, where they hold the whole reduction

// A run of pairs must fit the stage that float32 rows pass on their way to them.
constexpr int64_t kStageRows = 2 * kMaxTaps;

enum class Kernel { f32, pairs, channelwise };

// Where a row of the product finds its elements: a run of channels for each tap; in a band of few channels a run for
// each kernel row, whose taps are neighbours there, or for each kernel row of each channel; or all taps copied together.
enum class Access { taps, kernel_rows, channel_rows, gathered };

struct Plan {
  Kernel kernel;
  const TileKernels* tiles_of_rows;  // null: blocks of rows are for the micro-kernels of this set
  bool band;             // activations are copied to a channels-last band, in the type the kernel reads
  bool padded;           // with zeros around the image, so that no row of the product meets its border
  Access access;
  bool in_place;         // results are accumulated where they belong
  int64_t tap_line;      // blocks do not cross the end of so many taps: all, or those of a kernel row longer than a run
  int64_t tap_block, k_block;
  int64_t tap_blocks, k_blocks;
  int64_t vectors;       // of a group's columns
  int64_t widest;        // vectors of a panel at most
  int64_t panels;        // packed together
  Tiling tiles;
  int64_t chunk;         // tiles between two packings of the same panel
  int64_t shares_g, shares_r, shares_c;

  int64_t blocks() const { return tap_blocks * k_blocks; }
  int64_t shares() const { return shares_g * shares_r * shares_c; }
};

// One block of the reduction.
struct Reduction {
  int64_t tap, taps, k, depth;
};

// The same as runs of `depth` elements, in the order of the panel.
struct Runs {
  int64_t count, depth;
};
static inline Runs runs_of(Access access, const Problem& p, const Reduction& r) {
  const int64_t line = min(r.taps, p.w.taps), kernel_rows = line == 0 ? 0 : ceil_div(r.taps, line);
  switch (access) {
    case Access::taps: return {r.taps, r.depth};
    case Access::kernel_rows: return {kernel_rows, line * r.depth};
    case Access::channel_rows: return {r.depth * kernel_rows, line};
    default: return {min(r.taps, 1), r.taps * r.depth};
  }
}

static inline int64_t reach(const Axis& axis, int64_t extent, bool padded) {
  const int64_t size = (extent - 1) * axis.step + (axis.taps - 1) * axis.spread + 1;
  return padded ? size : min(axis.in, size);
}

// Panels to be packed together from a weight whose columns are contiguous, as in the input gradient of a linear layer:
// its rows lie thousands of elements apart, and a panel alone would read 256 bytes of each. Many panels of few rows
// read whole pages, as long as the results that all blocks pass over stay in the cache. Where rows are many, four: the
// activations, which each block of panels passes over, then travel as often as the results.
static inline int64_t panels_of_long_rows(const Problem& p, bool in_place) {
  if (p.taps() != 1 || p.b.weight_steps.column != 1) return 1;
  const int64_t width = kMaxVectors * kLanes, results = in_place ? kPassedResults : kAccumulators;
  const int64_t panels = max(in_place ? 4 : 1, results / (p.rows() * width));
  return min(min(panels, kMaxPanels), ceil_div(p.columns, width));
}

// Splits work over threads so that the slowest finishes first. Unit: one vector of columns times one row and channel.
// Packing an element costs what about 32 rows of products do; reading a row about one vector more.
static void split(const Problem& p, int threads, Plan& plan) {
  double best = 0;
  for (int64_t g = 1; g <= min(threads, p.groups); ++g) {
    for (int64_t r = 1; r <= threads / g; ++r) {
      const int64_t c = min(threads / (g * r), plan.vectors);
      const double columns = static_cast<double>(ceil_div(plan.vectors, c));
      const double rows = static_cast<double>(ceil_div(p.rows(), r));
      const double cost = static_cast<double>(ceil_div(p.groups, g)) * (columns * 32 + rows * (columns + 1));
      if (best == 0 || cost < best) {
        best = cost;
        plan.shares_g = g;
        plan.shares_r = r;
        plan.shares_c = c;
      }
    }
  }
}

// Images of few channels that lie in planes, under kernels whose rows fill a run: a band of planes is the image's own
// rows, where pixels side by side would be put together for each panel anew.
static inline bool has_long_rows(const Problem& p) {
  return p.depth > 1 && p.in.stride[3] == 1 && p.b.weight_steps.v == 1 && p.w.taps * p.h.taps > kMaxTaps;
}

// The blocks of a reduction over kernel rows: as many channels and then kernel rows as a panel has room for, or part of
// a single one.
static void cut_into_rows(const Problem& p, int64_t longest_run, int64_t panel_rows, Plan& plan) {
  const int64_t apart = plan.access == Access::channel_rows ? p.depth : 1, side_by_side = p.depth / apart;
  const int64_t line = min(p.w.taps, longest_run / side_by_side), run = round_up(line * side_by_side, 2);
  const int64_t runs = max(1, min(kMaxTaps, panel_rows / run));
  if (line < p.w.taps) plan.tap_line = p.w.taps;
  const int64_t rows = line < p.w.taps ? 1 : min(p.h.taps, runs);
  const int64_t channels = max(1, min(apart, runs / rows));
  plan.k_blocks = ceil_div(apart, channels);
  plan.k_block = side_by_side * ceil_div(apart, plan.k_blocks);
  plan.tap_block = line < p.w.taps ? even_part(p.w.taps, line) : p.w.taps * even_part(p.h.taps, rows);
  plan.tap_blocks = p.taps() / plan.tap_line * ceil_div(plan.tap_line, plan.tap_block);
}

// False if the problem needs a band that would not fit kBandBytes: windows as wide as dilations of hundreds make them.
// With `gather` there is none, every row being gathered element by element.
static bool make_plan(const Problem& p, int threads, bool gather, Plan& plan) {
  const int64_t taps = p.taps();
  const bool few_channels = !p.channelwise && p.depth > 0 && p.depth < 16 && taps > 1;
  const bool adjacent = p.in.stride[1] == 1 || (p.depth == 1 && !p.channelwise);
  const bool joins = p.w.spread == 1;
  plan.access = gather || (few_channels && !joins)  ? Access::gathered
                : few_channels && has_long_rows(p) ? Access::channel_rows
                : few_channels                     ? Access::kernel_rows
                                                   : Access::taps;
  const bool gathered = plan.access == Access::gathered;
  const bool pairs = kDotBf16 && p.in.dtype == DType::bf16 && !gathered && !p.channelwise;
  plan.kernel = p.channelwise ? Kernel::channelwise : pairs ? Kernel::pairs : Kernel::f32;
  plan.tiles_of_rows = pairs ? kernels().tiles : nullptr;
  const bool reads_float = plan.kernel == Kernel::f32 ? !gathered : p.channelwise;
  plan.padded = plan.access == Access::kernel_rows || plan.access == Access::channel_rows;
  plan.band = !gather && taps > 0 && (plan.padded || !adjacent || (reads_float && p.in.dtype != DType::f32));
  plan.in_place = p.out.dtype == DType::f32 && p.patch_h == 0 && (p.out.stride[1] == 1 || p.columns == 1);

  const int64_t panel_rows = kPanelBytes / (kMaxVectors * kLanes * (plan.kernel == Kernel::pairs ? 2 : 4));
  const int64_t long_rows = plan.kernel == Kernel::f32 ? panels_of_long_rows(p, plan.in_place) : 1;
  plan.tap_line = taps;
  if (plan.padded) {
    cut_into_rows(p, pairs ? kStageRows : panel_rows, panel_rows, plan);
  } else {
    plan.tap_blocks = max(1, ceil_div(taps, kMaxTaps));
    plan.tap_block = max(1, ceil_div(taps, plan.tap_blocks));
    const int64_t deepest = panel_rows / plan.tap_block / long_rows / 16 * 16;
    plan.k_blocks = max(1, ceil_div(p.depth, deepest));
    plan.k_block = plan.k_blocks == 1 ? p.depth : round_up(ceil_div(p.depth, plan.k_blocks), 16);
  }

  plan.vectors = ceil_div(p.columns, kLanes);
  plan.widest = p.channelwise && p.depth > 1 ? 1 : kMaxVectors;
  split(p, threads, plan);
  const int64_t vectors = ceil_div(plan.vectors, plan.shares_c);
  const int64_t width = min(vectors, plan.widest) * kLanes;
  const Runs runs = runs_of(plan.access, p, {0, plan.tap_block, 0, plan.k_block});
  const int64_t column_bytes = runs.count * (plan.kernel == Kernel::pairs ? 2 * round_up(runs.depth, 2) : 4 * runs.depth);
  const int64_t panel_bytes = max(1, width * column_bytes);
  plan.panels = plan.blocks() > 1 ? long_rows : min(kPanelBytes / panel_bytes, kWholeColumns / width);
  plan.panels = max(1, min(min(plan.panels, kMaxPanels), ceil_div(vectors * kLanes, width)));

  const int64_t accumulated_rows = kAccumulators / (plan.panels * width);
  const int64_t share = ceil_div(p.rows(), plan.shares_r);
  int64_t rows = min(share, plan.in_place ? 512 : accumulated_rows);
  plan.tiles = tiling(p, rows);
  if (plan.tiles.count() < 4 * plan.shares_r && plan.tiles.count() % plan.shares_r != 0) {
    rows = min(rows, ceil_div(share, 4));
    plan.tiles = tiling(p, rows);
  }
  if (plan.band) {
    const int64_t channels = p.channelwise ? min(p.columns, plan.panels * width) : plan.k_block;
    const int64_t pixel_bytes = channels * (plan.kernel == Kernel::pairs ? 2 : 4);
    Axis down = p.h;
    if (plan.padded) down.taps = ceil_div(plan.tap_block, p.w.taps);
    const auto fits = [&] {
      const int64_t high = reach(down, plan.tiles.height, plan.padded), wide = reach(p.w, plan.tiles.width, plan.padded);
      return plan.tiles.images * high * wide * pixel_bytes <= kBandBytes;
    };
    for (; !fits() && rows > 1; plan.tiles = tiling(p, rows)) rows = rows * 3 / 4;
    if (!fits()) return false;
  }
  plan.chunk = plan.in_place         ? plan.tiles.count()
               : plan.blocks() == 1 ? 1
                                    : max(1, accumulated_rows / plan.tiles.rows());
  return true;
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
