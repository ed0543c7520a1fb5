// Sums of a block's scores. Each loop adds one number to each of many: in vectors, the order that the reference names
// stays what it is.
#pragma once

#include "cpu/select/kernels.h"

namespace edgepop::cpu::EDGEPOP_ISA::select {

template <Of of>
static inline float magnitude(float s) {
  return of == Of::abs ? __builtin_fabsf(s) : s;
}

static void magnitudes(const float* a, int64_t n, Of of, float* __restrict y) {
  if (of == Of::abs) {
    for (int64_t i = 0; i < n; ++i) y[i] = magnitude<Of::abs>(a[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = a[i];
  }
}

template <Of of>
static inline void add_magnitudes_of(const float* a, const float* b, int64_t n, float* __restrict y) {
  for (int64_t i = 0; i < n; ++i) y[i] = magnitude<of>(a[i]) + magnitude<of>(b[i]);
}

static void add_magnitudes(const float* a, const float* b, int64_t n, Of of, float* y) {
  of == Of::abs ? add_magnitudes_of<Of::abs>(a, b, n, y) : add_magnitudes_of<Of::raw>(a, b, n, y);
}

static void add_onto(const float* a, int64_t n, float* __restrict y) {
  for (int64_t i = 0; i < n; ++i) y[i] += a[i];
}

// The sum of kN numbers `apart` from each other, in halves, which are unrolled.
template <int kN>
static inline float halves_of(const float* x, int64_t apart) {
  if constexpr (kN == 1) {
    return x[0];
  } else {
    constexpr int kHalf = kN > 16 ? 16 : kN > 8 ? 8 : kN > 4 ? 4 : kN > 2 ? 2 : 1;
    float half[kHalf];
    for (int i = 0; i < kHalf; ++i) half[i] = i < kN - kHalf ? x[i * apart] + x[(kHalf + i) * apart] : x[i * apart];
    return halves_of<kHalf>(half, 1);
  }
}

// With kN, up to 32, known here neighbouring sums share a vector: `fold` without the way through memory.
template <int kN>
static void fold_of(const float* x, int64_t outer, int64_t inner, float* __restrict y) {
  if (inner == 1) {
    for (int64_t o = 0; o < outer; ++o) y[o] = halves_of<kN>(x + o * kN, 1);
    return;
  }
  for (int64_t o = 0; o < outer; ++o, x += kN * inner, y += inner) {
    for (int64_t i = 0; i < inner; ++i) y[i] = halves_of<kN>(x + i, inner);
  }
}

static void fold(float* x, int64_t outer, int64_t n, int64_t inner, float* y) {
  switch (n) {
    case 2: return fold_of<2>(x, outer, inner, y);
    case 3: return fold_of<3>(x, outer, inner, y);
    case 4: return fold_of<4>(x, outer, inner, y);
    case 5: return fold_of<5>(x, outer, inner, y);
    case 7: return fold_of<7>(x, outer, inner, y);
    case 8: return fold_of<8>(x, outer, inner, y);
    case 16: return fold_of<16>(x, outer, inner, y);
    case 32: return fold_of<32>(x, outer, inner, y);
    default: break;
  }
  for (int64_t o = 0; o < outer; ++o, x += n * inner, y += inner) {
    int64_t left = n, half = 1;
    while (2 * half < n) half *= 2;
    for (; left > 1; left = half, half /= 2) add_onto(x + half * inner, (left - half) * inner, x);
    for (int64_t i = 0; i < inner; ++i) y[i] = x[i];
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::select
