// The weight gradient's sums on AMX tiles. Sums are tiles 0 to 3, side by side; rows go through tile 4 and lanes through
// 6, 16 positions at a time, and what a run has beyond through 5 and 7, which are as short as it is: nothing outside a
// run is read as one of its positions.
#pragma once

#include "cpu/simd/amx.h"
#include "cpu/wgrad/kernels.h"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// One step of a run, its positions in the tiles `row` and `lane`, which the instructions want as literals.
#define EDGEPOP_MULTIPLY_POSITIONS(V, row, lane, r, a, b)                                          \
  do {                                                                                             \
    _tile_loadd(row, a, 4 * r.row_pitch);                                                          \
    _tile_loadd(lane, b, 4 * r.lane_pitch);                                                        \
    _tile_dpbf16ps(0, row, lane);                                                                  \
    if constexpr (V > 1) {                                                                         \
      _tile_loadd(lane, b + kTileSide, 4 * r.lane_pitch);                                          \
      _tile_dpbf16ps(1, row, lane);                                                                \
    }                                                                                              \
    if constexpr (V > 2) {                                                                         \
      _tile_loadd(lane, b + 2 * kTileSide, 4 * r.lane_pitch);                                      \
      _tile_dpbf16ps(2, row, lane);                                                                \
    }                                                                                              \
    if constexpr (V > 3) {                                                                         \
      _tile_loadd(lane, b + 3 * kTileSide, 4 * r.lane_pitch);                                      \
      _tile_dpbf16ps(3, row, lane);                                                                \
    }                                                                                              \
  } while (false)

template <int V>
static void multiply_tiled(const TiledRuns& r) {
  constexpr int64_t kSumsStep = 4 * 64;  // bytes
  const int rest = static_cast<int>(r.count % kTileSide);
  configure_tiles({{16, 16}, {16, 16}, {16, 16}, {16, 16}, {16, 16}, {16, rest}, {16, 16}, {rest, 16}});
  for (int64_t tile = 0; tile < r.tiles; ++tile) {
    float* const sums = r.sums + tile * r.tile_step;
    if (r.add) {
      _tile_loadd(0, sums, kSumsStep);
      if constexpr (V > 1) _tile_loadd(1, sums + kTileSide, kSumsStep);
      if constexpr (V > 2) _tile_loadd(2, sums + 2 * kTileSide, kSumsStep);
      if constexpr (V > 3) _tile_loadd(3, sums + 3 * kTileSide, kSumsStep);
    } else {
      _tile_zero(0);
      if constexpr (V > 1) _tile_zero(1);
      if constexpr (V > 2) _tile_zero(2);
      if constexpr (V > 3) _tile_zero(3);
    }
    for (int64_t line = 0; line < r.lines; ++line) {
      const uint32_t* a = r.rows + tile * kTileSide * r.row_pitch + line * r.rows_step;
      const uint32_t* b = r.lanes + line * r.lanes_step * r.lane_pitch;
      for (int64_t k = r.count; k >= kTileSide; k -= kTileSide, a += kTileSide, b += kTileSide * r.lane_pitch) {
        EDGEPOP_MULTIPLY_POSITIONS(V, 4, 6, r, a, b);
      }
      if (rest > 0) EDGEPOP_MULTIPLY_POSITIONS(V, 5, 7, r, a, b);
    }
    _tile_stored(0, sums, kSumsStep);
    if constexpr (V > 1) _tile_stored(1, sums + kTileSide, kSumsStep);
    if constexpr (V > 2) _tile_stored(2, sums + 2 * kTileSide, kSumsStep);
    if constexpr (V > 3) _tile_stored(3, sums + 3 * kTileSide, kSumsStep);
  }
  settle_memory();
  _tile_release();
}

#undef EDGEPOP_MULTIPLY_POSITIONS

static inline void multiply_runs_tiled(const TiledRuns& r) {
  switch (r.vectors) {
    case 1: return multiply_tiled<1>(r);
    case 2: return multiply_tiled<2>(r);
    case 3: return multiply_tiled<3>(r);
    default: return multiply_tiled<4>(r);
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
