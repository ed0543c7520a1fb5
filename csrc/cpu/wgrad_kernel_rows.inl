// The weight gradient of few input channels, as a first layer has them. A tile of 3 rows leaves half of the registers
// empty and passes over the lanes once per tap. Pixels packed without a gap make the taps of a kernel row neighbours:
// their channels together are the rows of one product, 9 for 3 channels and 3 taps, in 58 % of the time (128 x 3 x 32
// x 32 to 64 channels, Ice Lake). Where the stride is not 1, the taps of one class (wgrad_plan.h) are neighbours.
//
// Inputs left and right of the image are stored, as zeros. Sums are kept in the order [kernel row][class][tap][channel].
#include "wgrad_job.inl"

namespace edgepop::cpu::EDGEPOP_ISA {

// Calls run(u, first slot, taps) for each class of each kernel row.
template <class Run>
static void for_each_class(const Walk& walk, const Run& run) {
  for (int64_t u = 0; u < walk.h.taps; ++u) {
    for (int64_t c = 0; c < min(walk.w.taps, walk.w.period); ++c) {
      run(u, c * walk.w.span, ceil_div(walk.w.taps - c, walk.w.period));
    }
  }
}

// Neighbouring taps of a class must be neighbours once packed.
static bool has_kernel_rows(const Walk& walk) { return walk.w.taps > 1 && walk.w.shift == 1 && walk.unit_block == 1; }

// What plane_cost() is for one tap at a time, for all of them.
static int64_t kernel_rows_cost(const Walk& walk, int64_t in, int64_t out) {
  int64_t cost = 0;
  for_each_class(walk, [&](int64_t, int64_t, int64_t taps) { cost += plane_cost(taps * in, out); });
  return cost;
}

// To the order [tap][channel], by way of `spare`.
static void sort_taps(const Walk& walk, int64_t channels, float* sums, float* spare) {
  if (walk.w.period == 1) return;
  const int64_t tap = channels * kTileLanes;
  std::memcpy(spare, sums, static_cast<size_t>(walk.h.taps * walk.w.taps * tap * 4));
  for (int64_t u = 0; u < walk.h.taps; ++u) {
    for (int64_t c = 0; c < walk.w.period; ++c) {
      for (int64_t v = c; v < walk.w.taps; v += walk.w.period, spare += tap) {
        std::memcpy(sums + (u * walk.w.taps + v) * tap, spare, static_cast<size_t>(tap * 4));
      }
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
  const Axis &h = job.walk.h, &w = job.walk.w;
  const Tile corner = job.tile(group, 0, across.begin);
  const int64_t wide = across.end - across.begin, channels = job.rows;
  const Panels<Unit> lanes = {scratch.lanes, scratch.lane_panel, min(job.lanes - corner.lane, wide * kTileLanes),
                              kTileLanes};
  const Panels<Unit> rows = {scratch.rows, 0, channels, channels};
  for (int64_t index = blocks.begin; index < blocks.end; ++index) {
    const Block block = block_at(job.walk, index);
    std::memset(rows.first, 0, static_cast<size_t>(h.slots * w.slots * channels) * sizeof(Unit));
    pack_row_side(job.row_side, block, job.row_offset(corner), rows);
    pack_lane_side(job.lane_side, block, job.lane_offset(corner), lanes);
    for (int64_t a = 0; a < wide; ++a) {
      const Tile tile = job.tile(group, 0, across.begin + a);
      float* const first = sums.at(0, a);
      float* sum = first;
      for_each_class(job.walk, [&](int64_t u, int64_t slot, int64_t taps) {
        const Range down = h.valid(u, block.row, block.rows);
        const Runs runs = {down.end - down.begin, block.columns,
                           (h.slot(u) + down.begin) * w.slots + slot, w.slots, down.begin * w.block, w.block};
        const int64_t count = taps * channels, step = even_block(count, kTileRows);
        for (int64_t row = 0; row < count; row += step, sum += step * kTileLanes) {
          const int64_t height = min(step, count - row);
          tile_kernel<Math>(height, ceil_div(tile.lanes, kLanes))(runs, rows.first + row, channels,
                                                                  lanes.first + a * lanes.step, sum,
                                                                  index > blocks.begin);
          if (height < step) sum -= (step - height) * kTileLanes;
        }
      });
      if (index + 1 < blocks.end) continue;
      sort_taps(job.walk, channels, first, scratch.lines);
      finished(tile, first);
    }
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
