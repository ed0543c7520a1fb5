// Vectors of codes: comparisons, counts, and the append of chosen lanes. AVX-512 has masks and compression; the others
// are written once, in vector extensions of their own width.
//
// Included by kernel sources only (see dispatch/sets.h).
#pragma once

#include "common/codes.h"
#include "cpu/select/kernels.h"
#include "cpu/simd/vec.h"

namespace edgepop::cpu::EDGEPOP_ISA {

// load_loose leaves NaNs at different codes, all up to the one that load_scores gives them.

// A bit for each score of a block: above the bracket; at or above its lower end; the sign bit.
struct Placed {
  uint64_t above, from_lo, negative;
};

#if defined(__AVX512F__)

using Codes = __m512i;
using Lanes = __mmask16;  // a set of lanes
using Count = int64_t;

static inline Codes every(int32_t a) { return _mm512_set1_epi32(a); }
static inline Codes load_codes(const int32_t* p) { return _mm512_loadu_si512(p); }
static inline Codes load_bits(const float* p) { return _mm512_loadu_si512(p); }
static inline void store_codes(int32_t* p, Codes a) { _mm512_storeu_si512(p, a); }
static inline Lanes above(Codes a, Codes b) { return _mm512_cmpgt_epi32_mask(a, b); }
static inline Lanes equal(Codes a, Codes b) { return _mm512_cmpeq_epi32_mask(a, b); }
static inline bool any(Lanes a) { return a != 0; }
static inline Count no_count() { return 0; }
static inline void add(Count* count, Lanes a) { *count += __builtin_popcount(a); }
static inline int64_t total(Count count) { return count; }

template <Of of>
static inline Codes load_loose(const float* p) {
  const Codes bits = load_bits(p);
  Codes number = _mm512_and_si512(bits, every(0x7fffffff));
  if (of == Of::raw) {
    number = _mm512_mask_sub_epi32(number, _mm512_movepi32_mask(bits), _mm512_setzero_si512(), number);
  }
  return _mm512_add_epi32(number, every(kZeroCode));
}
static inline Codes larger(Codes a, Codes b) { return _mm512_max_epi32(a, b); }
static inline Codes smaller(Codes a, Codes b) { return _mm512_min_epi32(a, b); }

// Writes the chosen lanes side by side; returns how many.
static inline int64_t append(Codes a, Lanes chosen, int32_t* out) {
  store_codes(out, _mm512_maskz_compress_epi32(chosen, a));
  return __builtin_popcount(chosen);
}

constexpr int64_t kBlock = 64;

static inline uint64_t joined(const Lanes (&a)[4]) {
  return _mm512_kunpackd(_mm512_kunpackw(a[3], a[2]), _mm512_kunpackw(a[1], a[0]));
}

// Bit i: a[i] > b[i], of 64.
static inline uint64_t above_word(const int32_t* a, const int32_t* b) {
  Lanes part[4];
  for (int u = 0; u < 4; ++u) part[u] = above(load_codes(a + u * kLanes), load_codes(b + u * kLanes));
  return joined(part);
}

// Places the block of scores at p: adds those above `hi` to *higher; bit i is set where score i is above `below_lo` and
// not above `hi`.
template <Of of>
static inline uint64_t place_block(const float* p, Codes hi, Codes below_lo, Count* higher) {
  Lanes over[4], from_lo[4];
  for (int u = 0; u < 4; ++u) {
    const Codes code = load_loose<of>(p + u * kLanes);
    over[u] = above(code, hi);
    from_lo[u] = above(code, below_lo);
  }
  const uint64_t beyond = joined(over);
  *higher += __builtin_popcountll(beyond);
  return beyond ^ joined(from_lo);
}

template <Of of>
static inline Placed placed(const float* p, Codes hi, Codes below_lo, Codes* least) {
  Lanes over[4], from_lo[4], negative[4] = {};
  for (int u = 0; u < 4; ++u) {
    const Codes code = load_loose<of>(p + u * kLanes);
    over[u] = above(code, hi);
    from_lo[u] = above(code, below_lo);
    if (of == Of::abs) {
      negative[u] = _mm512_movepi32_mask(load_bits(p + u * kLanes));
      *least = smaller(*least, code);
    }
  }
  return {joined(over), joined(from_lo), joined(negative)};
}

static inline uint32_t bits(Lanes a) { return a; }

// Writes the codes of the chosen scores of a block; returns how many.
constexpr bool kAppendsBlocks = true;
template <Of of>
static inline int64_t append_block(const float* p, uint64_t chosen, int32_t* out) {
  int64_t count = 0;
  for (int u = 0; u < 4; ++u) {
    count += append(load_loose<of>(p + u * kLanes), static_cast<Lanes>(chosen >> (u * kLanes)), out + count);
  }
  return count;
}

// Writes begin + i for each bit i that is set.
static inline void append_positions(uint64_t chosen, int32_t begin, int32_t* out) {
  const Codes lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int u = 0; u < 4; ++u) {
    out += append(_mm512_add_epi32(lanes, every(begin + u * kLanes)), static_cast<Lanes>(chosen >> (u * kLanes)), out);
  }
}

#else

typedef int32_t Codes __attribute__((vector_size(4 * kLanes)));
using Lanes = Codes;  // -1 where set
using Count = Codes;

static inline Codes every(int32_t a) { return Codes{} + a; }
static inline Codes load_codes(const int32_t* p) {
  Codes a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
static inline Codes load_bits(const float* p) {
  Codes bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}
static inline void store_codes(int32_t* p, Codes a) { std::memcpy(p, &a, sizeof a); }
static inline Lanes above(Codes a, Codes b) { return a > b; }
static inline Lanes equal(Codes a, Codes b) { return a == b; }
// Bit i for lane i.
static inline uint32_t bits(Lanes a) {
#if defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)a));
#else
  static_assert(kLanes == 4, "four lanes have a bit each in the two words");
  uint64_t pairs[2];
  a &= Codes{1, 2, 4, 8};
  std::memcpy(pairs, &a, sizeof a);
  const uint64_t both = pairs[0] | pairs[1];
  return static_cast<uint32_t>(both | both >> 32);
#endif
}
static inline bool any(Lanes a) { return bits(a) != 0; }
static inline uint64_t above_word(const int32_t* a, const int32_t* b) {
  uint64_t word = 0;
  for (int i = 0; i < 64; i += kLanes) word |= uint64_t{bits(above(load_codes(a + i), load_codes(b + i)))} << i;
  return word;
}
static inline Count no_count() { return Count{}; }
static inline void add(Count* count, Lanes a) { *count -= a; }
static inline int64_t total(Count count) {
  int64_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += count[i];
  return sum;
}

template <Of of>
static inline Codes load_loose(const float* p) {
  const Codes bits = load_bits(p);
  typedef uint32_t Wrapping __attribute__((vector_size(4 * kLanes)));
  Wrapping number = (Wrapping)(bits & 0x7fffffff);
  if (of == Of::raw) {
    const Wrapping sign = (Wrapping)(bits >> 31);
    number = (number ^ sign) - sign;
  }
  return (Codes)(number + static_cast<uint32_t>(kZeroCode));
}
static inline Codes larger(Codes a, Codes b) { return a > b ? a : b; }
static inline Codes smaller(Codes a, Codes b) { return a < b ? a : b; }

static inline int64_t append(Codes a, Lanes chosen, int32_t* out) {
  int32_t lane[kLanes];
  store_codes(lane, a);
  int64_t count = 0;
  for (uint32_t rest = bits(chosen); rest != 0; rest &= rest - 1) out[count++] = lane[__builtin_ctz(rest)];
  return count;
}

constexpr int64_t kBlock = 32;

template <Of of>
static inline uint64_t place_block(const float* p, Codes hi, Codes below_lo, Count* higher) {
  Codes weight, found = {};  // a bit for each lane of each vector
  for (int i = 0; i < kLanes; ++i) weight[i] = 1 << i;
  for (int u = 0; u < kBlock / kLanes; ++u) {
    const Codes code = load_loose<of>(p + u * kLanes);
    const Lanes over = above(code, hi);
    add(higher, over);
    found |= (over ^ above(code, below_lo)) & (weight << (u * kLanes));
  }
  uint32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= static_cast<uint32_t>(found[i]);
  return all;
}

template <Of of>
static inline Placed placed(const float* p, Codes hi, Codes below_lo, Codes* least) {
  Placed words = {0, 0, 0};
  for (int u = 0; u < kBlock / kLanes; ++u) {
    const float* const at = p + u * kLanes;
    const Codes code = load_loose<of>(at);
    const auto add = [&](uint64_t* word, Lanes lanes) { *word |= uint64_t{bits(lanes)} << (u * kLanes); };
    add(&words.above, above(code, hi));
    add(&words.from_lo, above(code, below_lo));
    if (of == Of::abs) {
      add(&words.negative, load_bits(at) < every(0));
      *least = smaller(*least, code);
    }
  }
  return words;
}

// Lane by lane is no faster than score by score.
constexpr bool kAppendsBlocks = false;
template <Of of>
static inline int64_t append_block(const float*, uint64_t, int32_t*) {
  return 0;
}
static inline void append_positions(uint64_t, int32_t, int32_t*) {}

#endif

template <Of of>
static inline Codes load_scores(const float* p) {
  return larger(load_loose<of>(p), every(lowest_code(of)));
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
