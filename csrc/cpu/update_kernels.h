// The optimizer steps that each instruction set compiles.
#pragma once

#include <cstdint>

#include "../common/update.h"
#include "select_kernels.h"

namespace edgepop::cpu {

// Consecutive elements of a parameter, of its gradient and of what the optimizer remembers of it.
struct Elements {
  float* value;
  const float* grad;
  float* moments[3];  // Sgd: the buffer; Adam: m, v and, for AMSGrad, the largest v. Null where there is none
};

// A step on the scores of a weight in place of their gradient; one of `sgd` and `adam` is null. The moments, as Elements
// has them, lie as the scores do.
struct ScoreUpdate {
  float* scores = nullptr;  // null: no update
  const Sgd* sgd = nullptr;
  const Adam* adam = nullptr;
  float* moments[3] = {nullptr, nullptr, nullptr};
};

// Each updates n elements in place. The scans of the updated ones are SelectKernels::scan, at no second read.
struct UpdateKernels {
  void (*sgd)(const Sgd&, const Elements&, int64_t n);
  void (*adam)(const Adam&, const Elements&, int64_t n);
  Tally (*sgd_scan)(const Sgd&, const Elements&, int64_t n, Of of, Bracket bracket, int32_t* inside);
  Tally (*adam_scan)(const Adam&, const Elements&, int64_t n, Of of, Bracket bracket, int32_t* inside);
};

}  // namespace edgepop::cpu
