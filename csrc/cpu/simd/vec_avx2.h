// vec.h for AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/simd/half.h"

namespace edgepop::cpu::EDGEPOP_ISA {

constexpr int kLanes = 8;
constexpr int kRegisters = 16;
using Vec = __m256;
using IntVec = __m256i;

static inline Vec zero() { return _mm256_setzero_ps(); }
static inline Vec broadcast(float a) { return _mm256_set1_ps(a); }
static inline IntVec broadcast_bits(uint32_t a) { return _mm256_set1_epi32(static_cast<int32_t>(a)); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vec square_root(Vec a) { return _mm256_sqrt_ps(a); }

static inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline __m128i load_words(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
static inline void store_words(void* p, __m128i a) { _mm_storeu_si128(static_cast<__m128i*>(p), a); }

static inline Vec widen(__m128i a, bf16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
}
static inline Vec widen(__m128i a, f16) { return _mm256_cvtph_ps(a); }
static inline __m128i narrow(Vec a, f16) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline __m128i narrow(Vec a, bf16) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
static inline void stream(float* p, Vec a) { _mm256_stream_ps(p, a); }
static inline void finish_streams() { _mm_sfence(); }
static inline Vec load(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
static inline void store(float* p, Vec a, int64_t n) { _mm256_maskstore_ps(p, first(n), a); }
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
  Half whole[8] = {};
  std::memcpy(whole, p, static_cast<size_t>(n) * sizeof(Half));
  return load(whole);
}
template <class Half>
static inline void store(Half* p, Vec a, int64_t n) {
  Half whole[8];
  store(whole, a);
  std::memcpy(p, whole, static_cast<size_t>(n) * sizeof(Half));
}

static inline IntVec bits_of(Vec a) { return _mm256_castps_si256(a); }
static inline IntVec abs_image(IntVec bits) { return _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)); }
static inline IntVec raw_image(IntVec bits) {
  const __m256i flip = _mm256_or_si256(_mm256_srai_epi32(bits, 31), _mm256_set1_epi32(INT32_MIN));
  return _mm256_min_epu32(_mm256_xor_si256(bits, flip), _mm256_set1_epi32(-2));
}
static inline Vec at_most(IntVec key, IntVec bound) {
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_min_epu32(key, bound), key));
}
static inline Vec keep_if_below(Vec a, IntVec key, IntVec bound) { return _mm256_and_ps(a, at_most(key, bound)); }
static inline uint32_t lanes_below(IntVec key, IntVec bound) {
  return static_cast<uint32_t>(_mm256_movemask_ps(at_most(key, bound)));
}
static inline IntVec subtract(IntVec a, IntVec b) { return _mm256_sub_epi32(a, b); }

static inline Vec keep_bits(Vec a, uint32_t bits) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), bit);
  return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit)));
}

static inline IntVec twice(IntVec a) { return _mm256_add_epi32(a, a); }
static inline IntVec raise_lanes(IntVec a, int first) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_sllv_epi32(a, _mm256_sub_epi32(_mm256_set1_epi32(31 - first), lanes));
}
static inline Vec signed_lanes(IntVec kept, IntVec negative, Vec c) {
  const Vec sign = _mm256_and_ps(_mm256_castsi256_ps(negative), _mm256_set1_ps(-0.0f));
  return _mm256_and_ps(_mm256_castsi256_ps(_mm256_srai_epi32(kept, 31)), _mm256_xor_ps(sign, c));
}

// Lane i is a's lane lanes[i].
static inline Vec permute(Vec a, IntVec lanes) { return _mm256_permutevar8x32_ps(a, lanes); }

// rows[i] lane j <-> rows[j] lane i.
static inline void transpose(Vec (&rows)[8]) {
  Vec t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m256d lo = _mm256_castps_pd(t[i + j]), hi = _mm256_castps_pd(t[i + j + 2]);
      rows[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(lo, hi));
      rows[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(lo, hi));
    }
  }
  for (int j = 0; j < 4; ++j) {
    const Vec lo = rows[j], hi = rows[j + 4];
    rows[j] = _mm256_permute2f128_ps(lo, hi, 0x20);
    rows[j + 4] = _mm256_permute2f128_ps(lo, hi, 0x31);
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
