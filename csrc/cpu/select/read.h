// A read of scores and nothing else: what selection is measured by.
#pragma once

#include <cstdint>
#include <vector>

namespace edgepop::cpu {

struct ScoreRange {
  const float* scores;
  int64_t count;
};

// The bits that any of the scores has.
uint32_t read(const std::vector<ScoreRange>& ranges, int threads);

}  // namespace edgepop::cpu
