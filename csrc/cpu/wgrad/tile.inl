// Micro-kernels of the weight gradient: a register tile of dW_eff summed over the runs of one block and one tap.
#pragma once

#include "cpu/simd/vec.h"
#include "cpu/wgrad/walk.inl"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// 24 of AVX-512's 32 registers hold the 6 x 64 tile and 4 a row of lanes; of 16 registers, 12 and 2 (AVX2: 6 x 16).
constexpr int kTileRows = 6;
constexpr int kTileVectors = kRegisters == 32 ? 4 : 2;
constexpr int kTileLanes = kTileVectors * kLanes;
// Tiles side by side in a panel of rows, which is stored in whole vectors: panels of one tile each, in stores that
// overlap and cross cache lines, cost a 1x1 convolution a tenth of its time (256 x 128 x 6272 pixels, Zen 5). 48 floats
// are 3 cache lines: odd, so that the positions of a block spread over all sets of the cache.
constexpr int kPanelTiles = 8;
constexpr int kPanelRows = kPanelTiles * kTileRows;
// On AMX tiles (tiled.inl) a tile has more rows, and a panel fewer tiles.
constexpr int kTiledRows = 16;
static_assert(kPanelRows % kTiledRows == 0, "a panel in whole tiles");

// How two packed operands multiply: float32 by float32, or bfloat16 pairs (of two images, one position) at once.
struct FloatMath {
  using Unit = float;
  using Lanes = Vec;
  static constexpr int64_t kImages = 1;
  static Vec load_lanes(const Unit* p) { return load(p); }
  static Vec load_lanes(const Unit* p, int64_t n) { return load(p, n); }
  static Vec spread(const Unit* p) { return broadcast(*p); }
  static Vec reorder(Vec a, IntVec lanes) { return permute(a, lanes); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};
struct PairMath {
  using Unit = uint32_t;
  using Lanes = IntVec;
  static constexpr int64_t kImages = 2;
  static IntVec load_lanes(const Unit* p) { return load_pairs(p); }
  static IntVec load_lanes(const Unit* p, int64_t n) { return load_pairs(p, n); }
  static IntVec spread(const Unit* p) { return broadcast_bits(*p); }
  static IntVec reorder(IntVec a, IntVec lanes) { return permute_pairs(a, lanes); }
  static Vec multiply_add(IntVec a, IntVec b, Vec c) { return dot(a, b, c); }
};

// `lines` runs of `count` positions; where the first starts in either panel and how far apart they are.
struct PixelRuns {
  int64_t lines, count;
  int64_t rows_at, rows_step;
  int64_t lanes_at, lanes_step;
};

// acc[r][l] (+)= sum over the runs of rows[k][r] * lanes[k][l]; positions lie row_pitch units and V vectors apart, rows
// of acc kTileLanes.
// The sum of a block starts from zero in registers and joins the earlier blocks' as one term: two-level summation.
template <class Math, int R, int V>
static void multiply_runs(const PixelRuns& runs, const typename Math::Unit* rows, int64_t row_pitch,
                          const typename Math::Unit* lanes, float* acc, bool add) {
  Vec sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = zero();
  }
  for (int64_t line = 0; line < runs.lines; ++line) {
    const typename Math::Unit* a = rows + (runs.rows_at + line * runs.rows_step) * row_pitch;
    const typename Math::Unit* b = lanes + (runs.lanes_at + line * runs.lanes_step) * (V * kLanes);
    for (int64_t k = 0; k < runs.count; ++k, a += row_pitch, b += V * kLanes) {
      typename Math::Lanes row[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) row[v] = Math::load_lanes(b + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename Math::Lanes factor = Math::spread(a + r);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = Math::multiply_add(factor, row[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* at = acc + r * kTileLanes + v * kLanes;
      store(at, add ? load(at) + sum[r][v] : sum[r][v]);
    }
  }
}

template <class Math>
using TileKernel = void (*)(const PixelRuns&, const typename Math::Unit*, int64_t, const typename Math::Unit*, float*,
                            bool);

template <class Math, int V>
static TileKernel<Math> tile_of_rows(int64_t rows) {
  static_assert(kTileRows == 6, "one case per height");
  switch (rows) {
    case 1: return multiply_runs<Math, 1, V>;
    case 2: return multiply_runs<Math, 2, V>;
    case 3: return multiply_runs<Math, 3, V>;
    case 4: return multiply_runs<Math, 4, V>;
    case 5: return multiply_runs<Math, 5, V>;
    default: return multiply_runs<Math, 6, V>;
  }
}

// The kernel for a tile of `rows` x (`vectors` * kLanes).
template <class Math>
static TileKernel<Math> tile_kernel(int64_t rows, int64_t vectors) {
  static_assert(kTileVectors == 2 || kTileVectors == 4, "one case per width");
  switch (vectors) {
    case 1: return tile_of_rows<Math, 1>(rows);
    case 2: return tile_of_rows<Math, 2>(rows);
    case 3: return tile_of_rows<Math, min(3, kTileVectors)>(rows);
    default: return tile_of_rows<Math, kTileVectors>(rows);
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
