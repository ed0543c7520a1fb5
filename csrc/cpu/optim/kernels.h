// The optimizer steps that each instruction set compiles.
#pragma once

#include <cstdint>

#include "common/update.h"
#include "cpu/select/kernels.h"

namespace edgepop::cpu {

// Consecutive elements of a parameter, of its gradient and of what the optimizer remembers of it.
struct Elements {
  float* value;
  const float* grad;
  float* moments[3];  // Sgd: the buffer; Adam: m, v and, for AMSGrad, the largest v. Null where there is none
};

// A step on the scores of a weight in place of their gradient. The moments, as Elements has them, lie as the scores do.
struct ScoreUpdate {
  float* scores = nullptr;  // null: no update
  Update update = {};
  float* moments[3] = {nullptr, nullptr, nullptr};
};

// Each updates n elements in place. The scan of the updated ones is SelectKernels::scan, at no second read.
struct UpdateKernels {
  void (*step)(const Update&, const Elements&, int64_t n);
  Tally (*step_scan)(const Update&, const Elements&, int64_t n, Of of, Bracket bracket, int32_t* inside, const Marks&);
};

}  // namespace edgepop::cpu
