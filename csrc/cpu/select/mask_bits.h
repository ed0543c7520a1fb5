// The mask that a cut stands for, one bit for each weight.
#pragma once

#include <cstdint>

#include "common/keys.h"

namespace edgepop::cpu {

// scores: float32 of four dimensions, any strides. bits: packed in logical order, bit i of byte i / 8 at position
// i % 8, ceil(numel / 64) * 8 + 8 bytes, written whole.
void mask_bits(const float* scores, const int64_t (&size)[4], const int64_t (&stride)[4], Of of, const Cut& cut,
               uint8_t* bits, int threads);

}  // namespace edgepop::cpu
