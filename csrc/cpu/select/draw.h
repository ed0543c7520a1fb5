// Bernoulli masks of a layer: each weight is kept with probability sigmoid(score), one bit each.
#pragma once

#include <cstdint>

namespace edgepop::cpu {

// scores: float32 of four dimensions, any strides. bits: packed in logical order, bit i of byte i / 8 at position
// i % 8, ceil(numel / 64) * 8 + 8 bytes, written whole. The result depends on scores and seed alone.
void draw(const float* scores, const int64_t (&size)[4], const int64_t (&stride)[4], uint64_t seed, uint8_t* bits,
          int threads);

}  // namespace edgepop::cpu
