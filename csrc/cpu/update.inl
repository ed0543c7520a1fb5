// The kernels of update_kernels.h for one instruction set. Included by isa_kernels.inl, after those of selection.
#include "update_kernels.h"

namespace edgepop::cpu::EDGEPOP_ISA {
namespace {

struct VecMath {
  using Value = Vec;
  static Vec all(float a) { return broadcast(a); }
  static Vec fma(Vec a, Vec b, Vec c) { return EDGEPOP_ISA::fma(a, b, c); }
  static Vec root(Vec a) { return square_root(a); }
  static Vec larger(Vec a, Vec b) { return (b <= a) | (a != a) ? a : b; }
};

// Whole vectors are told by a constant n: nothing of them is masked.
inline Vec load_lanes(const float* p, int64_t n) { return n == kLanes ? load(p) : load(p, n); }
inline void store_lanes(float* p, Vec a, int64_t n) { n == kLanes ? store(p, a) : store(p, a, n); }

// Updates n <= kLanes elements from the i-th on. Copies: nothing that is stored can change them.
struct SgdStep {
  Sgd s;
  Elements e;

  void operator()(int64_t i, int64_t n) const {
    const bool remembers = s.momentum != 0.0f;
    __builtin_prefetch(e.grad + i + kScanAhead);
    if (remembers) __builtin_prefetch(e.moments[0] + i + kScanAhead);
    Vec p = load_lanes(e.value + i, n), b = zero();
    if (remembers && !s.first) b = load_lanes(e.moments[0] + i, n);
    update<VecMath>(s, load_lanes(e.grad + i, n), &p, &b);
    store_lanes(e.value + i, p, n);
    if (remembers) store_lanes(e.moments[0] + i, b, n);
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
    Vec p = load_lanes(e.value + i, n), m = load_lanes(m_at, n), v = load_lanes(v_at, n), largest = zero();
    if (amsgrad) largest = load_lanes(e.moments[2] + i, n);
    update<VecMath>(s, load_lanes(e.grad + i, n), &p, &m, &v, amsgrad ? &largest : nullptr);
    store_lanes(e.value + i, p, n);
    store_lanes(m_at, m, n);
    store_lanes(v_at, v, n);
    if (amsgrad) store_lanes(e.moments[2] + i, largest, n);
  }
};

inline SgdStep step_of(const Sgd& s, const Elements& e) { return {s, e}; }
inline AdamStep step_of(const Adam& s, const Elements& e) { return {s, e}; }

// Elements [begin, begin + count).
template <class Step>
inline void update_range(const Step& step, int64_t begin, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) step(begin + i, kLanes);
  if (i < count) step(begin + i, count - i);
}

template <class Step>
struct Updating {
  static constexpr int64_t kStreams = 2;  // of each array: four are 5 % slower than two
  Step step;
  void operator()(int64_t i, int64_t count) const { update_range(step, i, count); }
};

template <class Step>
void update_all(const Step& step, int64_t n) {
  const int64_t blocks = n / kBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t i = visited<Updating<Step>::kStreams>(b, blocks);
    prefetch_block(step.e.value + i);
    update_range(step, i, kBlock);
  }
  update_range(step, blocks * kBlock, n % kBlock);
}

template <class Step>
Tally update_scan(const Step& step, int64_t n, Of of, Bracket bracket, int32_t* inside, const Marks& marks) {
  return scan_after(Updating<Step>{step}, step.e.value, n, of, bracket, inside, marks);
}

void step(const Update& u, const Elements& e, int64_t n) {
  visit(u, [&](const auto& s) { update_all(step_of(s, e), n); });
}

Tally step_scan(const Update& u, const Elements& e, int64_t n, Of of, Bracket bracket, int32_t* inside,
                const Marks& marks) {
  return visit(u, [&](const auto& s) { return update_scan(step_of(s, e), n, of, bracket, inside, marks); });
}

}  // namespace

constexpr UpdateKernels kUpdateKernels = {step, step_scan};

}  // namespace edgepop::cpu::EDGEPOP_ISA
