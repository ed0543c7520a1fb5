// One step of an optimizer as a way to read scores: the first pass of the search for the new scores' cuts updates them.
#pragma once

#include <cmath>

#include "common/update.h"
#include "cuda/search.cuh"
#include "cuda/step.h"

namespace edgepop::cuda {

struct FloatMath {
  using Value = float;
  EDGEPOP_HOST_DEVICE static float all(float a) { return a; }
  EDGEPOP_HOST_DEVICE static float fma(float a, float b, float c) { return fmaf(a, b, c); }
  EDGEPOP_HOST_DEVICE static float root(float a) { return sqrtf(a); }
  EDGEPOP_HOST_DEVICE static float larger(float a, float b) { return b <= a || a != a ? a : b; }
};

struct alignas(16) Floats {
  float at[4];
};

// Elements of a parameter and what goes with them: fours of floats, or one of each.
template <class Elements>
struct Updated {
  Elements value, grad, moments[3];
};

// Sets: the launch's own, or an address on the device.
template <class Coefficients, class Sets = Coefficients[kMostSets]>
struct Updating {
  Parameter parameters[kMostParameters];
  Sets sets;

  using Held = Updated<Floats>;

  EDGEPOP_DEVICE const Cut* hint(uint32_t l) const { return parameters[l].hint; }

  EDGEPOP_DEVICE Held load(const uint32_t* scores, uint32_t l, uint32_t position) const {
    return read<Floats>(scores, l, position);
  }

  EDGEPOP_DEVICE Four take(const Held& held, uint32_t* scores, uint32_t l, uint32_t position) const {
    Held e = held;
    EDGEPOP_UNROLL
    for (int c = 0; c < 4; ++c) {
      step(l, e.grad.at[c], &e.value.at[c], &e.moments[0].at[c], &e.moments[1].at[c], &e.moments[2].at[c]);
    }
    write(e, scores, l, position);
    Four bits;
    EDGEPOP_UNROLL
    for (int c = 0; c < 4; ++c) bits.at[c] = float_bits(e.value.at[c]);
    return bits;
  }

  EDGEPOP_DEVICE uint32_t one(uint32_t* scores, uint32_t l, uint32_t position) const {
    Updated<float> e = read<float>(scores, l, position);
    step(l, e.grad, &e.value, &e.moments[0], &e.moments[1], &e.moments[2]);
    write(e, scores, l, position);
    return float_bits(e.value);
  }

 private:
  template <class Elements>
  EDGEPOP_DEVICE Updated<Elements> read(const uint32_t* scores, uint32_t l, uint32_t position) const {
    const Parameter& p = parameters[l];
    Updated<Elements> e;
    e.value = *reinterpret_cast<const Elements*>(scores + position);
    e.grad = *reinterpret_cast<const Elements*>(p.grad + position);
    EDGEPOP_UNROLL
    for (int m = 0; m < kMoments; ++m) {
      e.moments[m] = {};
      if (p.moments[m] != nullptr) e.moments[m] = *reinterpret_cast<const Elements*>(p.moments[m] + position);
    }
    return e;
  }

  template <class Elements>
  EDGEPOP_DEVICE void write(const Updated<Elements>& e, uint32_t* scores, uint32_t l, uint32_t position) const {
    const Parameter& p = parameters[l];
    *reinterpret_cast<Elements*>(scores + position) = e.value;
    EDGEPOP_UNROLL
    for (int m = 0; m < kMoments; ++m) {
      if (p.moments[m] != nullptr) *reinterpret_cast<Elements*>(p.moments[m] + position) = e.moments[m];
    }
  }

  EDGEPOP_DEVICE void step(uint32_t l, float grad, float* value, float* first, float* second, float* largest) const {
    const Parameter& p = parameters[l];
    if constexpr (kMoments == 1) {
      update<FloatMath>(sets[p.set], grad, value, first);
    } else if (p.moments[2] == nullptr) {  // a branch of its own: a pointer that may be null would go through memory
      update<FloatMath>(sets[p.set], grad, value, first, second, nullptr);
    } else {
      update<FloatMath>(sets[p.set], grad, value, first, second, largest);
    }
  }

  static constexpr int kMoments = std::is_same_v<Coefficients, Sgd> ? 1 : 3;
};

}  // namespace edgepop::cuda
