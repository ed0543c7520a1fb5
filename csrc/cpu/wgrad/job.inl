// What one call of the weight gradient is, and how it is cut into tasks: a rectangle of tiles, all their taps, and a
// share of the blocks of pixels.
#pragma once

#include "cpu/wgrad/finish.inl"
#include "cpu/wgrad/kernels.h"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// Sums of one task, and the panels of a block on either side of it. More than the second-level cache holds of all
// three is no loss: each is passed over in order, once per block.
constexpr int64_t kTaskBytes = 768 * 1024;
constexpr int64_t kSideBytes = 512 * 1024;
// A plane of weights of at most this size (64 x 64 x 3 x 3) is one task and too few for many threads: the blocks of
// pixels are cut into shares then, each with sums of its own: 1.5 MB of partial sums at most, whatever the layer.
constexpr int64_t kSharedPlaneBytes = 192 * 1024;
constexpr int64_t kShares = 8;

// A whole call: geometry, roles of the operands, and how the work is cut.
struct Job {
  Conv conv;
  Walk walk;
  Finish finish;
  Operand row_side, lane_side;  // one of them x, the other dy
  bool swapped;                 // rows are input channels, lanes output channels
  bool channelwise;             // lanes are output channels, rows the inputs of each one's group; depthwise, lanes are
                                // groups, rows the output channels of each
  bool in_place;                // channelwise, and x and dy are read where they lie
  bool kernel_rows;             // swapped, and the taps of a kernel row are rows side by side (kernel_rows.inl)
  bool planes;                  // the same, one channel after the other
  MultiplyTiled tiled;          // null: by the micro-kernels of this set (tile.inl)
  int64_t groups, rows, lanes;  // rows and lanes per group
  int64_t tile_rows, row_tiles, lane_tiles, tile_floats;
  int64_t task_rows, task_lanes;  // tiles per task
  int64_t shares;                 // of the blocks of pixels

  int64_t taps() const { return finish.taps(); }
  int64_t plane_tiles() const { return groups * row_tiles * lane_tiles; }
  int64_t tasks_down() const { return ceil_div(row_tiles, task_rows); }
  int64_t tasks_across() const { return ceil_div(lane_tiles, task_lanes); }
  int64_t tasks() const { return shares * groups * tasks_down() * tasks_across(); }

  WeightTile tile(int64_t group, int64_t down, int64_t across) const {
    const int64_t row = down * tile_rows, lane = across * kTileLanes;
    return {group, row, min(tile_rows, rows - row), lane, min(kTileLanes, lanes - lane)};
  }

  // Where a tile's channels start in its operands.
  int64_t lane_offset(const WeightTile& t) const { return (t.group * lanes + t.lane) * lane_side.c; }
  int64_t row_offset(const WeightTile& t) const {
    if (channelwise) return t.lane * row_side.c + t.row / tile_rows * (row_side.c / row_tiles);
    return (t.group * rows + t.row) * row_side.c;
  }
};

// Half cycles per position of a rows x lanes plane, on a core with two multiply-adds of latency four and two loads a
// cycle.
static int64_t plane_cost(int64_t rows, int64_t lanes) {
  int64_t cost = 0;
  for (int64_t lane = 0; lane < lanes; lane += kTileLanes) {
    const int64_t v = ceil_div(min(kTileLanes, lanes - lane), kLanes), rest = rows % kTileRows;
    const auto tile = [&](int64_t r) { return max(max(r * v, r + v), 8); };
    cost += rows / kTileRows * tile(kTileRows) + (rest == 0 ? 0 : tile(rest));
  }
  return cost;
}

// Units of one panel of either side, and a tile more: panels must not lie a multiple of 4 KB apart.
static int64_t panel_units(const Job& job, const Operand& side) {
  const bool lanes = &side == &job.lane_side || job.channelwise;
  const int64_t channels = lanes ? kTileLanes : job.kernel_rows ? job.rows : kPanelRows;
  return side.rows.slots * side.columns.slots * job.walk.unit_block * channels + kTileLanes;
}

// Tiles per task, long in the direction of lanes: weights, scores and gradients are then met in rows of a page or more,
// twice as fast as in squares of the same number of tiles (4096 x 4096, 32 pixels). No sum depends on the choice.
static void choose_task(Job& job, int threads) {
  const auto fit = [](int64_t bytes, int64_t units) { return max(1, bytes / (units * 4)); };
  const int64_t tiles = fit(kTaskBytes, job.tile_floats);
  const int64_t panels = min(tiles, fit(kSideBytes, panel_units(job, job.lane_side)));
  job.task_lanes = even_block(job.lane_tiles, panels);
  const int64_t row_panels = fit(kSideBytes, panel_units(job, job.row_side));
  const int64_t panel_tiles = kPanelRows / (job.tiled != nullptr ? kTiledRows : kTileRows);
  job.task_rows = min(tiles / job.task_lanes, job.channelwise ? tiles : row_panels * panel_tiles);
  job.task_rows = even_block(job.row_tiles, max(1, job.task_rows));
  const bool shared = job.plane_tiles() * job.tile_floats * 4 <= kSharedPlaneBytes;
  job.shares = shared ? max(1, min(kShares, job.walk.blocks)) : 1;
  while (job.task_rows > 1 && job.tasks() < 4 * threads && job.tasks() % threads != 0) {
    job.task_rows = ceil_div(job.task_rows, 2);
  }
  while (job.task_lanes > 1 && job.tasks() < threads) job.task_lanes = ceil_div(job.task_lanes, 2);
}

// Where each tap's runs start in the panels of one block.
static void find_runs(const Job& job, const Block& block, PixelRuns* runs) {
  const WalkAxis &h = job.walk.h, &w = job.walk.w;
  for (int64_t t = 0; t < job.taps(); ++t) {
    const int64_t u = t / job.conv.kernel_w, v = t % job.conv.kernel_w;
    const Range down = h.valid(u, block.row, block.rows), across = w.valid(v, block.column, block.columns);
    const int64_t x_at = ((h.slot(u) + down.begin) * w.slots + w.slot(v) + across.begin) * block.units;
    const int64_t dy_at = (down.begin * w.block + across.begin) * block.units;
    const int64_t x_step = w.slots * block.units, dy_step = w.block * block.units;
    PixelRuns r = {down.end - down.begin, (across.end - across.begin) * block.units, dy_at, dy_step, x_at, x_step};
    if (job.swapped) r = {r.lines, r.count, x_at, x_step, dy_at, dy_step};
    if (r.count == r.rows_step && r.count == r.lanes_step) {
      r.count *= r.lines;
      r.lines = min(r.lines, 1);
    }
    runs[t] = r;
  }
}

// Pairs from one turned row to the next (tiled.inl): an odd number of cache lines, so that 16 rows spread over all sets
// of the cache.
static inline int64_t turned_pitch(int64_t positions) { return (ceil_div(positions, 16) | 1) * 16; }

template <class Math>
using Pack = void (*)(const Operand&, const Block&, int64_t, const Panels<typename Math::Unit>&);

static inline Pack<FloatMath> packer(FloatMath, DType dtype) {
  switch (dtype) {
    case DType::f32: return pack_panels<FloatUnits<float>>;
    case DType::bf16: return pack_panels<FloatUnits<bf16>>;
    default: return pack_panels<FloatUnits<f16>>;
  }
}
static inline Pack<PairMath> packer(PairMath, DType) { return pack_panels<PairUnits>; }

// What one thread works in.
template <class Math>
struct Scratch {
  typename Math::Unit *rows, *lanes, *turned;
  float *sums, *lines;
  PixelRuns* runs;
  int64_t row_panel, lane_panel;  // units per panel
  int64_t bytes;

  Scratch(const Job& job, char* base) {
    const auto take = [&](int64_t size) {
      char* const at = base + bytes;
      bytes += round_up(size, 64);
      return at;
    };
    row_panel = panel_units(job, job.row_side);
    lane_panel = panel_units(job, job.lane_side);
    bytes = 0;
    const int64_t row_panels = job.channelwise ? job.task_lanes : ceil_div(job.task_rows * job.tile_rows, kPanelRows);
    lanes = reinterpret_cast<typename Math::Unit*>(take(job.task_lanes * lane_panel * 4));
    rows = reinterpret_cast<typename Math::Unit*>(take(row_panels * row_panel * 4));
    sums = reinterpret_cast<float*>(take(job.task_rows * job.task_lanes * job.tile_floats * 4));
    lines = reinterpret_cast<float*>(take(kFinishLines * kTileLanes * job.taps() * 4));
    runs = reinterpret_cast<PixelRuns*>(take(job.taps() * static_cast<int64_t>(sizeof(PixelRuns))));
    const int64_t positions = job.row_side.rows.slots * job.row_side.columns.slots * job.walk.unit_block;
    const int64_t turned_units = job.tiled != nullptr ? kPanelRows * turned_pitch(positions) : 0;
    turned = reinterpret_cast<typename Math::Unit*>(take(turned_units * 4));
  }
};

// The sums of tile (down, across) of a task.
struct Sums {
  float* first;
  int64_t down_step, across_step;

  float* at(int64_t down, int64_t across) const { return first + down * down_step + across * across_step; }
};

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
