// A selection as its kernels take it.
#pragma once

#include "cuda/search.cuh"
#include "cuda/select.h"

namespace edgepop::cuda {

// A digit's histogram is 8 KB of shared memory; two digits leave 2^10 keys, a binade's 8192nd part.
constexpr int kDigitBits = 11;
constexpr int64_t kProgressWords = sizeof(Progress) / 4;
constexpr int64_t kGridWords = kMostPasses + 2;  // the counters of all blocks
static_assert(kGridWords % 2 == 0, "Progress, which follows them, holds 64-bit words");

inline Work work_of(const Selection& s) {
  uint32_t* const progress = s.scratch + kGridWords;
  return {s.scores,
          s.layers,
          static_cast<uint32_t>(s.layer_count),
          static_cast<uint32_t>(s.chunk_count),
          s.cuts,
          s.candidates,
          s.scratch,
          s.scratch + 1,
          reinterpret_cast<Progress*>(progress),
          progress + s.layer_count * kProgressWords};
}

}  // namespace edgepop::cuda
