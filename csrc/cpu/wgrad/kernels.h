// The weight gradient that each instruction set compiles.
#pragma once

#include <cstdint>

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

// What the weight gradient of avx512bf16 asks of AMX tiles (tiled.inl): sums of some rows by up to 64 lanes over runs of
// positions, of bfloat16 pairs.
struct TiledRuns {
  const uint32_t* rows;   // [row][row_pitch] pairs, from the first run on; of rows up to a multiple of 16
  const uint32_t* lanes;  // [position][lane_pitch] pairs, from the first run on
  int64_t row_pitch, lane_pitch;
  int64_t lines, count;           // runs, and positions of each
  int64_t rows_step, lanes_step;  // positions from one run to the next
  int64_t tiles, vectors;         // of 16 rows, and of 16 lanes: 1 to 4
  float* sums;                    // [tile][16][64], the first axis in steps of tile_step
  int64_t tile_step;
  bool add;  // to what the sums hold, or write them
};
using MultiplyTiled = void (*)(const TiledRuns&);

}  // namespace edgepop::cpu
