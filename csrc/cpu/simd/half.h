// The two 16-bit formats, one value at a time. Rounding is to nearest even; a NaN stays a (quiet) NaN.
// Included by kernel sources only (see dispatch/sets.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "common/keys.h"
#include "common/tensor.h"

namespace edgepop::cpu::EDGEPOP_ISA {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

static inline float float_of(uint32_t bits) {
  float a;
  std::memcpy(&a, &bits, sizeof a);
  return a;
}

static inline float to_float(float a) { return a; }
static inline float to_float(bf16 a) { return float_of(static_cast<uint32_t>(a.bits) << 16); }
static inline float to_float(f16 a) {
  const uint32_t sign = (a.bits & 0x8000u) << 16, rest = a.bits & 0x7fffu;
  if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x400u) return float_of(sign | ((rest << 13) + (112u << 23)));
  const float denormal = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -denormal : denormal;
}

static inline void from_float(float a, float* out) { *out = a; }
static inline void from_float(float a, bf16* out) {
  const uint32_t bits = float_bits(a);
  const uint32_t rounded = magnitude(bits) > kInfBits ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
  out->bits = static_cast<uint16_t>(rounded >> 16);
}
static inline void from_float(float a, f16* out) {
  const uint32_t bits = float_bits(a), sign = bits >> 16 & 0x8000u, m = magnitude(bits);
  uint32_t rest;
  if (m > kInfBits) {
    rest = 0x7e00u | (m >> 13 & 0x3ffu);
  } else if (m >= 0x477ff000u) {  // 65520 and above round to infinity
    rest = 0x7c00u;
  } else if (m >= 0x38800000u) {  // 2^-14, the smallest normal
    rest = (m - (112u << 23) + 0xfffu + (m >> 13 & 1u)) >> 13;
  } else {
    rest = float_bits(float_of(m) + 0.5f) - 0x3f000000u;  // float32's own rounding at 2^-24
  }
  out->bits = static_cast<uint16_t>(sign | rest);
}

// Calls run(T{}) with the type that `dtype` names.
template <class Run>
static inline void with_type(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::f32: return run(float{});
    case DType::bf16: return run(bf16{});
    case DType::f16: return run(f16{});
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
