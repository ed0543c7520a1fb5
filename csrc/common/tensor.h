// What a kernel is told about its operands: addresses, types, strides. No torch types cross this line.
#pragma once

#include <cstdint>

#include "common/keys.h"

namespace edgepop {

// Bytes of a packed mask: whole words, and one that may be read behind them.
constexpr int64_t packed_bytes(int64_t count) { return (count + 63) / 64 * 8 + 8; }

enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

// Strides count elements and follow the logical order: N, C, H, W for activations, O, I, KH, KW for weights.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride[4] = {0, 0, 0, 0};
};

// The weight of a layer. With `signs` it is of one magnitude c >= 0 and not stored as a tensor: `data` is the address
// of c, of `dtype`, and element i of the logical order is -c where bit i of `signs`, packed as a mask's bits are, is
// set, else c. Its mask is bits then wherever a product asks for it, and it has no gradient.
struct Weight : Tensor {
  const uint8_t* signs = nullptr;
};

// The mask of a weight, never stored as a tensor of the weight's type.
//   abs, raw   `data` holds float32 scores with their own strides, `cut` the selection's result
//   bits       `data` holds one bit per weight, logical order, bit i in byte i/8 at position i%8, readable for
//              8 bytes past the last bit
struct Mask {
  Of of = Of::abs;
  const void* data = nullptr;
  int64_t stride[4] = {0, 0, 0, 0};
  const Cut* cut = nullptr;
  // For abs: the scores' sign bits where a selection has written them (cpu/select/select.h), packed as bits are. With
  // them the gradient of contiguous scores needs no other word of them.
  const uint8_t* signs = nullptr;
};

// dS = dW_eff * W * map'(S) for every edge.
enum class ScoreMap : int32_t { abs = 0, identity = 1, sigmoid = 2 };

// dW = dW_eff where kept (weights trained beside a mask) or everywhere (weights that score themselves).
enum class WeightGrad : int32_t { none = 0, kept = 1, all = 2 };

}  // namespace edgepop
