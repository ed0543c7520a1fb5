// The best of each group, 64 scores at a time: a word of the mask.
//
// A score is kept where fewer than `kept` of its group beat it: those that are larger, and of its equals the earlier ones.
// Whether it is beaten by the one d places later or earlier in its group is a bit, of 64 scores a word; the words are
// added up in bit-sliced counters, so that a group of any size and spacing costs 2 (size - 1) comparisons of vectors,
// no branch and no shuffle. (One comparison says both of a pair; to move its bits to the other one's word took longer.)
#pragma once

#include "cpu/simd/codes.h"

namespace edgepop::cpu::EDGEPOP_ISA::select {

constexpr int kCounterBits = 6;  // at most: they count to size - 1 < 64

// 64 counters of so many bits, bit b of each in word[b].
struct Counters {
  int width;
  uint64_t word[kCounterBits] = {};

  void add(uint64_t one) {
    for (int b = 0; b < width; ++b) {
      const uint64_t carry = word[b] & one;
      word[b] ^= one;
      one = carry;
    }
  }

  // Bit i: counter i is below `limit`, at least 1.
  uint64_t below(int64_t limit) const {
    uint64_t less = 0, equal = ~uint64_t{0};
    if ((limit >> width) != 0) return equal;
    for (int b = width - 1; b >= 0; --b) {
      if (((limit >> b) & 1) != 0) {
        less |= equal & ~word[b];
        equal &= word[b];
      } else {
        equal &= ~word[b];
      }
    }
    return less;
  }
};

// With kSize the loops are unrolled; 0: groups.size.
template <int kSize>
static void words_of(const int32_t* codes, int64_t words, const GroupWords& groups, uint8_t* out) {
  const int64_t period = groups.period, size = kSize == 0 ? groups.size : kSize;
  int width = 0;
  while (((size - 1) >> width) != 0) ++width;
  for (int64_t w = 0, at = 0; w < words; ++w, at = at + 1 == period ? 0 : at + 1) {
    const int32_t* const own = codes + 64 * w;
    Counters beaten = {width};
    for (int64_t d = 1; d < size; ++d) {
      const int64_t apart = d * groups.apart, member = (d - 1) * period + at;
      beaten.add(above_word(own + apart, own) & groups.has_later[member]);
      beaten.add(~above_word(own, own - apart) & groups.has_earlier[member]);
    }
    const uint64_t word = beaten.below(groups.kept);
    std::memcpy(out + 8 * w, &word, 8);
  }
}

static void group_bits(const int32_t* codes, int64_t words, const GroupWords& groups, uint8_t* out) {
  switch (groups.size) {
    case 2: return words_of<2>(codes, words, groups, out);
    case 4: return words_of<4>(codes, words, groups, out);
    default: return words_of<0>(codes, words, groups, out);
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::select
