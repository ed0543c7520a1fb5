// The micro-kernel on AMX tiles: bfloat16 pairs, up to 32 rows by a panel's columns, 32 of those at a time. Accumulators
// are tiles 0 to 3, two down and two across; A is in 4 and 5, B in 6 and 7: four products for four loads. Everything
// else of the amx instruction set's products is that of avx512bf16: this is all that its unit holds.
#pragma once

#include "cpu/forward/kernels.h"
#include "cpu/simd/amx.h"
#include "cpu/simd/vec.h"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

constexpr int64_t kTileDepth = 2 * kTileSide;  // bfloat16 of a row

// Rows as a tile is loaded from: an address, and the bytes from one row to the next.
struct TileRows {
  const void* data;
  int64_t step;
};
using TileStage = bf16[kTileSide][kTileDepth];

constexpr int64_t kUneven = INT64_MIN;
static inline int64_t spacing(const void* const* rows, int count) {
  if (count < 2) return 64;
  const int64_t step = static_cast<const char*>(rows[1]) - static_cast<const char*>(rows[0]);
  for (int i = 1; i < count; i += 8) {
    const __mmask8 there = static_cast<__mmask8>(count - i >= 8 ? 0xff : (1 << (count - i)) - 1);
    const __m512i apart =
        _mm512_sub_epi64(_mm512_maskz_loadu_epi64(there, rows + i), _mm512_maskz_loadu_epi64(there, rows + i - 1));
    if (_mm512_mask_cmpneq_epi64_mask(there, apart, _mm512_set1_epi64(step)) != 0) return kUneven;
  }
  return step;
}

// Channels [k, k + 32) of some rows. Rows that are not evenly spaced are copied; so are the last channels, padded with
// zeros, because what lies behind them may be a NaN.
static inline TileRows tile_rows(const void* const* rows, int count, int64_t step, int64_t k, int64_t left,
                                 TileStage& stage) {
  if (step != kUneven && left >= kTileDepth) return {static_cast<const bf16*>(rows[0]) + k, step};
  const __mmask32 there = left >= kTileDepth ? ~0u : (1u << left) - 1u;
  for (int i = 0; i < count; ++i) {
    const bf16* row = static_cast<const bf16*>(rows[i]) + k;
    _mm512_store_si512(stage[i], _mm512_maskz_loadu_epi16(there, row));
  }
  return {stage, 64};
}

// 16 pairs of channels of one vector of columns; fewer are padded with zeros.
static inline TileRows tile_columns(const bf16* panel, int64_t pairs, int64_t step, TileStage& stage) {
  if (pairs == kTileSide) return {panel, step * 2};
  for (int64_t i = 0; i < kTileSide; ++i) store_pairs(stage[i], i < pairs ? load_pairs(panel + i * step) : IntVec{});
  return {stage, 64};
}

struct Tiles {
  static constexpr int kRows = 2 * kTileSide;

  template <int N>
  static void run(const PanelProduct& b) {
    const int upper = b.rows < kTileSide ? b.rows : kTileSide, lower = b.rows - upper;
    configure_tiles({{upper, 16}, {upper, 16}, {lower, 16}, {lower, 16}, {upper, 16}, {lower, 16}, {16, 16}, {16, 16}});
    const int64_t c_step = spacing(reinterpret_cast<const void* const*>(b.c), b.rows);
    for (int n = 0; n + 1 < N; n += 2) multiply<N, true>(b, n, upper, lower, c_step);
    if (N % 2 != 0) multiply<N, false>(b, N - 1, upper, lower, c_step);
    _tile_release();
  }

 private:
  // Columns of vector n, and of the next one where `two`. Rows of results that lie evenly and take whole vectors are
  // loaded and stored as tiles: 32 rows by 64 columns of depth 256 in 0.63 of the time that they took by way of the
  // stack, vector by vector.
  template <int N, bool two>
  static void multiply(const PanelProduct& b, int n, int upper, int lower, int64_t c_step) {
    alignas(64) TileStage rows_stage[2], columns_stage[2];
    alignas(64) float sums[kRows][2 * kLanes];
    constexpr int64_t step = 2 * N * kLanes;  // elements of a panel row
    const bool straight = c_step != kUneven && (n + 1 + two < N || b.tail == kLanes);
    float* const above_c = straight ? b.c[0] + b.column + n * kLanes : sums[0];
    float* const below_c = straight && lower > 0 ? b.c[upper] + b.column + n * kLanes : sums[upper];
    const int64_t step_c = straight ? c_step : static_cast<int64_t>(sizeof sums[0]);
    if (straight) {
      const bool starts = b.start != nullptr;  // then all rows from the same
      const float *const above = starts ? b.start + n * kLanes : above_c, *const below = starts ? above : below_c;
      const int64_t from = starts ? 0 : c_step;
      settle_memory();
      _tile_loadd(0, above, from);
      if (two) _tile_loadd(1, above + kLanes, from);
      if (lower > 0) {
        _tile_loadd(2, below, from);
        if (two) _tile_loadd(3, below + kLanes, from);
      }
    } else {
      _tile_zero(0);
      if (two) _tile_zero(1);
      if (lower > 0) {
        _tile_zero(2);
        if (two) _tile_zero(3);
      }
    }
    const bf16* panel = static_cast<const bf16*>(b.panel) + 2 * n * kLanes;
    const void* const* rows = b.a;
    for (int64_t t = 0; t < b.taps; ++t, rows += b.rows) {
      const int64_t upper_step = spacing(rows, upper), lower_step = spacing(rows + upper, lower);
      for (int64_t k = 0; k < b.depth; k += kTileDepth) {
        const int64_t left = b.depth - k, pairs = left < kTileDepth ? (left + 1) / 2 : kTileSide;
        const TileRows above = tile_rows(rows, upper, upper_step, k, left, rows_stage[0]);
        const TileRows first = tile_columns(panel, pairs, step, columns_stage[0]);
        settle_memory();
        _tile_loadd(4, above.data, above.step);
        _tile_loadd(6, first.data, first.step);
        _tile_dpbf16ps(0, 4, 6);
        if (two) {
          const TileRows second = tile_columns(panel + 2 * kLanes, pairs, step, columns_stage[1]);
          settle_memory();
          _tile_loadd(7, second.data, second.step);
          _tile_dpbf16ps(1, 4, 7);
        }
        if (lower > 0) {
          const TileRows below = tile_rows(rows + upper, lower, lower_step, k, left, rows_stage[1]);
          settle_memory();
          _tile_loadd(5, below.data, below.step);
          _tile_dpbf16ps(2, 5, 6);
          if (two) _tile_dpbf16ps(3, 5, 7);
        }
        settle_memory();
        panel += pairs * step;
      }
    }
    _tile_stored(0, above_c, step_c);
    if (two) _tile_stored(1, above_c + kLanes, step_c);
    if (lower > 0) {
      _tile_stored(2, below_c, step_c);
      if (two) _tile_stored(3, below_c + kLanes, step_c);
    }
    settle_memory();
    if (straight) return;
    for (int v = n; v < n + 1 + two; ++v) finish(b, v, v + 1 == N ? b.tail : kLanes, sums[0] + (v - n) * kLanes);
  }

  // Adds the sums of vector v, rows 2 * kLanes apart, to what they start from.
  static void finish(const PanelProduct& b, int v, int64_t tail, const float* sums) {
    for (int m = 0; m < b.rows; ++m, sums += 2 * kLanes) {
      float* const c = b.c[m] + b.column + v * kLanes;
      if (tail == kLanes) {
        store(c, (b.start != nullptr ? load(b.start + v * kLanes) : load(c)) + load(sums));
      } else {
        store(c, (b.start != nullptr ? load(b.start + v * kLanes) : load(c, tail)) + load(sums), tail);
      }
    }
  }
};

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
