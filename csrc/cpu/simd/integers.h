// Arithmetic on sizes. Kernel sources take none of std: what they instantiate of it the linker merges across units.
#pragma once

#include <cstdint>

namespace edgepop::cpu::EDGEPOP_ISA {

struct Range {
  int64_t begin, end;
};

static constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // a >= 0
static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static constexpr int64_t gcd(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
