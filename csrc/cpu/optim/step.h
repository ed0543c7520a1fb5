// One step of an optimizer for all parameters of a network, and in the same pass over memory the next cuts of those
// that are scores.
#pragma once

#include <cstdint>
#include <vector>

#include "common/update.h"
#include "cpu/optim/kernels.h"
#include "cpu/select/select.h"

namespace edgepop::cpu {

// `count` float32 elements that fill one range of memory; gradient and moments fill theirs in the same order.
struct Parameter {
  Elements elements;
  int64_t count;
  Update update;
};

// Updates every parameter. Parameter i below rankings.size() is the scores of ranking i, which keeps at least one:
// its cut is the one that select would find in the updated scores, wherever the hint is an earlier cut of them.
void step(const std::vector<Parameter>& parameters, const std::vector<Ranking>& rankings, int threads);

}  // namespace edgepop::cpu
