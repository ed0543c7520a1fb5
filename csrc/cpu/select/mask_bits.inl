// The mask of a cut, 64 weights at a time: one word of packed bits.
#pragma once

#include "cpu/simd/vec.h"

namespace edgepop::cpu::EDGEPOP_ISA::select {

template <Of of>
static inline uint64_t kept_word(const float* s, const IntervalVec& kept) {
  uint64_t word = 0;
  for (int i = 0; i < 64; i += kLanes) word |= uint64_t{kept_lanes<of>(load(s + i), kept)} << i;
  return word;
}

template <Of of>
static void mask_words(const float* scores, int64_t n, const Cut& cut, uint8_t* bits) {
  const IntervalVec early = broadcast(up_to(of, cut)), late = broadcast(after(of, cut));
  for (int64_t i = 0; i < n; i += 64) {
    float padded[64] = {};
    const float* s = scores + i;
    if (n - i < 64) {
      std::memcpy(padded, s, (n - i) * sizeof(float));
      s = padded;
    }
    const int64_t tied = cut.index + 1 - i;  // so many of the word's scores are kept where they equal the cut
    uint64_t word = kept_word<of>(s, tied > 0 ? early : late);
    if (tied > 0 && tied < 64) {
      const uint64_t first = (uint64_t{1} << tied) - 1;
      word = (word & first) | (kept_word<of>(s, late) & ~first);
    }
    if (n - i < 64) word &= (uint64_t{1} << (n - i)) - 1;
    std::memcpy(bits + i / 8, &word, 8);
  }
}

// Words of the mask from n contiguous scores; cut.index counts from the first of them. Bits past the n-th are zero.
static void mask_bits(const float* scores, int64_t n, Of of, const Cut& cut, uint8_t* bits) {
  if (of == Of::abs) {
    mask_words<Of::abs>(scores, n, cut, bits);
  } else {
    mask_words<Of::raw>(scores, n, cut, bits);
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::select
