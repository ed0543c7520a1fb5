// vec.h in GCC / clang vector extensions: four lanes, what every 64-bit CPU has.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/half.h"

namespace edgepop::cpu::EDGEPOP_ISA {

constexpr int kLanes = 4;
constexpr int kRegisters = 16;
typedef float Vec __attribute__((vector_size(16)));
typedef uint32_t IntVec __attribute__((vector_size(16)));

static inline Vec zero() { return Vec{}; }
static inline Vec broadcast(float a) { return Vec{a, a, a, a}; }
static inline IntVec broadcast_bits(uint32_t a) { return IntVec{a, a, a, a}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
static inline Vec square_root(Vec a) {
  return Vec{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]), __builtin_sqrtf(a[3])};
}

static inline Vec load(const float* p) {
  Vec a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
static inline void store(float* p, Vec a) { std::memcpy(p, &a, sizeof a); }
static inline void stream(float* p, Vec a) { store(p, a); }
static inline void finish_streams() {}
template <class Half>
static inline Vec load(const Half* p) {
  return Vec{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
template <class Half>
static inline void store(Half* p, Vec a) {
  for (int i = 0; i < 4; ++i) from_float(a[i], p + i);
}
template <class T>
static inline Vec load(const T* p, int64_t n) {
  Vec a{};
  for (int64_t i = 0; i < n; ++i) a[i] = to_float(p[i]);
  return a;
}
template <class T>
static inline void store(T* p, Vec a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) from_float(a[i], p + i);
}

static inline IntVec bits_of(Vec a) { return (IntVec)a; }
static inline IntVec abs_image(IntVec bits) { return bits & 0x7fffffffu; }
static inline IntVec raw_image(IntVec bits) {
  const IntVec negative = (IntVec)(bits > 0x7fffffffu);
  const IntVec image = bits ^ (negative | 0x80000000u);
  const IntVec largest = (IntVec)(image == 0xffffffffu);
  return image + largest;  // largest is -1 where set
}
static inline Vec keep_if_below(Vec a, IntVec key, IntVec bound) { return (Vec)((IntVec)a & (IntVec)(key <= bound)); }
static inline uint32_t lanes_below(IntVec key, IntVec bound) {
  const IntVec bit = (IntVec)(key <= bound) & IntVec{1u, 2u, 4u, 8u};
  return bit[0] | bit[1] | bit[2] | bit[3];
}
static inline IntVec subtract(IntVec a, IntVec b) { return a - b; }
static inline Vec keep_bits(Vec a, uint32_t bits) {
  const IntVec bit = {1u, 2u, 4u, 8u};
  return (Vec)((IntVec)a & (IntVec)((bit & bits) == bit));
}

static inline IntVec twice(IntVec a) { return a + a; }
static inline IntVec raise_lanes(IntVec a, int first) {
  const uint32_t up = 31 - static_cast<uint32_t>(first);
  return a << IntVec{up, up - 1, up - 2, up - 3};
}
static inline Vec signed_lanes(IntVec kept, IntVec negative, Vec c) {
  return (Vec)((IntVec)(kept > 0x7fffffffu) & ((IntVec)c ^ (negative & 0x80000000u)));
}

// Lane i is a's lane lanes[i].
static inline Vec permute(Vec a, IntVec lanes) { return Vec{a[lanes[0]], a[lanes[1]], a[lanes[2]], a[lanes[3]]}; }

// rows[i] lane j <-> rows[j] lane i.
static inline void transpose(Vec (&rows)[4]) {
  const Vec a = rows[0], b = rows[1], c = rows[2], d = rows[3];
  for (int j = 0; j < 4; ++j) rows[j] = Vec{a[j], b[j], c[j], d[j]};
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
