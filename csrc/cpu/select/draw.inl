// Bernoulli masks, 64 weights at a time: one word of packed bits.
#pragma once

#include "common/rng.h"

namespace edgepop::cpu::EDGEPOP_ISA::select {

// The word of the 64 scores at `s`, the mask's word number `index`. 16 blocks of Philox feed 4 runs of 16 scores, so
// that neighbouring lanes are neighbouring counters.
static inline uint64_t drawn_word(const float* s, int64_t index, uint64_t seed) {
  uint32_t random[64];
  for (int lane = 0; lane < 16; ++lane) {
    const PhiloxBlock block = philox(static_cast<uint64_t>(index * 16 + lane), seed);
    for (int run = 0; run < 4; ++run) random[16 * run + lane] = block.word[run];
  }
  uint8_t kept[64];
  for (int i = 0; i < 64; ++i) kept[i] = drawn(float_bits(s[i]), random[i]);
  uint64_t word = 0;
  for (int byte = 0; byte < 8; ++byte) {
    uint64_t eight;
    std::memcpy(&eight, kept + 8 * byte, 8);
    // The product's top byte gathers the lowest bit of each of the eight.
    word |= (eight * 0x0102040810204080u >> 56) << (8 * byte);
  }
  return word;
}

// Words [first, first + ceil(n / 64)) of the mask from n contiguous scores; bits past the n-th are zero.
static void draw(const float* scores, int64_t n, int64_t first, uint64_t seed, uint8_t* bits) {
  for (int64_t i = 0; i < n; i += 64) {
    const int64_t index = first + i / 64;
    uint64_t word;
    if (n - i >= 64) {
      word = drawn_word(scores + i, index, seed);
    } else {
      float padded[64] = {};
      std::memcpy(padded, scores + i, (n - i) * sizeof(float));
      word = drawn_word(padded, index, seed) & ((uint64_t{1} << (n - i)) - 1);
    }
    std::memcpy(bits + index * 8, &word, 8);
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::select
