// The weight gradient of few input channels, as a first layer has them. A tile of 3 rows leaves half of the registers
// empty and passes over the lanes once per tap. Where pixels are packed as they follow each other in a row of the image,
// the taps of a kernel row are neighbours: their channels together are the rows of one product, 9 for 3 channels and 3
// taps, in 58 % of the time (128 x 3 x 32 x 32 to 64 channels, Ice Lake). Images whose channels are planes are packed as
// planes where a kernel row alone fills a tile: channels put side by side took as long as the product.
//
// Inputs left and right of the image are stored, as zeros.
#pragma once

#include "cpu/wgrad/job.inl"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// Neighbouring taps must meet neighbours among the pixels that are packed: every `dilation`-th of a row.
static bool has_kernel_rows(const Walk& walk) {
  return walk.w.taps > 1 && walk.w.stride % walk.w.dilation == 0 && walk.unit_block == 1;
}

// What plane_cost() is for one tap at a time, for all of them.
static int64_t kernel_rows_cost(const Walk& walk, int64_t in, int64_t out) {
  return walk.h.taps * plane_cost(walk.w.taps * in, out);
}

// Packed pixels from one position to the next.
static int64_t pixels_per_position(const WalkAxis& w) { return w.stride / w.dilation; }

// The pixels that `positions` of them meet.
static int64_t pixels_of(const WalkAxis& w, int64_t positions) {
  return (positions - 1) * pixels_per_position(w) + w.taps;
}

// A row of the image as it is packed: so many slots that lines lie a whole number of positions apart.
static WalkAxis pixels(const WalkAxis& w) {
  return axis(w.in, w.out, 1, w.dilation, 1, w.pad, round_up(pixels_of(w, w.block), pixels_per_position(w)));
}

// The same block to who packs pixels instead of positions.
static Block block_of_pixels(const WalkAxis& w, Block block) {
  block.column *= pixels_per_position(w);
  block.columns = pixels_of(w, block.columns);
  return block;
}

// Whether a block's taps look beyond the left or right border.
static bool meets_border(const WalkAxis& w, const Block& block) {
  const int64_t first = block.column * w.stride - w.pad;
  return first < 0 || first + (pixels_of(w, block.columns) - 1) * w.dilation >= w.in;
}

// From the order [channel][tap] to [tap][channel], by way of `spare`.
static void sort_taps(int64_t taps, int64_t channels, float* sums, float* spare) {
  std::memcpy(spare, sums, static_cast<size_t>(taps * channels * kTileLanes * 4));
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t, spare += kTileLanes) {
      std::memcpy(sums + (t * channels + c) * kTileLanes, spare, static_cast<size_t>(kTileLanes * 4));
    }
  }
}

// One share of the blocks for some tiles of lanes, each with all rows there are.
template <class Math, class Finished>
static void sum_kernel_rows(const Job& job, Range blocks, int64_t group, Range across, const Sums& sums,
                            const Scratch<Math>& scratch, const Finished& finished) {
  using Unit = typename Math::Unit;
  const Pack<Math> pack_row_side = packer(Math{}, job.row_side.dtype);
  const Pack<Math> pack_lane_side = packer(Math{}, job.lane_side.dtype);
  const WalkAxis &h = job.walk.h, &w = job.walk.w;
  const WeightTile corner = job.tile(group, 0, across.begin);
  const int64_t wide = across.end - across.begin;
  const Panels<Unit> lanes = {scratch.lanes, scratch.lane_panel, min(job.lanes - corner.lane, wide * kTileLanes),
                              kTileLanes};
  // All channels as one plane, or each as its own.
  const int64_t planes = job.planes ? job.rows : 1, channels = job.rows / planes;
  Operand plane = job.row_side;
  if (job.planes) plane.c = 1;
  const int64_t line = plane.columns.slots * channels, plane_size = h.slots * line;
  const int64_t pitch = pixels_per_position(w) * channels, rows = w.taps * channels, step = even_block(rows, kTileRows);
  for (int64_t index = blocks.begin; index < blocks.end; ++index) {
    const Block block = block_at(job.walk, index);
    if (meets_border(w, block)) std::memset(scratch.rows, 0, static_cast<size_t>(planes * plane_size) * sizeof(Unit));
    for (int64_t c = 0; c < planes; ++c) {
      pack_row_side(plane, block_of_pixels(w, block), job.row_offset(corner) + c * job.row_side.c,
                    {scratch.rows + c * plane_size, 0, channels, channels});
    }
    pack_lane_side(job.lane_side, block, job.lane_offset(corner), lanes);
    for (int64_t a = 0; a < wide; ++a) {
      const WeightTile tile = job.tile(group, 0, across.begin + a);
      float* const first = sums.at(0, a);
      float* sum = first;
      for (int64_t c = 0; c < planes; ++c) {
        for (int64_t u = 0; u < h.taps; ++u, sum += rows * kTileLanes) {
          const Range down = h.valid(u, block.row, block.rows);
          const PixelRuns runs = {down.end - down.begin, block.columns, 0, line / pitch, down.begin * w.block, w.block};
          const Unit* const from = scratch.rows + c * plane_size + (h.slot(u) + down.begin) * line;
          for (int64_t row = 0; row < rows; row += step) {
            const auto multiply = tile_kernel<Math>(min(step, rows - row), ceil_div(tile.lanes, kLanes));
            multiply(runs, from + row, pitch, lanes.first + a * lanes.step, sum + row * kTileLanes,
                     index > blocks.begin);
          }
        }
      }
      if (index + 1 < blocks.end) continue;
      if (job.planes) sort_taps(job.taps(), job.rows, first, scratch.lines);
      finished(tile, first);
    }
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
