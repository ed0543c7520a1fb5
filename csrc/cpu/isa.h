// One binary for every CPU: each instruction set compiles the same kernels in a translation unit of its own and
// offers them as a table; the widest one that this machine can run is chosen once, or named by EDGEPOP_ISA.
//
// Rule for kernel sources (*.inl): everything lives in namespace edgepop::cpu::EDGEPOP_ISA and instantiates no
// template from outside it. An inline function shared by two translation units is merged by the linker, and the
// copy that survives may hold instructions this machine lacks.
#pragma once

#include <cstdint>

#include "../common/conv.h"
#include "../common/keys.h"
#include "../common/tensor.h"
#include "select_kernels.h"
#include "update_kernels.h"

namespace edgepop::cpu {

// Filled by each instruction set; every entry is safe to call from any number of threads.
struct Kernels {
  const char* name;

  // y = conv(x, W*M) + bias; bias is float32 of out_channels or null. x, y: any strides. y is written whole.
  void (*conv_forward)(const Conv&, const Tensor& x, const Weight& w, const Mask&, const float* bias, const Tensor& y,
                       int threads);
  // dx = transposed conv(dy, W*M); dx is written whole.
  void (*conv_backward_input)(const Conv&, const Tensor& dy, const Weight& w, const Mask&, const Tensor& dx,
                              int threads);
  // ds (float32, may have null data) = dW_eff * W * map'(S); dw (weight's dtype) per `weight_grad`. Written whole.
  // An update, of the mask's scores, takes the place of ds, and each score sees it after all else that reads it.
  void (*conv_backward_weight)(const Conv&, const Tensor& dy, const Tensor& x, const Weight& w, const Mask&, ScoreMap,
                               const Tensor& ds, const ScoreUpdate&, WeightGrad weight_grad, const Tensor& dw,
                               int threads);

  // Inner loops of select (select.h), which runs its own threads.
  SelectKernels select;

  // Words first .. of a Bernoulli mask from n contiguous scores (draw.h).
  void (*draw)(const float* scores, int64_t n, int64_t first, uint64_t seed, uint8_t* bits);

  // Words of a cut's mask from n contiguous scores (mask_bits.h); the cut's index counts from the first of them.
  void (*mask_bits)(const float* scores, int64_t n, Of of, const Cut& cut, uint8_t* bits);

  // Inner loops of step (step.h), which runs its own threads.
  UpdateKernels update;
};

const Kernels* portable_kernels();
#if defined(__x86_64__)
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512bf16_kernels();
const Kernels* amx_kernels();
#endif

// Why this machine's widest instruction set is not the one in use, although the CPU has it; empty where it is, or where
// EDGEPOP_ISA names another.
const char* passed_over();

// The table in use. Throws std::runtime_error when EDGEPOP_ISA names a set this machine or this build lacks.
const Kernels& kernels();

}  // namespace edgepop::cpu
