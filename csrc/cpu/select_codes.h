// Codes: the ordered keys of keys.h as signed integers that three vector instructions make.
//
//   abs   max(magnitude + 0x7fffff, NaN's)      NaN -> 0x7ffffe, 0 -> 0x7fffff, inf -> 0x7fffffff
//   raw   max(+-magnitude + 0x7fffff, NaN's)    NaN -> -0x7f000002, -inf -> -0x7f000001, +-0 -> 0x7fffff, inf as abs
//
// Adding 0x7fffff wraps the positive NaNs, and no number, round to the negative end; max gives all NaNs one code.
// INT32_MIN is no code, so `code >= c` is `code > c - 1`, the one comparison that every instruction set has.
#pragma once

#include <cstdint>

#include "../common/keys.h"

namespace edgepop::cpu {

constexpr int32_t kZeroCode = 0x7fffff;
constexpr int32_t kHighestCode = INT32_MAX;  // +inf

static inline constexpr int32_t lowest_code(Of of) { return of == Of::abs ? kZeroCode - 1 : -0x7f000002; }  // NaN

static inline int32_t code_of_bits(Of of, uint32_t bits) {
  const uint32_t m = magnitude(bits);
  const uint32_t number = of == Of::raw && bits != m ? 0u - m : m;
  const int32_t code = static_cast<int32_t>(number + static_cast<uint32_t>(kZeroCode));
  return code > lowest_code(of) ? code : lowest_code(of);
}

static inline int64_t key_of_code(Of of, int32_t code) {
  if (code == lowest_code(of)) return 0;
  const int64_t number = static_cast<int64_t>(code) - kZeroCode;
  if (of == Of::abs) return number + 1;
  return number < 0 ? 0x7fffffff + number : 0x80000000LL + number;
}

// False where `key` is no key of a score: a hint may hold anything.
static inline bool code_of_key(Of of, int64_t key, int32_t* code) {
  if (key < 0 || key > 0xffffffffLL) return false;
  const int64_t number = of == Of::abs ? key - 1 : key < 0x80000000LL ? key - 0x7fffffff : key - 0x80000000LL;
  const int64_t image = number + kZeroCode;
  if (image < lowest_code(of) || image > kHighestCode) return false;
  *code = static_cast<int32_t>(image);
  return true;
}

}  // namespace edgepop::cpu
