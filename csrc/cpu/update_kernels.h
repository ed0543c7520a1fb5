// The optimizer steps that each instruction set compiles.
#pragma once

#include <cstdint>

#include "../common/update.h"

namespace edgepop::cpu {

// n consecutive elements of a parameter, its gradient and what the optimizer remembers of it, in place. Where an
// argument of common/update.h may be null, so may it here.
struct UpdateKernels {
  void (*sgd)(const Sgd&, float* value, const float* grad, float* buffer, int64_t n);
  void (*adam)(const Adam&, float* value, const float* grad, float* m, float* v, float* largest, int64_t n);
};

}  // namespace edgepop::cpu
