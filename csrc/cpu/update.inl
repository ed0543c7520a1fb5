// The kernels of update_kernels.h for one instruction set. Included by isa_kernels.inl.
#include "update_kernels.h"
#include "vec.h"

namespace edgepop::cpu::EDGEPOP_ISA {
namespace {

struct VecMath {
  using Value = Vec;
  static Vec all(float a) { return broadcast(a); }
  static Vec fma(Vec a, Vec b, Vec c) { return EDGEPOP_ISA::fma(a, b, c); }
  static Vec root(Vec a) { return square_root(a); }
  static Vec larger(Vec a, Vec b) { return (b <= a) | (a != a) ? a : b; }
};

// Calls run(i, n) for the vectors of [0, count); a whole vector's n is a constant, so that nothing of it is masked.
template <class Run>
inline void for_each_lanes(int64_t count, const Run& run) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) run(i, kLanes);
  if (i < count) run(i, count - i);
}

inline Vec load_lanes(const float* p, int64_t n) { return n == kLanes ? load(p) : load(p, n); }
inline void store_lanes(float* p, Vec a, int64_t n) { n == kLanes ? store(p, a) : store(p, a, n); }

void sgd(const Sgd& given, float* value, const float* grad, float* buffer, int64_t count) {
  const Sgd s = given;  // a copy: nothing that is stored can change it
  for_each_lanes(count, [&](int64_t i, int64_t n) {
    Vec p = load_lanes(value + i, n), b = zero();
    if (s.momentum != 0.0f && !s.first) b = load_lanes(buffer + i, n);
    update<VecMath>(s, load_lanes(grad + i, n), &p, &b);
    store_lanes(value + i, p, n);
    if (s.momentum != 0.0f) store_lanes(buffer + i, b, n);
  });
}

void adam(const Adam& given, float* value, const float* grad, float* m, float* v, float* largest, int64_t count) {
  const Adam s = given;
  for_each_lanes(count, [&](int64_t i, int64_t n) {
    Vec p = load_lanes(value + i, n), first = load_lanes(m + i, n), second = load_lanes(v + i, n), most = zero();
    if (largest != nullptr) most = load_lanes(largest + i, n);
    update<VecMath>(s, load_lanes(grad + i, n), &p, &first, &second, largest == nullptr ? nullptr : &most);
    store_lanes(value + i, p, n);
    store_lanes(m + i, first, n);
    store_lanes(v + i, second, n);
    if (largest != nullptr) store_lanes(largest + i, most, n);
  });
}

}  // namespace

constexpr UpdateKernels kUpdateKernels = {sgd, adam};

}  // namespace edgepop::cpu::EDGEPOP_ISA
