// vec.h for AVX-512 (F, BW, DQ, VL), with or without BF16.
#pragma once

// GCC before 13 reports its own _mm512_undefined_ps (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)  // which does not know it
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>
#include <cstring>

#include "cpu/simd/half.h"

namespace edgepop::cpu::EDGEPOP_ISA {

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
using Vec = __m512;
using IntVec = __m512i;

static inline Vec zero() { return _mm512_setzero_ps(); }
static inline Vec broadcast(float a) { return _mm512_set1_ps(a); }
static inline IntVec broadcast_bits(uint32_t a) { return _mm512_set1_epi32(static_cast<int32_t>(a)); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec square_root(Vec a) { return _mm512_sqrt_ps(a); }

static inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
static inline __m256i load_words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline void store_words(void* p, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }

static inline Vec widen(__m256i a, bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
}
static inline Vec widen(__m256i a, f16) { return _mm512_cvtph_ps(a); }
static inline __m256i narrow(Vec a, f16) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline __m256i narrow(Vec a, bf16) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(a);
#else
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i kept = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), quiet);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
#endif
}

static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
static inline void stream(float* p, Vec a) { _mm512_stream_ps(p, a); }
static inline void finish_streams() { _mm_sfence(); }
static inline Vec load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
static inline void store(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a); }
template <class Half>
static inline Vec load(const Half* p) {
  return widen(load_words(p), Half{});
}
template <class Half>
static inline void store(Half* p, Vec a) {
  store_words(p, narrow(a, Half{}));
}
template <class Half>
static inline Vec load(const Half* p, int64_t n) {
  return widen(_mm256_maskz_loadu_epi16(first(n), p), Half{});
}
template <class Half>
static inline void store(Half* p, Vec a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), narrow(a, Half{}));
}

static inline IntVec bits_of(Vec a) { return _mm512_castps_si512(a); }

static inline IntVec abs_image(IntVec bits) { return _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)); }
static inline IntVec raw_image(IntVec bits) {
  const __m512i flip = _mm512_or_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(INT32_MIN));
  return _mm512_min_epu32(_mm512_xor_si512(bits, flip), _mm512_set1_epi32(-2));
}
static inline Vec keep_if_below(Vec a, IntVec key, IntVec bound) {
  return _mm512_maskz_mov_ps(_mm512_cmple_epu32_mask(key, bound), a);
}
static inline uint32_t lanes_below(IntVec key, IntVec bound) { return _mm512_cmple_epu32_mask(key, bound); }
static inline IntVec subtract(IntVec a, IntVec b) { return _mm512_sub_epi32(a, b); }

static inline Vec keep_bits(Vec a, uint32_t bits) { return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), a); }

static inline IntVec twice(IntVec a) { return _mm512_add_epi32(a, a); }
static inline IntVec raise_lanes(IntVec a, int first) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_sllv_epi32(a, _mm512_sub_epi32(_mm512_set1_epi32(31 - first), lanes));
}
static inline Vec signed_lanes(IntVec kept, IntVec negative, Vec c) {
  constexpr int kNegated = 0x6a;  // (negative & sign) ^ c
  const __m512i sign = _mm512_set1_epi32(INT32_MIN), bits = _mm512_castps_si512(c);
  const __mmask16 lanes = _mm512_movepi32_mask(kept);
  return _mm512_castsi512_ps(_mm512_maskz_ternarylogic_epi32(lanes, negative, sign, bits, kNegated));
}

// Lane i is a's lane lanes[i].
static inline Vec permute(Vec a, IntVec lanes) { return _mm512_permutexvar_ps(lanes, a); }

// rows[i] lane j <-> rows[j] lane i.
static inline void transpose(Vec (&rows)[16]) {
  Vec t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d lo = _mm512_castps_pd(t[i + j]), hi = _mm512_castps_pd(t[i + j + 2]);
      rows[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
      rows[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
    }
  }
  // rows[4b + j] holds columns j, j+4, j+8, j+12 of source rows 4b .. 4b+3, one per 128-bit quarter.
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm512_shuffle_f32x4(rows[j], rows[j + 4], 0x88);
    t[j + 4] = _mm512_shuffle_f32x4(rows[j], rows[j + 4], 0xdd);
    t[j + 8] = _mm512_shuffle_f32x4(rows[j + 8], rows[j + 12], 0x88);
    t[j + 12] = _mm512_shuffle_f32x4(rows[j + 8], rows[j + 12], 0xdd);
  }
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
    rows[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
    rows[j + 4] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0x88);
    rows[j + 12] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0xdd);
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
