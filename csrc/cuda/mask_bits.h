// The mask that a cut stands for, one bit for each weight, on a CUDA device.
#pragma once

#include <cstdint>

#include "common/keys.h"

namespace edgepop::cuda {

// Words of 32 bits of the packed mask of so many weights: zero behind the last weight, to the end of the last 64 and 64
// more.
constexpr int64_t mask_words(int64_t count) { return (count + 63) / 64 * 2 + 2; }

// What is packed and where it goes; everything is an address on the current device.
struct MaskBits {
  const float* scores;
  int64_t size[4];    // logical order, padded with ones in front; below 2^31 scores in all
  int64_t stride[4];  // elements; any, overlapping included
  Of of;              // abs or raw
  const Cut* cut;
  uint32_t* bits;  // [mask_words]: bit i of the sequence in logical order is bit i % 32 of word i / 32
};

// Writes all of the packed mask: the scores of a key above the cut's, and those equal to it up to the cut's index.
// Enqueued on `stream` (a cudaStream_t), nothing waited for; can be captured in a CUDA graph. Throws std::runtime_error
// where CUDA refuses it.
void mask_bits(const MaskBits& mask, void* stream);

}  // namespace edgepop::cuda
