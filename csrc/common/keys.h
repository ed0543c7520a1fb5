// Ordered keys of float32 scores: unsigned integers whose order is the order of selection.
//
//   abs_key   NaN -> 0, then |s| ascending; -0.0 and 0.0 share a key
//   raw_key   NaN -> 0, then  s  ascending; -0.0 and 0.0 share a key
//
// Keys are made from bits, never by comparing floats, so flush-to-zero modes cannot change a mask.
// A cut is the pair (key, index): an element is kept when its key is above the cut's, or equal to it
// with a logical (contiguous order) index not above the cut's.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace edgepop {

enum class Of : int32_t { abs = 0, raw = 1, bits = 2 };

struct Cut {
  int64_t key;
  int64_t index;
};

EDGEPOP_HOST_DEVICE static inline uint32_t float_bits(float s) {
  uint32_t bits;
  std::memcpy(&bits, &s, sizeof bits);
  return bits;
}

// Magnitude bits: NaNs are the values above kInfBits.
constexpr uint32_t kInfBits = 0x7f800000u;

EDGEPOP_HOST_DEVICE static inline uint32_t magnitude(uint32_t bits) { return bits & 0x7fffffffu; }

// Monotone image of the number line: -inf -> 0x007fffff, -0.0 -> 0x7fffffff, 0.0 -> 0x80000000, +inf -> 0xff800000.
// The largest image is left free (a NaN's), so that an interval can hold nothing.
EDGEPOP_HOST_DEVICE static inline uint32_t monotone(uint32_t bits) {
  const uint32_t image = bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
  return image < 0xfffffffeu ? image : 0xfffffffeu;
}

EDGEPOP_HOST_DEVICE static inline uint32_t abs_key(uint32_t bits) {
  const uint32_t m = magnitude(bits);
  return m > kInfBits ? 0u : m + 1u;
}

EDGEPOP_HOST_DEVICE static inline uint32_t raw_key(uint32_t bits) {
  if (magnitude(bits) > kInfBits) return 0u;
  return magnitude(bits) == 0u ? 0x80000000u : monotone(bits);
}

// The mask as one unsigned comparison: an element is kept iff image(bits) - lo <= span, where image is
// `magnitude` (abs) or `monotone` (raw). Ties are settled by position, not by value: elements up to the
// cut's index use `up_to`, later ones `after`.
struct Interval {
  uint32_t lo;
  uint32_t span;
};

// Elements whose key is at least `key` (key <= 2^32; one above the largest key keeps nothing).
EDGEPOP_HOST_DEVICE static inline Interval at_least(Of of, int64_t key) {
  if (key <= 0) return {0u, 0xffffffffu};  // everything, NaN included
  const uint32_t top = of == Of::abs ? kInfBits : 0xff800000u;
  int64_t lo;
  if (of == Of::abs) {
    lo = key - 1;
  } else {
    lo = key < 0x007fffff ? 0x007fffff : key;  // negative NaNs lie below -inf
    if (lo == 0x80000000LL) lo = 0x7fffffff;   // -0.0 ties with 0.0
  }
  if (lo > static_cast<int64_t>(top)) return {0xffffffffu, 0u};  // no element has this image
  return {static_cast<uint32_t>(lo), top - static_cast<uint32_t>(lo)};
}

EDGEPOP_HOST_DEVICE static inline Interval up_to(Of of, const Cut& cut) { return at_least(of, cut.key); }
EDGEPOP_HOST_DEVICE static inline Interval after(Of of, const Cut& cut) { return at_least(of, cut.key + 1); }

}  // namespace edgepop
