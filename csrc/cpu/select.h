// Exact selection: the cut of every layer of a network in one call, at about one read of the scores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "../common/keys.h"

namespace edgepop::cpu {

struct Ranking {
  const float* scores;
  int64_t size[4];    // logical order, padded with ones in front
  int64_t stride[4];  // elements; any, overlapping included
  Of of;              // abs or raw
  int64_t kept;       // 0 .. product of the sizes
  Cut* cut;
  const Cut* hint;  // an earlier cut of these scores, a warm start; may be null, stale or garbage
};

// Writes every layer's cut: the kept-th largest key, and the logical index of the last kept among the scores that tie
// with it, lower indices kept first. A layer that keeps nothing gets key 2^32 and index -1. The result depends on the
// scores alone: not on the hint, the number of threads, the layout or the instruction set.
//
// Scratch: 4 bytes for each score of a small layer, for every 8th of a large one; no copy of the scores.
void select(const std::vector<Ranking>& rankings, int threads);

// Called from many threads, with disjoint ranges of memory that cover the dense scores of rankings[ranking].
using Rewrite = std::function<void(size_t ranking, int64_t begin, int64_t end)>;

// The same for scores that `rewrite` is about to change, each range just before its first scan: what was written is
// read from the first-level cache. A warm start's hint is a cut of the scores before. All rankings dense, none keeps 0.
void select(const std::vector<Ranking>& rankings, int threads, const Rewrite& rewrite);

}  // namespace edgepop::cpu
