// Packed bits as kernels read them: of a mask, of the scores' signs, of a weight that is nothing but signs.
#pragma once

#include <cstring>

#include "cpu/simd/vec.h"

namespace edgepop::cpu::EDGEPOP_ISA {

// The type of a weight of one magnitude (tensor.h), where others have float, bf16 or f16.
struct Signs {};
template <class T>
constexpr bool kIsSigns = false;
template <>
constexpr bool kIsSigns<Signs> = true;

static inline float magnitude_of(const Weight& w) {
  float c = 0.0f;
  if (w.data == nullptr) return c;  // of no elements
  with_type(w.dtype, [&](auto type) { c = to_float(*static_cast<const decltype(type)*>(w.data)); });
  return c;
}

static inline bool bit_at(const uint8_t* bits, int64_t index) { return bits[index >> 3] >> (index & 7) & 1; }

// The bits from `index` on: 25 at least, of a vector's lanes and more. Packed bits have a word of room behind them.
static inline uint32_t load_bits_at(const uint8_t* bits, int64_t index) {
  uint32_t word;
  std::memcpy(&word, bits + (index >> 3), sizeof word);
  return word >> (index & 7);
}

static inline uint32_t load_32_bits_at(const uint8_t* bits, int64_t index) {
  uint64_t word;
  std::memcpy(&word, bits + (index >> 3), sizeof word);
  return static_cast<uint32_t>(word >> (index & 7));
}

static inline uint32_t low_bits(int64_t n) { return n < 32 ? (1u << n) - 1u : ~0u; }

static inline IntVec load_bits(const uint32_t (&words)[kLanes]) {
  IntVec a;
  std::memcpy(&a, words, sizeof a);
  return a;
}

// a, negated where bit i is set for lane i.
static inline Vec negate_bits(Vec a, uint32_t bits) {
  return (Vec)((IntVec)a ^ (IntVec)keep_bits((Vec)broadcast_bits(0x80000000u), bits));
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
