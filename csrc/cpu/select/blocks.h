// Masks that keep whole blocks of a layer's weights: the sum of each, and the mask of those that a cut keeps.
#pragma once

#include <cstdint>

#include "common/keys.h"

namespace edgepop::cpu {

constexpr int kBlockDims = 5;

// A weight of count[d] * size[d] elements in each dimension d, cut into blocks of size[d], at least 1: trailing
// dimensions that a weight has not are 1 of 1.
struct Blocks {
  int64_t count[kBlockDims], size[kBlockDims];

  int64_t blocks() const { return count[0] * row_blocks(); }
  int64_t row_blocks() const { return count[1] * count[2] * count[3] * count[4]; }
  // Elements of one index of the first dimension, or of the first two.
  int64_t row() const { return count[1] * size[1] * place(); }
  int64_t place() const { return count[2] * size[2] * count[3] * size[3] * count[4] * size[4]; }
  int64_t elements() const { return count[0] * size[0] * row(); }
};

// sums: a float for each block, in their order, of |s| where `of` is abs, else of s. Added in the order that the
// reference names (edgepop_kernels/reference.py): one dimension after the other, from the first, each in halves.
// scores: float32 of four dimensions, any strides, as many as the blocks have elements.
void block_sums(const float* scores, const int64_t (&size)[4], const int64_t (&stride)[4], Of of, const Blocks& blocks,
                float* sums, int threads);

// bits: packed in logical order, bit i of byte i / 8 at position i % 8, packed_bytes(elements) bytes, written whole. A
// bit is set where the cut keeps the sum of its block.
void block_bits(const float* sums, const Cut& cut, const Blocks& blocks, uint8_t* bits, int threads);

}  // namespace edgepop::cpu
