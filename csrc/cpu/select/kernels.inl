// The kernels of select/kernels.h for one instruction set.
#pragma once

#include "cpu/select/kernels.h"
#include "cpu/select/scan.inl"

namespace edgepop::cpu::EDGEPOP_ISA::select {
namespace {

template <Of of>
void codes(const float* scores, int64_t n, int32_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_codes(out + i, load_scores<of>(scores + i));
  for (; i < n; ++i) out[i] = code_at(of, scores + i);
}

int64_t count_above(const int32_t* codes, int64_t n, int32_t code) {
  const Codes at = every(code);
  Count even = no_count(), odd = no_count();
  const int64_t whole = n / (2 * kLanes) * (2 * kLanes);
  for (int64_t i = 0; i < whole; i += 2 * kLanes) {
    add(&even, above(load_codes(codes + i), at));
    add(&odd, above(load_codes(codes + i + kLanes), at));
  }
  int64_t count = total(even) + total(odd);
  for (int64_t i = whole; i < n; ++i) count += codes[i] > code;
  return count;
}

// Bisection of the range: at most 32 counts, each at the speed of the cache, no branch that depends on a single code.
Kth bisect(const int32_t* codes, int64_t n, int64_t rank, Bracket bracket) {
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

// Many codes: a sample of them says between which ones to look, one pass sets those apart, 7 % of the whole.
constexpr int64_t kSampled = 2048, kReach = 68;  // three standard deviations of a sampled rank, at most
constexpr int64_t kSetApart = 16384;

Kth kth(const int32_t* codes, int64_t n, int64_t rank, Bracket bracket) {
  if (n < 4 * kSampled) return bisect(codes, n, rank, bracket);
  int32_t sampled[kSampled], apart[kSetApart + kStoreSlack];
  for (int64_t i = 0; i < kSampled; ++i) sampled[i] = codes[i * n / kSampled];
  const int64_t centre = rank * kSampled / n, highest = centre - kReach, lowest = centre + 1 + kReach;
  Bracket part = bracket;
  if (highest >= 1) part.hi = bisect(sampled, kSampled, highest, bracket).code;
  if (lowest <= kSampled) part.lo = bisect(sampled, kSampled, lowest, {bracket.lo, part.hi}).code;
  const Codes hi = every(part.hi), below_lo = every(part.lo - 1);
  Count higher = no_count();
  int64_t i = 0, count = 0;
  for (; i + kLanes <= n && count + kLanes <= kSetApart; i += kLanes) {
    const Codes code = load_codes(codes + i);
    const Lanes over = above(code, hi);
    add(&higher, over);
    count += append(code, over ^ above(code, below_lo), apart + count);
  }
  int64_t above_part = total(higher);
  for (; i < n && count < kSetApart; ++i) {
    apart[count] = codes[i];
    above_part += codes[i] > part.hi;
    count += codes[i] >= part.lo && codes[i] <= part.hi;
  }
  if (i < n || rank <= above_part || rank > above_part + count) return bisect(codes, n, rank, bracket);
  const Kth found = bisect(apart, count, rank - above_part, part);
  return {found.code, above_part + found.above};
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

uint32_t read(const float* scores, int64_t n) {
  constexpr int64_t kStreams = 8;
  Codes seen[kUnroll];
  for (int u = 0; u < kUnroll; ++u) seen[u] = every(0);
  const int64_t blocks = n / kBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    const float* const block = scores + visited<kStreams>(b, blocks);
    prefetch_block(block);
    for (int u = 0; u < kUnroll; ++u) seen[u] |= load_bits(block + u * kLanes);
  }
  for (int u = 1; u < kUnroll; ++u) seen[0] |= seen[u];
  int32_t lanes[kLanes];
  store_codes(lanes, seen[0]);
  uint32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= static_cast<uint32_t>(lanes[i]);
  for (int64_t i = blocks * kBlock; i < n; ++i) all |= float_bits(scores[i]);
  return all;
}

void codes_of(const float* scores, int64_t n, Of of, int32_t* out) {
  of == Of::abs ? codes<Of::abs>(scores, n, out) : codes<Of::raw>(scores, n, out);
}

Tally scan_of(const float* scores, int64_t n, Of of, Bracket bracket, int32_t* out, const Marks& marks) {
  return scan_after(Nothing{}, scores, n, of, bracket, out, marks);
}

int64_t find_of(const float* scores, int64_t n, Of of, int32_t code, int64_t* rank) {
  return of == Of::abs ? find<Of::abs>(scores, n, code, rank) : find<Of::raw>(scores, n, code, rank);
}

}  // namespace

}  // namespace edgepop::cpu::EDGEPOP_ISA::select
