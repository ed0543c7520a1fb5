// A task of the weight gradient, carried out: its channels of x and dy packed block by block, and multiplied.
#pragma once

#include <type_traits>

#include "cpu/wgrad/tiled.inl"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// An empty batch or image.
template <class Finished>
static void sum_nothing(const Job& job, int64_t group, Range down, Range across, const Sums& sums,
                        const Finished& finished) {
  for (int64_t a = across.begin; a < across.end; ++a) {
    for (int64_t d = down.begin; d < down.end; ++d) {
      float* const sum = sums.at(d - down.begin, a - across.begin);
      for (int64_t i = 0; i < job.tile_floats; ++i) sum[i] = 0.0f;
      finished(job.tile(group, d, a), sum);
    }
  }
}

// One block of a vector of channels; sums of tap t at sum[t * height * kTileLanes].
template <class Math>
static void multiply_block(const Job& job, const Block& block, const Channels<typename Math::Unit>& at, float* sum,
                           bool add) {
  const WalkAxis &h = job.walk.h, &w = job.walk.w;
  const auto multiply = channel_kernel<Math>(job.tile_rows);
  for_each_joint_run(job.walk, block, [&](const JointTaps& joint) {
    const int64_t units = job.in_place ? 1 : block.units;
    ChannelRuns<typename Math::Unit> runs;
    runs.taps = joint.taps;
    // What the next block reads, a vector of every pixel: a fifth less time where x and dy come from memory
    // (16 x 64 x 56 x 56, Ice Lake).
    runs.fetch = job.in_place && joint.u == 0;
    runs.lines = joint.down.end - joint.down.begin;
    runs.positions = (joint.across.end - joint.across.begin) * units;
    runs.dy = at.dy + joint.down.begin * at.dy_line + joint.across.begin * units * at.dy_step;
    for (int64_t t = 0; t < joint.taps; ++t) {
      const int64_t v = joint.v + t;
      const int64_t tap = job.in_place ? joint.u * h.dilation * job.lane_side.h + v * w.dilation * job.lane_side.w
                                       : h.slot(joint.u) * at.x_line + w.slot(v) * units * at.x_step;
      runs.x[t] = at.x + tap + joint.down.begin * at.x_line + joint.across.begin * units * at.x_step;
    }
    multiply(at, runs, sum + (joint.u * w.taps + joint.v) * job.tile_rows * kTileLanes, add || !joint.first);
  });
}

// One share of the blocks where every lane has its own channels. Read in place where they are float32 side by side:
// packing took five sixths of the time. Else packed into panels of one vector, which stay in the first-level cache for
// all taps; all channels of a pixel together, a tenth faster than in slices of a tile's width.
template <class Math, class Finished>
static void sum_channels(const Job& job, Range blocks, Range down, Range across, const Sums& sums,
                         const Scratch<Math>& scratch, const Finished& finished) {
  const Pack<Math> pack_row_side = packer(Math{}, job.row_side.dtype);
  const Pack<Math> pack_lane_side = packer(Math{}, job.lane_side.dtype);
  using Unit = typename Math::Unit;
  const Operand &x = job.lane_side, &dy = job.row_side;
  const WalkAxis &h = job.walk.h, &w = job.walk.w;
  const WeightTile corner = job.tile(0, down.begin, across.begin);
  const int64_t wide = across.end - across.begin, channels = min(job.lanes - corner.lane, wide * kTileLanes);
  const Panels<Unit> lanes = {scratch.lanes, scratch.lane_panel / kTileVectors, channels, kLanes};
  const Panels<Unit> rows = {scratch.rows, scratch.row_panel / kTileVectors, channels, kLanes};
  for (int64_t index = blocks.begin; index < blocks.end; ++index) {
    const Block block = block_at(job.walk, index);
    if (!job.in_place) pack_lane_side(x, block, job.lane_offset(corner), lanes);
    for (int64_t d = down.begin; d < down.end; ++d) {
      if (!job.in_place) pack_row_side(dy, block, job.row_offset(job.tile(0, d, across.begin)), rows);
      for (int64_t a = 0; a < wide; ++a) {
        const WeightTile tile = job.tile(0, d, across.begin + a);
        float* const sum = sums.at(d - down.begin, a);
        for (int64_t v = 0; v * kLanes < tile.lanes; ++v) {
          const int64_t panel = a * kTileVectors + v, packed = kLanes * block.units;
          Channels<Unit> at = {rows.first + panel * rows.step, lanes.first + panel * lanes.step,
                               w.block * packed, kLanes, w.slots * packed, kLanes, kLanes, 0, 0};
          if (job.in_place) {
            const int64_t top = block.row * h.stride - h.pad, left = block.column * w.stride - w.pad;
            const int64_t channel = tile.lane + v * kLanes;
            const int64_t first_dy = block.unit * dy.n + block.row * dy.h + block.column * dy.w + channel;
            const int64_t first_x = block.unit * x.n + top * x.h + left * x.w + channel;
            at = {static_cast<const Unit*>(dy.data) + first_dy, static_cast<const Unit*>(x.data) + first_x,
                  dy.h, dy.w, h.stride * x.h, w.stride * x.w, min(kLanes, job.lanes - channel),
                  block.rows * dy.h, block.rows * h.stride * x.h};
          }
          multiply_block<Math>(job, block, at, sum + v * kLanes, index > blocks.begin);
        }
        if (index + 1 == blocks.end) finished(tile, sum);
      }
    }
  }
}

// One share of the blocks for one rectangle of tiles. finished(tile, sums) is called once the tile's last block is in,
// while its sums are still in the first-level cache.
template <class Math, class Finished>
static void sum_blocks(const Job& job, Range blocks, int64_t group, Range down, Range across, const Sums& sums,
                       const Scratch<Math>& scratch, const Finished& finished) {
  if (blocks.begin == blocks.end) return sum_nothing(job, group, down, across, sums, finished);
  if (job.channelwise) return sum_channels<Math>(job, blocks, down, across, sums, scratch, finished);
  if (job.kernel_rows) return sum_kernel_rows<Math>(job, blocks, group, across, sums, scratch, finished);
  if constexpr (std::is_same_v<Math, PairMath>) {
    if (job.tiled != nullptr) return sum_tiled(job, blocks, group, down, across, sums, scratch, finished);
  }
  const Pack<Math> pack_row_side = packer(Math{}, job.row_side.dtype);
  const Pack<Math> pack_lane_side = packer(Math{}, job.lane_side.dtype);
  using Unit = typename Math::Unit;
  const WeightTile corner = job.tile(group, down.begin, across.begin);
  const int64_t high = down.end - down.begin, wide = across.end - across.begin;
  const Panels<Unit> lanes = {scratch.lanes, scratch.lane_panel, min(job.lanes - corner.lane, wide * kTileLanes),
                              kTileLanes};
  const Panels<Unit> rows = {scratch.rows, scratch.row_panel, min(job.rows - corner.row, high * kTileRows),
                             kPanelRows};
  for (int64_t index = blocks.begin; index < blocks.end; ++index) {
    const Block block = block_at(job.walk, index);
    find_runs(job, block, scratch.runs);
    pack_lane_side(job.lane_side, block, job.lane_offset(corner), lanes);
    pack_row_side(job.row_side, block, job.row_offset(corner), rows);
    // Down first, so that a panel of lanes stays in the first-level cache; across first where tiles are finished.
    const bool last = index + 1 == blocks.end, along_rows = last && job.shares == 1;
    for (int64_t i = 0; i < high * wide; ++i) {
      const int64_t d = along_rows ? i / wide : i % high, a = along_rows ? i % wide : i / high;
      const WeightTile tile = job.tile(group, down.begin + d, across.begin + a);
      const auto multiply = tile_kernel<Math>(tile.rows, ceil_div(tile.lanes, kLanes));
      const int64_t panel = d / kPanelTiles;
      const Unit* const first_row = rows.first + panel * rows.step + d % kPanelTiles * kTileRows;
      const int64_t row_pitch = rows.padded(rows.left(panel));
      float* const sum = sums.at(d, a);
      for (int64_t t = 0; t < job.taps(); ++t) {
        multiply(scratch.runs[t], first_row, row_pitch, lanes.first + a * lanes.step,
                 sum + t * job.tile_rows * kTileLanes, index > blocks.begin);
      }
      if (last) finished(tile, sum);
    }
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
