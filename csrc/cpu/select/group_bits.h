// The mask that keeps the best of each group of a layer's weights: N:M.
#pragma once

#include <cstdint>

#include "common/keys.h"

namespace edgepop::cpu {

constexpr int64_t kLargestGroup = 64;

// Groups of `size` scores, 1 to kLargestGroup, of which `kept` are kept, the lower index first where scores tie. Those of
// a group lie `apart` from each other in logical order, and size * apart scores in a row are `apart` groups.
struct Groups {
  int64_t size, kept, apart;
};

// scores: float32 of four dimensions, any strides, a multiple of size * apart of them. bits: packed in logical order, bit
// i of byte i / 8 at position i % 8, ceil(numel / 64) * 8 + 8 bytes, written whole.
void group_bits(const float* scores, const int64_t (&size)[4], const int64_t (&stride)[4], Of of, const Groups& groups,
                uint8_t* bits, int threads);

}  // namespace edgepop::cpu
