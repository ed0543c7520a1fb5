// A layer as the CUDA kernels see it: scores that fill their memory without gaps, in any order of four dimensions.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/keys.h"

namespace edgepop::cuda {

// Scores that a thread reads with one instruction, as bits.
struct alignas(16) Four {
  uint32_t at[4];
};

// A row of the table that the caller makes, once for a network: 64-bit words. One more row past the last layer
// holds the number of all chunks in `first_chunk`.
struct Layer {
  int64_t offset;  // of the scores' bits from where all are counted from, in elements: a multiple of 4
  int64_t count;   // below 2^31
  int64_t kept;    // 0 .. count
  int64_t raw;     // whether s is ranked, not |s|
  int64_t first_chunk;
  int64_t first_candidate;
  int64_t capacity;         // candidates it has room for
  int64_t size[3];          // of the inner three dimensions in memory
  int64_t index_stride[4];  // of the logical index, from the outermost dimension in memory inwards
  int64_t index_bits;       // every logical index is below 2^index_bits

  // Logical index of the score at this place in memory.
  EDGEPOP_HOST_DEVICE uint32_t index(uint32_t position) const {
    uint32_t index = 0;
    for (int d = 2; d >= 0; --d) {
      const uint32_t n = static_cast<uint32_t>(size[d]);
      index += position % n * static_cast<uint32_t>(index_stride[d + 1]);
      position /= n;
    }
    return index + position * static_cast<uint32_t>(index_stride[0]);
  }

  EDGEPOP_HOST_DEVICE int key_bits() const { return raw ? 32 : 31; }

  // The order of selection as one number, distinct for every score: the key, then the lower index first.
  EDGEPOP_HOST_DEVICE uint64_t composite(uint32_t bits, uint32_t position) const {
    const uint64_t key = raw ? raw_key(bits) : abs_key(bits);
    return ((key + 1) << index_bits) - 1 - index(position);
  }

  EDGEPOP_HOST_DEVICE Cut cut_at(uint64_t composite) const {
    const uint64_t last = (uint64_t{1} << index_bits) - 1;
    return {static_cast<int64_t>(composite >> index_bits), static_cast<int64_t>(last - (composite & last))};
  }
};

}  // namespace edgepop::cuda
