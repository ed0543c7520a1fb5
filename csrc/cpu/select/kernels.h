// The inner loops of selection that each instruction set compiles. Scores are contiguous here.
#pragma once

#include <cstdint>

#include "common/keys.h"

namespace edgepop::cpu {

// Codes lo <= hi (common/codes.h). Ends are counted and only the interior is stored: a value that fills half a layer
// costs nothing once it is an end.
struct Bracket {
  int32_t lo, hi;
};

struct Tally {
  int32_t above;   // scores whose code is above hi
  int32_t at_hi;   // equal to hi
  int32_t inside;  // strictly between, stored
  int32_t at_lo;   // equal to lo, 0 where lo == hi
};

// The rank-th largest code, and how many of those searched are above it.
struct Kth {
  int32_t code;
  int64_t above;
};

// A kernel may write this many codes behind those it stores.
constexpr int64_t kStoreSlack = 16;

// Codes that a scan of n scores may write.
constexpr int64_t scan_room(int64_t n) { return n + kStoreSlack; }

// Where a scan writes what it has found beside the codes, a bit for each score (bit i % 8 of byte i / 8): the mask of a
// cut inside the bracket, but for the scores inside. All null: nowhere.
struct Marks {
  uint8_t* kept = nullptr;       // at the bracket's upper end or above
  int32_t* positions = nullptr;  // of the codes inside, counted from the first score; room as theirs
  uint8_t* negative = nullptr;   // the sign bit; null where nobody asks
  uint8_t* signless = nullptr;   // set to 1 where a score is zero or NaN; with `negative` only
};

// Groups (group_bits.h), and of each word which scores have one d places later, or earlier, in their group, at
// [(d - 1) * period + word % period].
struct GroupWords {
  int64_t size, kept, apart;
  const uint64_t* has_later;
  const uint64_t* has_earlier;
  int64_t period;
};

struct SelectKernels {
  // codes[i] of scores[i], i in [0, n).
  void (*codes)(const float* scores, int64_t n, Of of, int32_t* codes);
  // Places n < 2^31 scores relative to the bracket; writes the codes inside it, and the marks, n / 8 bytes rounded up,
  // the last one's other bits zero. inside: room for scan_room(n).
  Tally (*scan)(const float* scores, int64_t n, Of of, Bracket bracket, int32_t* inside, const Marks& marks);
  // Of n codes, rank in [1, n]; the answer is known to lie in the bracket. `above` relies on no code above bracket.hi.
  Kth (*kth)(const int32_t* codes, int64_t n, int64_t rank, Bracket bracket);
  // Position of the *rank-th score with this code, or -1 with *rank lowered by those seen.
  int64_t (*find)(const float* scores, int64_t n, Of of, int32_t code, int64_t* rank);
  // The bits that any of the scores has: nothing but a read of them (read.h).
  uint32_t (*read)(const float* scores, int64_t n);
  // Words first .. of a Bernoulli mask from n contiguous scores (draw.h).
  void (*draw)(const float* scores, int64_t n, int64_t first, uint64_t seed, uint8_t* bits);
  // Words of a cut's mask from n contiguous scores (mask_bits.h); the cut's index counts from the first of them.
  void (*mask_bits)(const float* scores, int64_t n, Of of, const Cut& cut, uint8_t* bits);
  // Words of the best of each group (group_bits.h), from codes that begin with a group: those (size - 1) * apart before
  // and behind them are read too, whatever they are.
  void (*group_bits)(const int32_t* codes, int64_t words, const GroupWords& groups, uint8_t* bits);
  // What sums of blocks are made of (blocks.h), n floats at a time that do not overlap: y = |a| or a, y = |a| + |b| or
  // a + b, y += a; and of x[outer][n][inner], which is written over, the sum of each n in halves.
  void (*magnitudes)(const float* a, int64_t n, Of of, float* y);
  void (*add_magnitudes)(const float* a, const float* b, int64_t n, Of of, float* y);
  void (*add_onto)(const float* a, int64_t n, float* y);
  void (*fold)(float* x, int64_t outer, int64_t n, int64_t inner, float* y);
};

}  // namespace edgepop::cpu
