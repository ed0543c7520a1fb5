// AMX tiles: eight of up to 16 rows of 64 bytes, 16 float32 or 16 pairs of bfloat16. A product of tiles adds rows of pairs
// times columns of pairs to float32 sums.
//
// A test that puts C++ in place of the instructions proves the arithmetic of what is made of them where a machine has
// none.
#pragma once

#include <cstdint>

#include "cpu/simd/vec.h"

#if defined(EDGEPOP_AMX_EMULATION)
#include EDGEPOP_AMX_EMULATION
#endif

namespace edgepop::cpu::EDGEPOP_ISA {

constexpr int kTileSide = 16;  // rows of a tile, and 32-bit elements of a row

// Between stores and the loads of a tile or of its configuration, both ways: GCC's intrinsics do not say that they read
// memory, so it may move such stores past them, or leave them out (GCC 12 does, in smaller code).
static inline void settle_memory() { __asm__ volatile("" ::: "memory"); }

struct TileShape {
  int rows, elements;  // of 32 bits, a row
};

// Gives all tiles shapes, and zeroes them. A tile without rows or elements may not be touched.
static inline void configure_tiles(const TileShape (&shapes)[8]) {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  static_assert(sizeof config == 64, "the layout that ldtilecfg reads");
  for (int i = 0; i < 8; ++i) {
    const bool there = shapes[i].rows > 0 && shapes[i].elements > 0;
    config.rows[i] = static_cast<uint8_t>(there ? shapes[i].rows : 0);
    config.row_bytes[i] = static_cast<uint16_t>(there ? 4 * shapes[i].elements : 0);
  }
  settle_memory();
  _tile_loadconfig(&config);
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
