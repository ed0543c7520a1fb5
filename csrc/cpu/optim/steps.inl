// An optimizer's step on a vector of elements; `update_range` takes it over a run of them.
#pragma once

#include "cpu/optim/kernels.h"
#include "cpu/simd/vec.h"

namespace edgepop::cpu::EDGEPOP_ISA::optim {

struct VecMath {
  using Value = Vec;
  static Vec all(float a) { return broadcast(a); }
  static Vec fma(Vec a, Vec b, Vec c) { return EDGEPOP_ISA::fma(a, b, c); }
  static Vec root(Vec a) { return square_root(a); }
  static Vec larger(Vec a, Vec b) { return ((b <= a) | (a != a)) ? a : b; }
};

// Updates n <= kLanes elements from the i-th on. Copies: nothing that is stored can change them.
struct SgdStep {
  Sgd s;
  Elements e;

  void operator()(int64_t i, int64_t n) const {
    const bool remembers = s.momentum != 0.0f;
    __builtin_prefetch(e.grad + i + kScanAhead);
    if (remembers) __builtin_prefetch(e.moments[0] + i + kScanAhead);
    Vec p = load_some(e.value + i, n), b = zero();
    if (remembers && !s.first) b = load_some(e.moments[0] + i, n);
    update<VecMath>(s, load_some(e.grad + i, n), &p, &b);
    store_some(e.value + i, p, n);
    if (remembers) store_some(e.moments[0] + i, b, n);
  }
};

struct AdamStep {
  Adam s;
  Elements e;

  void operator()(int64_t i, int64_t n) const {
    float *const m_at = e.moments[0] + i, *const v_at = e.moments[1] + i;
    const bool amsgrad = e.moments[2] != nullptr;
    __builtin_prefetch(e.grad + i + kScanAhead);
    __builtin_prefetch(m_at + kScanAhead);
    __builtin_prefetch(v_at + kScanAhead);
    Vec p = load_some(e.value + i, n), m = load_some(m_at, n), v = load_some(v_at, n), largest = zero();
    if (amsgrad) largest = load_some(e.moments[2] + i, n);
    update<VecMath>(s, load_some(e.grad + i, n), &p, &m, &v, amsgrad ? &largest : nullptr);
    store_some(e.value + i, p, n);
    store_some(m_at, m, n);
    store_some(v_at, v, n);
    if (amsgrad) store_some(e.moments[2] + i, largest, n);
  }
};

static inline SgdStep step_of(const Sgd& s, const Elements& e) { return {s, e}; }
static inline AdamStep step_of(const Adam& s, const Elements& e) { return {s, e}; }

// Elements [begin, begin + count).
template <class Step>
static inline void update_range(const Step& step, int64_t begin, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) step(begin + i, kLanes);
  if (i < count) step(begin + i, count - i);
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::optim
