// Codes: the ordered keys of keys.h as signed integers that three vector instructions make.
//
//   abs   max(magnitude + 0x7fffff, NaN's)      NaN -> 0x7ffffe, 0 -> 0x7fffff, inf -> 0x7fffffff
//   raw   max(+-magnitude + 0x7fffff, NaN's)    NaN -> -0x7f000002, -inf -> -0x7f000001, +-0 -> 0x7fffff, inf as abs
//
// Adding 0x7fffff wraps the positive NaNs, and no number, round to the negative end; max gives all NaNs one code.
// INT32_MIN is no code, so `code >= c` is `code > c - 1`, the one comparison that every instruction set has.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/keys.h"

namespace edgepop {

constexpr int32_t kZeroCode = 0x7fffff;
constexpr int32_t kHighestCode = INT32_MAX;  // +inf

EDGEPOP_HOST_DEVICE static inline constexpr int32_t lowest_code(Of of) { return of == Of::abs ? kZeroCode - 1 : -0x7f000002; }  // NaN

// A number's code; NaNs have some below those of all numbers, the one that stands for them all included.
EDGEPOP_HOST_DEVICE static inline int32_t loose_code(Of of, uint32_t bits) {
  const uint32_t sign = of == Of::raw ? 0u - (bits >> 31) : 0u;  // all ones where negative
  return static_cast<int32_t>((magnitude(bits) ^ sign) - sign + static_cast<uint32_t>(kZeroCode));
}

EDGEPOP_HOST_DEVICE static inline int32_t code_of_bits(Of of, uint32_t bits) {
  const int32_t code = loose_code(of, bits);
  return code > lowest_code(of) ? code : lowest_code(of);
}

EDGEPOP_HOST_DEVICE static inline int64_t key_of_code(Of of, int32_t code) {
  if (code == lowest_code(of)) return 0;
  const int64_t number = static_cast<int64_t>(code) - kZeroCode;
  if (of == Of::abs) return number + 1;
  return number < 0 ? 0x7fffffff + number : 0x80000000LL + number;
}

// False where `key` is no key of a score: a hint may hold anything.
EDGEPOP_HOST_DEVICE static inline bool code_of_key(Of of, int64_t key, int32_t* code) {
  if (key < 0 || key > 0xffffffffLL) return false;
  const int64_t number = of == Of::abs ? key - 1 : key < 0x80000000LL ? key - 0x7fffffff : key - 0x80000000LL;
  const int64_t image = number + kZeroCode;
  if (image < lowest_code(of) || image > kHighestCode) return false;
  *code = static_cast<int32_t>(image);
  return true;
}

// The code of the key nearest to this one that a score may have.
EDGEPOP_HOST_DEVICE static inline int32_t nearest_code(Of of, int64_t key) {
  const int64_t number = of == Of::abs ? key - 1 : key < 0x80000000LL ? key - 0x7fffffff : key - 0x80000000LL;
  const int64_t image = number + kZeroCode;
  if (image < lowest_code(of)) return lowest_code(of);
  return image > kHighestCode ? kHighestCode : static_cast<int32_t>(image);
}

}  // namespace edgepop
