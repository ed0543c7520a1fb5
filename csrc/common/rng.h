// Random masks: a counter generator and a comparison with the sigmoid, in integers. Every backend computes these same
// numbers, bit for bit; the reference (reference.py) is their specification.
#pragma once

#include <cstdint>

#include "common/keys.h"

namespace edgepop {

struct PhiloxBlock {
  uint32_t word[4];
};

EDGEPOP_HOST_DEVICE static inline uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

// Philox4x32-10 (Salmon et al. 2011) of the counter (block, 0) under the key `seed`.
EDGEPOP_HOST_DEVICE static inline PhiloxBlock philox(uint64_t block, uint64_t seed) {
  uint32_t a = static_cast<uint32_t>(block), b = static_cast<uint32_t>(block >> 32), c = 0, d = 0;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#if !defined(__CUDACC__)  // nvcc unrolls by itself
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint32_t first = multiply_high(0xd2511f53u, a), second = multiply_high(0xcd9e8d57u, c);
    const uint32_t next_b = 0xcd9e8d57u * c, next_d = 0xd2511f53u * a;
    a = second ^ b ^ key0;
    c = first ^ d ^ key1;
    b = next_b;
    d = next_d;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return {{a, b, c, d}};
}

// exp(-|s|) in units of 2^-31, off by less than 2^-25; 0 for |s| of 22 and above, and for NaN.
EDGEPOP_HOST_DEVICE static inline uint32_t exp_minus(uint32_t score_bits) {
  const uint32_t m = magnitude(score_bits);
  const uint32_t limit = m < 0x41b00000u ? m : 0x41b00000u;  // 22
  float t;
  std::memcpy(&t, &limit, sizeof t);
  const uint32_t fixed = static_cast<uint32_t>(static_cast<int32_t>(t * 67108864.0f));  // 2^26: exact
  const uint32_t exponent = multiply_high(fixed, 3098164009u);  // |s| / ln 2 in units of 2^-25; the factor is 2^31 / ln 2
  const uint32_t f = exponent << 7;                             // its fraction, in units of 2^-32
  uint32_t power = 236086u;                                     // 2^-f by Horner's rule, off by less than 2^-29
  power = 2743352u - multiply_high(power, f);
  power = 20577648u - multiply_high(power, f);
  power = 119168801u - multiply_high(power, f);
  power = 515878639u - multiply_high(power, f);
  power = 1488522040u - multiply_high(power, f);
  power = 0x80000000u - multiply_high(power, f);
  return power >> (exponent >> 25);
}

// Whether u < sigmoid(s) for u = (random / 2^8 + 1/2) / 2^24, as u / (1 - u) < exp(s); never for NaN.
EDGEPOP_HOST_DEVICE static inline bool drawn(uint32_t score_bits, uint32_t random) {
  const uint32_t u = 2 * (random >> 8) + 1, rest = (1u << 25) - u;
  const uint32_t odds = exp_minus(score_bits), one = 1u << 31;
  const bool negative = score_bits >> 31;
  const uint64_t left = static_cast<uint64_t>(u) * (negative ? one : odds);
  const uint64_t right = static_cast<uint64_t>(rest) * (negative ? odds : one);
  return left < right && magnitude(score_bits) <= kInfBits;
}

}  // namespace edgepop
