// A task of the weight gradient on AMX tiles (amx.inl), whose products want the positions of a row side by side: panels
// of rows are turned once a block. In bfloat16 dS of 16 x 128 x 16 x 16 to 128 channels takes 0.13 of the micro-kernels'
// time, of a linear layer of 128 by 1024 x 1024 0.39 (Xeon with AMX, one thread).
#pragma once

#include "cpu/wgrad/kernel_rows.inl"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// Blocks of fewer positions are left to the micro-kernels: with 8 pairs of rows a linear layer's gradient took 1.03 to
// 1.13 of their time, with 10 pairs 0.93 to 0.98, with 16 0.75 to 0.69 (256 and 1024 square; Xeon with AMX, one thread).
constexpr int64_t kTiledPositions = 10;

constexpr int64_t kFinishedRows = 8;  // of a tile, for all lanes before the next
static_assert(kTiledRows % kFinishedRows == 0, "a tile in whole parts");

static bool has_tiled_blocks(const Walk& walk) {
  return walk.h.block * walk.w.block * walk.unit_block >= kTiledPositions;
}

// out[row][position] of a panel [position][width] of pairs, for `width` rows.
static void turn_panel(const uint32_t* panel, int64_t positions, int64_t width, int64_t pitch, uint32_t* out) {
  for (int64_t k = 0; k < positions; k += kLanes) {
    for (int64_t row = 0; row < width; row += kLanes) {
      Vec square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        square[i] = k + i < positions ? load_units(panel + (k + i) * width + row) : zero();
      }
      transpose(square);
      for (int64_t i = 0; i < kLanes; ++i) store_units(out + (row + i) * pitch + k, square[i]);
    }
  }
}

// What sum_blocks() of task.inl does. Tiles of the last block are finished row by row of all lanes: one after the other
// as they are summed, weights and gradients were met in pieces of 256 bytes, and a linear layer of 128 by 1024 x 1024
// took a tenth longer.
template <class Finished>
static void sum_tiled(const Job& job, Range blocks, int64_t group, Range down, Range across, const Sums& sums,
                      const Scratch<PairMath>& scratch, const Finished& finished) {
  const WeightTile corner = job.tile(group, down.begin, across.begin);
  const int64_t high = down.end - down.begin, wide = across.end - across.begin, taps = job.taps();
  const Panels<uint32_t> lanes = {scratch.lanes, scratch.lane_panel, min(job.lanes - corner.lane, wide * kTileLanes),
                                  kTileLanes};
  const Panels<uint32_t> rows = {scratch.rows, scratch.row_panel, min(job.rows - corner.row, high * kTiledRows),
                                 kPanelRows};
  const WalkAxis &down_axis = job.row_side.rows, &across_axis = job.row_side.columns;
  for (int64_t index = blocks.begin; index < blocks.end; ++index) {
    const Block block = block_at(job.walk, index);
    const bool last = index + 1 == blocks.end;
    find_runs(job, block, scratch.runs);
    packer(PairMath{}, job.lane_side.dtype)(job.lane_side, block, job.lane_offset(corner), lanes);
    packer(PairMath{}, job.row_side.dtype)(job.row_side, block, job.row_offset(corner), rows);
    const int64_t positions = down_axis.slots * across_axis.slots * block.units, pitch = turned_pitch(positions);
    for (int64_t panel = 0; panel * kPanelRows < rows.channels; ++panel) {
      const int64_t first = panel * kPanelRows / kTiledRows, count = ceil_div(min(kPanelRows, rows.left(panel)), kTiledRows);
      turn_panel(rows.first + panel * rows.step, positions, rows.padded(rows.left(panel)), pitch, scratch.turned);
      for (int64_t a = 0; a < wide; ++a) {
        const WeightTile lane_tile = job.tile(group, down.begin, across.begin + a);
        const int64_t vectors = ceil_div(lane_tile.lanes, kLanes);
        for (int64_t t = 0; t < taps; ++t) {
          const PixelRuns& runs = scratch.runs[t];
          const int64_t lane_pitch = vectors * kLanes;
          job.tiled({scratch.turned + runs.rows_at, lanes.first + a * lanes.step + runs.lanes_at * lane_pitch, pitch,
                     lane_pitch, runs.lines, runs.count, runs.rows_step, runs.lanes_step, count, vectors,
                     sums.at(first, a) + t * kTiledRows * kTileLanes, sums.down_step, index > blocks.begin});
        }
      }
      if (!last) continue;
      for (int64_t row = 0; row < min(kPanelRows, rows.left(panel)); row += kFinishedRows) {
        for (int64_t a = 0; a < wide; ++a) {
          const int64_t d = first + row / kTiledRows, within = row % kTiledRows;
          WeightTile tile = job.tile(group, down.begin + d, across.begin + a);
          tile.row += within;
          tile.rows = min(kFinishedRows, tile.rows - within);
          finished(tile, sums.at(d, a) + within * kTileLanes);
        }
      }
    }
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
