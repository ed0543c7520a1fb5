// Vectors of float32 for the instruction set of this translation unit, and what every kernel does with them: loads
// and stores that convert from and to bfloat16 / float16, tails, the mask predicate, a register transpose.
//
//   set               lanes  registers  bfloat16 dot product
//   avx512bf16, amx   16     32         yes
//   avx512            16     32
//   avx2               8     16
//   neon               4     32
//   portable           4     16         (GCC / clang vector extensions)
//
// Included by kernel sources only (see dispatch/sets.h): every name lives in the namespace of the instruction set.
#pragma once

#include <cstdint>

#include "common/keys.h"
#include "cpu/simd/half.h"

#if defined(__AVX512F__)
#include "cpu/simd/vec_avx512.h"
#elif defined(__AVX2__)
#include "cpu/simd/vec_avx2.h"
#elif defined(EDGEPOP_NEON)  // which a compiler for ARM has in the portable unit too
#include "cpu/simd/vec_neon.h"
#else
#include "cpu/simd/vec_portable.h"
#endif

namespace edgepop::cpu::EDGEPOP_ISA {

// The first n lanes of a vector, n in [0, kLanes]: load(p, n) leaves the others zero, store(p, a, n) leaves memory
// behind them alone; neither touches an address past the n-th element.

// stream(p, a) stores past the caches; p is aligned to a vector. finish_streams() makes a thread's streams visible in
// order with its later stores.

// Numbers of one magnitude from two bits each: signed_lanes(kept, negative, c) is c where bit 31 of `kept` is set,
// negated where that of `negative` is, and +0 elsewhere. Bits get there by twice(a), which shifts the lanes left by
// one, or by raise_lanes(a, first), which brings the bit `first` + i of lane i.

// An element is kept iff image(score) - lo <= span (keys.h).
struct IntervalVec {
  IntVec lo, span;
};
static inline IntervalVec broadcast(Interval i) { return {broadcast_bits(i.lo), broadcast_bits(i.span)}; }

// a where the score is kept, +0 elsewhere whatever `a` is there (selection, not a product: inf and NaN do not leak).
template <Of of>
static inline Vec keep(Vec a, Vec scores, const IntervalVec& kept) {
  static_assert(of != Of::bits, "packed bits are applied by keep_bits");
  const IntVec image = of == Of::abs ? abs_image(bits_of(scores)) : raw_image(bits_of(scores));
  return keep_if_below(a, subtract(image, kept.lo), kept.span);
}

// Bit i for lane i: whether the score is kept.
template <Of of>
static inline uint32_t kept_lanes(Vec scores, const IntervalVec& kept) {
  const IntVec image = of == Of::abs ? abs_image(bits_of(scores)) : raw_image(bits_of(scores));
  return lanes_below(subtract(image, kept.lo), kept.span);
}

// n == kLanes elements, or fewer: a constant n costs no mask.
template <class T>
static inline Vec load_some(const T* p, int64_t n) {
  return n == kLanes ? load(p) : load(p, n);
}
template <class T>
static inline void store_some(T* p, Vec a, int64_t n) {
  n == kLanes ? store(p, a) : store(p, a, n);
}

// Reading ahead doubles a streaming pass on machines whose own prefetcher stops at a page; an address past the end
// is harmless.
constexpr int64_t kScanAhead = 2048 / sizeof(float);

// Lane i is lane k of i's group of `width` neighbours.
static inline IntVec lane_of_group(int width, int k) {
  int32_t lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i / width * width + k;
  IntVec result;
  std::memcpy(&result, lanes, sizeof result);
  return result;
}

// To T's precision and back.
static inline Vec round_to(Vec a, float) { return a; }
template <class Half>
static inline Vec round_to(Vec a, Half) {
#if defined(__AVX2__) || defined(EDGEPOP_NEON)
  return widen(narrow(a, Half{}), Half{});
#else
  Half words[kLanes];
  store(words, a);
  return load(words);
#endif
}

// Products of bfloat16 pairs: lane i of the result is c + a[2i]*b[2i] + a[2i+1]*b[2i+1] in float32, denormals as zero.
// A set that has them computes those products alone, the set below it all others (dispatch/sets.h); elsewhere they are
// declared for code that asks kDotBf16 first.
#if defined(__AVX512BF16__)
constexpr bool kDotBf16 = true;
static inline IntVec load_pairs(const bf16* p) { return _mm512_loadu_si512(p); }
static inline IntVec load_pairs(const uint32_t* p) { return _mm512_loadu_si512(p); }
static inline IntVec load_pairs(const uint32_t* p, int64_t n) { return _mm512_maskz_loadu_epi32(first(n), p); }
static inline void store_pairs(bf16* p, IntVec a) { _mm512_storeu_si512(p, a); }
static inline IntVec broadcast_pair(const bf16* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return _mm512_set1_epi32(pair);
}
static inline IntVec broadcast_last(const bf16* p) { return _mm512_set1_epi32(p->bits); }  // (p[0], 0)
static inline IntVec permute_pairs(IntVec a, IntVec lanes) { return _mm512_permutexvar_epi32(lanes, a); }
static inline Vec dot(IntVec a, IntVec b, Vec c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
// low[0], low[1], .., high[0], ..
static inline IntVec narrow_joined(Vec low, Vec high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
// Interleaved lanes of two rows: (even[0], odd[0], even[1], odd[1], ...).
static inline IntVec narrow_pairs(Vec even, Vec odd) {
  const __m512i halves = narrow_joined(even, odd);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, halves);
}
// The same of numbers that bfloat16 has.
static inline IntVec pairs_of(Vec even, Vec odd) {
  return _mm512_or_si512(_mm512_srli_epi32(bits_of(even), 16), bits_of(odd));
}
// The same of n elements, at most kLanes, from two places; zeros behind them, and for a place that is null.
static inline IntVec load_words(const bf16* p, int64_t n) {
  return _mm512_cvtepu16_epi32(n >= kLanes ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                                           : _mm256_maskz_loadu_epi16(first(n), p));
}
static inline IntVec pairs_at(const bf16* even, const bf16* odd, int64_t n) {
  const IntVec low = load_words(even, n);
  return odd == nullptr ? low : (IntVec)_mm512_or_si512(low, _mm512_slli_epi32(load_words(odd, n), 16));
}
#else
constexpr bool kDotBf16 = false;
IntVec load_pairs(const bf16* p);
IntVec load_pairs(const uint32_t* p);
IntVec load_pairs(const uint32_t* p, int64_t n);
void store_pairs(bf16* p, IntVec a);
IntVec broadcast_pair(const bf16* p);
IntVec broadcast_last(const bf16* p);
IntVec permute_pairs(IntVec a, IntVec lanes);
Vec dot(IntVec a, IntVec b, Vec c);
IntVec narrow_joined(Vec low, Vec high);
IntVec narrow_pairs(Vec even, Vec odd);
IntVec pairs_of(Vec even, Vec odd);
IntVec pairs_at(const bf16* even, const bf16* odd, int64_t n);
#endif

}  // namespace edgepop::cpu::EDGEPOP_ISA
