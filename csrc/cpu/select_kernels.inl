// The kernels of select_kernels.h for one instruction set. Included by isa_kernels.inl.
#include "select_vec.h"

namespace edgepop::cpu::EDGEPOP_ISA {
namespace {

constexpr int64_t kBlock = kLanes == 16 ? 64 : 32;
constexpr int kUnroll = kBlock / kLanes;
// Reading ahead doubles a streaming pass on machines whose own prefetcher stops at a page; an address past the end
// is harmless.
constexpr int64_t kAhead = 4096 / sizeof(float);

inline void prefetch_block(const float* p) {
  for (int64_t i = 0; i < kBlock; i += 16) __builtin_prefetch(p + kAhead + i);
}

inline int32_t code_at(Of of, const float* p) { return code_of_bits(of, float_bits(*p)); }

template <Of of>
void codes(const float* scores, int64_t n, int32_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_codes(out + i, load_scores<of>(scores + i));
  for (; i < n; ++i) out[i] = code_at(of, scores + i);
}

// Scans call before(i, count) just before they read the scores [i, i + count), whole blocks but for the last: an
// optimizer writes them there (update.inl).

// Bracket of one code: two counts and nothing to store.
template <Of of, class Before>
Tally scan_code(const float* scores, int64_t n, int32_t code, const Before& before) {
  const Codes at = every(code), below = every(code - 1);
  Count above_at = no_count(), above_below = no_count();
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    prefetch_block(scores + i);
    before(i, kBlock);
    for (int u = 0; u < kUnroll; ++u) {
      const Codes c = load_loose<of>(scores + i + u * kLanes);
      add(&above_at, above(c, at));
      add(&above_below, above(c, below));
    }
  }
  before(i, n - i);
  const int64_t higher = total(above_at);
  Tally tally = {static_cast<int32_t>(higher), static_cast<int32_t>(total(above_below) - higher), 0, 0};
  for (; i < n; ++i) {
    const int32_t c = code_at(of, scores + i);
    tally.above += c > code;
    tally.at_hi += c == code;
  }
  if (code == lowest_code(of)) tally.at_hi = static_cast<int32_t>(n) - tally.above;  // NaNs were loose
  return tally;
}

template <Of of, class Before>
Tally scan(const float* scores, int64_t n, Bracket bracket, int32_t* out, const Before& before) {
  if (bracket.lo == bracket.hi) return scan_code<of>(scores, n, bracket.lo, before);
  const Codes hi = every(bracket.hi), below_lo = every(bracket.lo - 1);
  Count higher = no_count();
  // The bracket touches some blocks, at random. A branch would mispredict its way through them, so they are listed
  // and visited again: for a bracket of 2 % of normal scores 1.9 ns per cache line instead of 3.5 (AVX-512, Zen 5),
  // for one of 0.15 % 0.82 instead of 0.87.
  int32_t* const touched = out + n + kStoreSlack;
  int64_t listed = 0, i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    prefetch_block(scores + i);
    before(i, kBlock);
    Lanes inside = {};
    for (int u = 0; u < kUnroll; ++u) {
      const Codes code = load_loose<of>(scores + i + u * kLanes);
      const Lanes above_hi = above(code, hi);
      add(&higher, above_hi);
      inside |= above_hi ^ above(code, below_lo);
    }
    touched[listed] = static_cast<int32_t>(i);
    listed += any(inside);
  }
  Tally tally = {0, 0, 0, 0};
  for (int64_t t = 0; t < listed; ++t) {
    for (int u = 0; u < kUnroll; ++u) {
      sort_in(load_loose<of>(scores + touched[t] + u * kLanes), bracket, &tally, out);
    }
  }
  tally.above = static_cast<int32_t>(total(higher));
  before(i, n - i);
  for (; i < n; ++i) {
    const int32_t c = code_at(of, scores + i);
    out[tally.inside] = c;
    tally.above += c > bracket.hi;
    tally.at_hi += c == bracket.hi;
    tally.inside += c > bracket.lo && c < bracket.hi;
    tally.at_lo += c == bracket.lo;
  }
  if (bracket.lo == lowest_code(of)) {
    tally.at_lo = static_cast<int32_t>(n) - tally.above - tally.at_hi - tally.inside;  // NaNs were loose
  }
  return tally;
}

int64_t count_above(const int32_t* codes, int64_t n, int32_t code) {
  const Codes at = every(code);
  Count even = no_count(), odd = no_count();
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    add(&even, above(load_codes(codes + i), at));
    add(&odd, above(load_codes(codes + i + kLanes), at));
  }
  int64_t count = total(even) + total(odd);
  for (; i < n; ++i) count += codes[i] > code;
  return count;
}

// Bisection of the range: at most 32 counts, each at the speed of the cache, no branch that depends on a single code.
Kth kth(const int32_t* codes, int64_t n, int64_t rank, Bracket bracket) {
  int64_t low = bracket.lo, high = bracket.hi, above_high = 0;
  while (low < high) {
    const int64_t middle = (low + high) >> 1;
    const int64_t above_middle = count_above(codes, n, static_cast<int32_t>(middle));
    if (above_middle < rank) {
      high = middle;
      above_high = above_middle;
    } else {
      low = middle + 1;
    }
  }
  return {static_cast<int32_t>(high), above_high};
}

template <Of of>
int64_t find(const float* scores, int64_t n, int32_t code, int64_t* rank) {
  const Codes at = every(code);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i < kLanes ? n - i : kLanes;
    if (lanes == kLanes && !any(equal(load_scores<of>(scores + i), at))) continue;
    for (int64_t j = i; j < i + lanes; ++j) {
      if (code_at(of, scores + j) == code && --*rank == 0) return j;
    }
  }
  return -1;
}

void codes_of(const float* scores, int64_t n, Of of, int32_t* out) {
  of == Of::abs ? codes<Of::abs>(scores, n, out) : codes<Of::raw>(scores, n, out);
}

template <class Before>
Tally scan_after(const Before& before, const float* scores, int64_t n, Of of, Bracket bracket, int32_t* out) {
  return of == Of::abs ? scan<Of::abs>(scores, n, bracket, out, before)
                       : scan<Of::raw>(scores, n, bracket, out, before);
}

Tally scan_of(const float* scores, int64_t n, Of of, Bracket bracket, int32_t* out) {
  return scan_after([](int64_t, int64_t) {}, scores, n, of, bracket, out);
}

int64_t find_of(const float* scores, int64_t n, Of of, int32_t code, int64_t* rank) {
  return of == Of::abs ? find<Of::abs>(scores, n, code, rank) : find<Of::raw>(scores, n, code, rank);
}

}  // namespace

constexpr SelectKernels kSelectKernels = {codes_of, scan_of, kth, find_of};

}  // namespace edgepop::cpu::EDGEPOP_ISA
