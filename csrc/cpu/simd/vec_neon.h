// vec.h for the vectors of 64-bit ARM, which every such processor has.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "cpu/simd/half.h"

namespace edgepop::cpu::EDGEPOP_ISA {

constexpr int kLanes = 4;
constexpr int kRegisters = 32;
using Vec = float32x4_t;
using IntVec = uint32x4_t;

static inline Vec zero() { return vdupq_n_f32(0.0f); }
static inline Vec broadcast(float a) { return vdupq_n_f32(a); }
static inline IntVec broadcast_bits(uint32_t a) { return vdupq_n_u32(a); }
static inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
static inline Vec square_root(Vec a) { return vsqrtq_f32(a); }
static inline IntVec bits_of(Vec a) { return vreinterpretq_u32_f32(a); }

static inline Vec widen(uint16x4_t a, bf16) { return vreinterpretq_f32_u32(vshll_n_u16(a, 16)); }
static inline Vec widen(uint16x4_t a, f16) { return vcvt_f32_f16(vreinterpret_f16_u16(a)); }
static inline uint16x4_t narrow(Vec a, f16) { return vreinterpret_u16_f16(vcvt_f16_f32(a)); }
static inline uint16x4_t narrow(Vec a, bf16) {
  const IntVec bits = bits_of(a), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const IntVec rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const IntVec quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16);
}

static inline Vec load(const float* p) { return vld1q_f32(p); }
static inline void store(float* p, Vec a) { vst1q_f32(p, a); }
static inline void stream(float* p, Vec a) { store(p, a); }
static inline void finish_streams() {}
static inline Vec load(const float* p, int64_t n) {
  float whole[4] = {};
  std::memcpy(whole, p, static_cast<size_t>(n) * sizeof(float));
  return vld1q_f32(whole);
}
static inline void store(float* p, Vec a, int64_t n) {
  float whole[4];
  vst1q_f32(whole, a);
  std::memcpy(p, whole, static_cast<size_t>(n) * sizeof(float));
}
template <class Half>
static inline Vec load(const Half* p) {
  return widen(vld1_u16(&p->bits), Half{});
}
template <class Half>
static inline void store(Half* p, Vec a) {
  vst1_u16(&p->bits, narrow(a, Half{}));
}
template <class Half>
static inline Vec load(const Half* p, int64_t n) {
  Half whole[4] = {};
  std::memcpy(whole, p, static_cast<size_t>(n) * sizeof(Half));
  return load(whole);
}
template <class Half>
static inline void store(Half* p, Vec a, int64_t n) {
  Half whole[4];
  store(whole, a);
  std::memcpy(p, whole, static_cast<size_t>(n) * sizeof(Half));
}

static inline IntVec abs_image(IntVec bits) { return vandq_u32(bits, vdupq_n_u32(0x7fffffffu)); }
static inline IntVec raw_image(IntVec bits) {
  const IntVec negative = vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(bits), 31));
  return vminq_u32(veorq_u32(bits, vorrq_u32(negative, vdupq_n_u32(0x80000000u))), vdupq_n_u32(0xfffffffeu));
}
static inline IntVec lane_bits() { return vshlq_u32(vdupq_n_u32(1), int32x4_t{0, 1, 2, 3}); }
static inline Vec keep_if_below(Vec a, IntVec key, IntVec bound) {
  return vreinterpretq_f32_u32(vandq_u32(bits_of(a), vcleq_u32(key, bound)));
}
static inline uint32_t lanes_below(IntVec key, IntVec bound) {
  return vaddvq_u32(vandq_u32(vcleq_u32(key, bound), lane_bits()));
}
static inline IntVec subtract(IntVec a, IntVec b) { return vsubq_u32(a, b); }
static inline Vec keep_bits(Vec a, uint32_t bits) {
  return vreinterpretq_f32_u32(vandq_u32(bits_of(a), vtstq_u32(vdupq_n_u32(bits), lane_bits())));
}

static inline IntVec twice(IntVec a) { return vaddq_u32(a, a); }
static inline IntVec raise_lanes(IntVec a, int first) {
  return vshlq_u32(a, vsubq_s32(vdupq_n_s32(31 - first), int32x4_t{0, 1, 2, 3}));
}
static inline Vec signed_lanes(IntVec kept, IntVec negative, Vec c) {
  const IntVec there = vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(kept), 31));
  const IntVec sign = vandq_u32(negative, vdupq_n_u32(0x80000000u));
  return vreinterpretq_f32_u32(vandq_u32(there, veorq_u32(bits_of(c), sign)));
}

// Lane i is a's lane lanes[i].
static inline Vec permute(Vec a, IntVec lanes) {
  const IntVec bytes = vmlaq_u32(vdupq_n_u32(0x03020100u), lanes, vdupq_n_u32(0x04040404u));
  return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(a), vreinterpretq_u8_u32(bytes)));
}

// rows[i] lane j <-> rows[j] lane i.
static inline void transpose(Vec (&rows)[4]) {
  const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(rows[0], rows[1]));
  const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(rows[0], rows[1]));
  const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(rows[2], rows[3]));
  const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(rows[2], rows[3]));
  rows[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
  rows[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
  rows[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
  rows[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
