// Exact selection: the cut of every layer of a network in one call, at about one read of the scores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "common/keys.h"
#include "cpu/select/kernels.h"

namespace edgepop::cpu {

struct Ranking {
  const float* scores;
  int64_t size[4];    // logical order, padded with ones in front
  int64_t stride[4];  // elements; any, overlapping included
  Of of;              // abs or raw
  int64_t kept;       // 0 .. product of the sizes
  Cut* cut;
  const Cut* hint;  // an earlier cut of these scores, a warm start; may be null, stale or garbage
  // Where to write the cut's mask and the scores' sign bits as well, of scores that are contiguous: packed as
  // Mask::bits, signs with a 1 in the last byte where a score is zero or NaN, which have no sign. Null: nowhere.
  uint8_t* mask = nullptr;
  uint8_t* signs = nullptr;
};

// Writes every layer's cut: the kept-th largest key, and the logical index of the last kept among the scores that tie
// with it, lower indices kept first. A layer that keeps nothing gets key 2^32 and index -1. The result depends on the
// scores alone: not on the hint, the number of threads, the layout or the instruction set.
//
// Scratch: 4 bytes for each score of a small layer, for every 8th of a large one; no copy of the scores.
void select(const std::vector<Ranking>& rankings, int threads);

// Changes the scores [begin, begin + n) of rankings[ranking], counted in memory, and scans what they have become
// (SelectKernels::scan). Called from many threads, once for every score.
using RewriteScan =
    std::function<Tally(size_t ranking, int64_t begin, int64_t n, Bracket bracket, int32_t* inside, const Marks& marks)>;

// The cuts of scores that their first scan changes: what they become is ranked. A hint is a cut of the scores before.
// All scores dense, no ranking that keeps nothing.
void select(const std::vector<Ranking>& rankings, int threads, const RewriteScan& rewrite_scan);

}  // namespace edgepop::cpu
