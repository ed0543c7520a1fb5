// The tile instructions of AMX-BF16 in C++, after the pseudocode in Intel's Software Developer's Manual: eight tiles of
// up to 16 rows of 64 bytes; TDPBF16PS sums even and odd channels apart, by fused multiply-adds that round to nearest
// and take and leave denormals as zeros, and adds both to the accumulator. What the processor answers with an exception
// ends the process.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace amx_emulation {

struct Tile {
  int rows, row_bytes;
  uint8_t data[16][64];
};

inline thread_local Tile tiles[8];

inline Tile& configured(int t) {
  if (tiles[t].rows == 0) std::abort();
  return tiles[t];
}

inline void release() { std::memset(tiles, 0, sizeof tiles); }

inline void configure(const void* config) {
  const uint8_t* bytes = static_cast<const uint8_t*>(config);
  release();
  if (bytes[0] != 1) std::abort();
  for (int t = 0; t < 8; ++t) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * t, 2);
    tiles[t].rows = bytes[48 + t];
    tiles[t].row_bytes = row_bytes;
    if (tiles[t].rows > 16 || row_bytes > 64 || (tiles[t].rows == 0) != (row_bytes == 0)) std::abort();
  }
}

inline void zero(int t) { std::memset(configured(t).data, 0, sizeof tiles[t].data); }

inline void load(int t, const void* from, int64_t step) {
  zero(t);
  for (int r = 0; r < tiles[t].rows; ++r) {
    std::memcpy(tiles[t].data[r], static_cast<const char*>(from) + r * step, static_cast<size_t>(tiles[t].row_bytes));
  }
}

inline void stored(int t, void* to, int64_t step) {
  for (int r = 0; r < configured(t).rows; ++r) {
    std::memcpy(static_cast<char*>(to) + r * step, tiles[t].data[r], static_cast<size_t>(tiles[t].row_bytes));
  }
}

// The two halves of a tile's pairs, in float32.
inline void widen(const Tile& tile, float (&even)[16][16], float (&odd)[16][16]) {
  uint32_t pairs[16][16];
  std::memcpy(pairs, tile.data, sizeof pairs);
  for (int r = 0; r < 16; ++r) {
    for (int i = 0; i < 16; ++i) {
      const uint32_t low = pairs[r][i] << 16, high = pairs[r][i] & 0xffff0000u;
      std::memcpy(&even[r][i], &low, 4);
      std::memcpy(&odd[r][i], &high, 4);
    }
  }
}

inline void dpbf16ps(int c, int a, int b) {
  Tile &sum = configured(c), &left = configured(a), &right = configured(b);
  if (left.rows != sum.rows || right.row_bytes != sum.row_bytes || left.row_bytes != 4 * right.rows) std::abort();
  float left_even[16][16], left_odd[16][16], right_even[16][16], right_odd[16][16];
  widen(left, left_even, left_odd);
  widen(right, right_even, right_odd);
  const unsigned caller = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // round to nearest, denormals are zeros, no exceptions
  for (int m = 0; m < sum.rows; ++m) {
    float even[16] = {}, odd[16] = {}, total[16];
    for (int k = 0; k < right.rows; ++k) {
      for (int n = 0; n < 16; ++n) even[n] = std::fma(left_even[m][k], right_even[k][n], even[n]);
      for (int n = 0; n < 16; ++n) odd[n] = std::fma(left_odd[m][k], right_odd[k][n], odd[n]);
    }
    std::memcpy(total, sum.data[m], 64);
    for (int n = 0; n < 16; ++n) total[n] += even[n] + odd[n];
    std::memcpy(sum.data[m], total, 64);
  }
  _mm_setcsr(caller);
}

}  // namespace amx_emulation

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_emulation::configure
#define _tile_release amx_emulation::release
#define _tile_zero amx_emulation::zero
#define _tile_loadd amx_emulation::load
#define _tile_stored amx_emulation::stored
#define _tile_dpbf16ps amx_emulation::dpbf16ps
