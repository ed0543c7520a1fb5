// One pass over scores: where each lies beside a bracket, and on the way there whatever writes them first.
#pragma once

#include "cpu/simd/codes.h"

namespace edgepop::cpu::EDGEPOP_ISA::select {

constexpr int kUnroll = kBlock / kLanes;

static inline void prefetch_block(const float* p) {
  for (int64_t i = 0; i < kBlock; i += 16) __builtin_prefetch(p + kScanAhead + i);
}

static inline int32_t code_at(Of of, const float* p) { return code_of_bits(of, float_bits(*p)); }

// Scans call before(i, count) just before they read the scores [i, i + count), whole blocks but for the last: an
// optimizer writes them there (optim/kernels.inl). Blocks are read at Before::kStreams places in turn: at one place alone a scan
// of 16.8M scores takes 25 % longer (Intel Ice Lake).
struct Nothing {
  static constexpr int64_t kStreams = 4;
  void operator()(int64_t, int64_t) const {}
};

// Where the b-th block begins that is visited of so many.
template <int64_t streams>
static inline int64_t visited(int64_t b, int64_t blocks) {
  const int64_t part = blocks / streams;
  return kBlock * (b < part * streams ? b % streams * part + b / streams : b);
}

// Writes the marks of blocks, and of the scores left behind them.
template <Of of>
class Marker {
 public:
  Marker(const Marks& marks, const float* scores, Bracket bracket)
      : marks_(marks), scores_(scores), bracket_(bracket), hi_(every(bracket.hi)), below_lo_(every(bracket.lo - 1)) {}

  bool wanted() const { return marks_.kept != nullptr; }

  // Marks the block at i; returns where its scores lie.
  Placed block(int64_t i) {
    const Placed p = placed<of>(scores_ + i, hi_, below_lo_, &least_);
    write(i, kBlock / 8, p);
    return p;
  }

  // Marks the n < kBlock scores from i on, the last ones.
  void rest(int64_t i, int64_t n) {
    Placed p = {0, 0, 0};
    for (int64_t j = 0; j < n; ++j) {
      const uint32_t bits = float_bits(scores_[i + j]);
      const int32_t code = code_of_bits(of, bits);
      p.above |= uint64_t{code > bracket_.hi} << j;
      p.negative |= uint64_t{bits >> 31} << j;
      least_ = smaller(least_, every(code));
    }
    if (n > 0) write(i, static_cast<size_t>(n + 7) / 8, p);
    if (marks_.negative != nullptr && any(above(every(kZeroCode + 1), least_))) {
      __atomic_store_n(marks_.signless, 1, __ATOMIC_RELAXED);
    }
  }

  // At the upper end of the bracket.
  void keep(int64_t i) { marks_.kept[i / 8] |= static_cast<uint8_t>(1 << i % 8); }

 private:
  void write(int64_t i, size_t bytes, const Placed& p) {
    std::memcpy(marks_.kept + i / 8, &p.above, bytes);
    if (marks_.negative != nullptr) std::memcpy(marks_.negative + i / 8, &p.negative, bytes);
  }

  const Marks& marks_;
  const float* scores_;
  const Bracket bracket_;
  const Codes hi_, below_lo_;
  Codes least_ = every(kHighestCode);
};

// Bracket of one code: two counts and nothing to store.
template <Of of, class Before>
static Tally scan_code(const float* scores, int64_t n, int32_t code, const Before& before, Marker<of> mark) {
  const Codes at = every(code), below = every(code - 1);
  Count above_at = no_count(), above_below = no_count();
  const int64_t blocks = n / kBlock;
  int64_t marked_above = 0, marked_from = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t i = visited<Before::kStreams>(b, blocks);
    prefetch_block(scores + i);
    before(i, kBlock);
    if (mark.wanted()) {
      const Placed p = mark.block(i);
      marked_above += __builtin_popcountll(p.above);
      marked_from += __builtin_popcountll(p.from_lo);
      continue;
    }
    for (int u = 0; u < kUnroll; ++u) {
      const Codes c = load_loose<of>(scores + i + u * kLanes);
      add(&above_at, above(c, at));
      add(&above_below, above(c, below));
    }
  }
  int64_t i = blocks * kBlock;
  before(i, n - i);
  if (mark.wanted()) mark.rest(i, n - i);
  const int64_t higher = total(above_at) + marked_above, from = total(above_below) + marked_from;
  Tally tally = {static_cast<int32_t>(higher), static_cast<int32_t>(from - higher), 0, 0};
  for (; i < n; ++i) {
    const int32_t c = code_at(of, scores + i);
    tally.above += c > code;
    tally.at_hi += c == code;
  }
  if (code == lowest_code(of)) tally.at_hi = static_cast<int32_t>(n) - tally.above;  // NaNs were loose
  return tally;
}

// A block with scores at or between the ends of a bracket: where it begins, which they are.
struct Touched {
  int64_t at;
  uint64_t scores;
};
constexpr int64_t kStretch = 64;  // blocks: 16 KB with AVX-512, in the first-level cache when they are visited again

// Of the first `n` codes at `out` those at the ends of the bracket are counted, the others moved together, and their
// positions with them.
template <Of of>
static void drop_ends(Bracket bracket, int64_t n, Tally* tally, int32_t* out, int32_t* positions, Marker<of>& mark) {
  const Codes lo = every(bracket.lo), hi = every(bracket.hi);
  Count at_lo = no_count(), at_hi = no_count();
  int64_t i = 0, inside = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Codes code = load_codes(out + i);
    const Lanes upper = equal(code, hi), within = above(code, lo) & above(hi, code);
    add(&at_lo, equal(code, lo));
    add(&at_hi, upper);
    if (mark.wanted()) {
      for (uint32_t rest = bits(upper); rest != 0; rest &= rest - 1) mark.keep(positions[i + __builtin_ctz(rest)]);
      append(load_codes(positions + i), within, positions + inside);
    }
    inside += append(code, within, out + inside);
  }
  tally->at_lo = static_cast<int32_t>(total(at_lo));
  tally->at_hi = static_cast<int32_t>(total(at_hi));
  for (; i < n; ++i) {
    const int32_t c = out[i];
    out[inside] = c;
    if (mark.wanted()) {
      if (c == bracket.hi) mark.keep(positions[i]);
      positions[inside] = positions[i];
    }
    tally->at_hi += c == bracket.hi;
    tally->at_lo += c == bracket.lo;
    inside += c > bracket.lo && c < bracket.hi;
  }
  tally->inside = static_cast<int32_t>(inside);
}

template <Of of, class Before>
static Tally scan(const float* scores, int64_t n, Bracket bracket, int32_t* out, const Before& before, const Marks& marks) {
  Marker<of> mark(marks, scores, bracket);
  int32_t* const positions = marks.positions;
  if (bracket.lo == bracket.hi) return scan_code<of>(scores, n, bracket.lo, before, mark);
  const Codes hi = every(bracket.hi), below_lo = every(bracket.lo - 1);
  Count higher = no_count();
  Tally tally = {0, 0, 0, 0};
  // The bracket touches some blocks, at random. A branch would mispredict its way through them, so they are listed and
  // visited afterwards: where they are few, one score after the other, each a fraction of a block's work; where they
  // are most of a stretch, and hold several scores, block by block.
  const int64_t blocks = n / kBlock, whole = blocks * kBlock;
  int64_t end = 0;
  for (int64_t begin = 0; begin < blocks; begin += kStretch) {
    const int64_t stretch = blocks - begin < kStretch ? blocks - begin : kStretch;
    Touched touched[kStretch];
    int64_t listed = 0;
    for (int64_t b = begin; b < begin + stretch; ++b) {
      const int64_t i = visited<Before::kStreams>(b, blocks);
      prefetch_block(scores + i);
      before(i, kBlock);
      uint64_t within;
      if (mark.wanted()) {
        const Placed p = mark.block(i);
        within = p.from_lo & ~p.above;
        tally.above += __builtin_popcountll(p.above);
      } else {
        within = place_block<of>(scores + i, hi, below_lo, &higher);
      }
      touched[listed] = {i, within};
      listed += touched[listed].scores != 0;
    }
    if (kAppendsBlocks && listed > kStretch / 2) {
      for (int64_t t = 0; t < listed; ++t) {
        const int32_t at = static_cast<int32_t>(touched[t].at);
        if (mark.wanted()) append_positions(touched[t].scores, at, positions + end);
        end += append_block<of>(scores + at, touched[t].scores, out + end);
      }
    } else {
      for (int64_t t = 0; t < listed; ++t) {
        for (uint64_t rest = touched[t].scores; rest != 0; rest &= rest - 1) {
          const int64_t at = touched[t].at + __builtin_ctzll(rest);
          if (mark.wanted()) positions[end] = static_cast<int32_t>(at);
          out[end++] = code_at(of, scores + at);
        }
      }
    }
  }
  before(whole, n - whole);
  if (mark.wanted()) mark.rest(whole, n - whole);
  for (int64_t i = whole; i < n; ++i) {
    const int32_t c = out[end] = code_at(of, scores + i);
    if (mark.wanted()) positions[end] = static_cast<int32_t>(i);
    tally.above += c > bracket.hi;
    end += c >= bracket.lo && c <= bracket.hi;
  }
  tally.above += static_cast<int32_t>(total(higher));
  drop_ends(bracket, end, &tally, out, positions, mark);
  if (bracket.lo == lowest_code(of)) {
    tally.at_lo = static_cast<int32_t>(n) - tally.above - tally.at_hi - tally.inside;  // NaNs were loose
  }
  return tally;
}

template <class Before>
static Tally scan_after(const Before& before, const float* scores, int64_t n, Of of, Bracket bracket, int32_t* out,
                 const Marks& marks) {
  return of == Of::abs ? scan<Of::abs>(scores, n, bracket, out, before, marks)
                       : scan<Of::raw>(scores, n, bracket, out, before, marks);
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::select
