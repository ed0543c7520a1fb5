// The weight gradient that each instruction set compiles.
#pragma once

#include "common/conv.h"
#include "common/tensor.h"
#include "cpu/optim/kernels.h"

namespace edgepop::cpu {

// Safe to call from any number of threads.
struct WgradKernels {
  // ds (float32, may have null data) = dW_eff * W * map'(S); dw (weight's dtype) per `weight_grad`. Written whole.
  // An update, of the mask's scores, takes the place of ds, and each score sees it after all else that reads it.
  void (*conv_backward_weight)(const Conv&, const Tensor& dy, const Tensor& x, const Weight& w, const Mask&, ScoreMap,
                               const Tensor& ds, const ScoreUpdate&, WeightGrad weight_grad, const Tensor& dw,
                               int threads);
};

}  // namespace edgepop::cpu
