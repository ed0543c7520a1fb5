// The products that each instruction set compiles, and the micro-kernels that one may have from another.
#pragma once

#include <cstdint>

#include "common/conv.h"
#include "common/tensor.h"

namespace edgepop::cpu {

// Both are safe to call from any number of threads.
struct ForwardKernels {
  // y = conv(x, W*M) + bias; bias is float32 of out_channels or null. x, y: any strides. y is written whole.
  void (*conv_forward)(const Conv&, const Tensor& x, const Weight& w, const Mask&, const float* bias, const Tensor& y,
                       int threads);
  // dx = transposed conv(dy, W*M); dx is written whole.
  void (*conv_backward_input)(const Conv&, const Tensor& dy, const Weight& w, const Mask&, const Tensor& dx,
                              int threads);
};

// One call of a micro-kernel: M rows by N vectors of columns (microkernel.inl).
struct PanelProduct {
  const void* const* a;      // [taps][M] addresses of `depth` consecutive elements
  const void* const* ahead;  // [M] what the next call will read last, fetched meanwhile
  int64_t taps, depth;
  const void* panel;   // [taps][depth][N*kLanes] float32; pairs: [taps][ceil(depth/2)][N*kLanes][2] bfloat16
  float* const* c;     // [M] rows of the result
  int64_t column;      // first column in the rows of c (and of a, channelwise)
  const float* start;  // N*kLanes, or null: add to what c holds
  int64_t tail;        // columns of the last vector that exist
  int rows;            // M
  float* const* next_c;  // [M] rows of the next call's result, to be fetched too: `next_columns` from `next_column` on
  int64_t next_column, next_columns;
};

using MicroKernel = void (*)(const PanelProduct&);

// Micro-kernels of pairs for panels of 1 to 4 vectors, each for any number of rows up to `rows`.
struct TileKernels {
  int rows;
  MicroKernel run[4];
};

}  // namespace edgepop::cpu
