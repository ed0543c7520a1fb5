// One step of an optimizer on one element, or on one vector of them: the arithmetic of every backend.
//
// The formulas are torch.optim's, with the same roundings where torch's CPU kernels have one instruction for a product
// and a sum. `Math` says what a value is (a float, a vector of floats) and has, beside the operators + - * /,
//
//   Value all(float)               the same number in every lane
//   Value fma(Value a, b, c)       a * b + c, rounded once where the machine can
//   Value root(Value)              the square root, correctly rounded
//   Value larger(Value a, b)       the larger of both, NaN where one is NaN
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace edgepop {

// Stochastic gradient descent (torch.optim.SGD): with the gradient g of a parameter p and its momentum buffer b
//
//   g = sign * g + weight_decay * p      b = momentum * b + fresh * g, or g in the first step
//   p = p - lr * (b, or g + momentum * b under Nesterov)
struct Sgd {
  float lr;
  float momentum;      // 0: there is no buffer
  float fresh;         // 1 - dampening
  float weight_decay;  // 0 adds nothing, also to an infinite p
  float sign;          // -1 to maximize, else 1
  bool nesterov;
  bool first;  // the buffer holds nothing yet
};

// Adam (Kingma and Ba 2015, Algorithm 1) and AdamW (Loshchilov and Hutter 2019): with the averages m of g, v of g^2
//
//   m = m + (1 - beta1) * (g - m)        v = beta2 * v + (1 - beta2) * g^2
//   p = p - step_size * m / (sqrt(v) / correction + eps)
//
// AMSGrad (Reddi et al. 2018) puts the largest v so far in v's place. The host corrects the averages' bias.
struct Adam {
  float step_size;     // lr / (1 - beta1^t), t = 1 in the first step
  float correction;    // 1 / sqrt(1 - beta2^t)
  float fresh1;        // 1 - beta1
  float stale1;        // -beta1
  float beta2;
  float fresh2;        // 1 - beta2
  float eps;
  float weight_decay;  // of Adam: added to the gradient; 0 adds nothing
  float shrink;        // of AdamW: 1 - lr * weight_decay; 1 for Adam
  float sign;          // -1 to maximize, else 1
};

// One of them with its numbers.
struct Update {
  enum class Kind : int32_t { sgd, adam };
  Kind kind = Kind::sgd;
  union {
    Sgd sgd = {};
    Adam adam;
  };
};

// use(its numbers): the one place that asks which optimizer an update is of.
template <class Use>
static inline auto visit(const Update& u, const Use& use) {
  return u.kind == Update::Kind::sgd ? use(u.sgd) : use(u.adam);
}

// `buffer` may be null without momentum.
template <class Math>
EDGEPOP_HOST_DEVICE static inline void update(const Sgd& s, typename Math::Value g, typename Math::Value* p,
                                              typename Math::Value* buffer) {
  g = Math::all(s.sign) * g;
  if (s.weight_decay != 0.0f) g = Math::fma(Math::all(s.weight_decay), *p, g);
  if (s.momentum != 0.0f) {
    *buffer = s.first ? g : Math::fma(Math::all(s.fresh), g, Math::all(s.momentum) * *buffer);
    g = s.nesterov ? Math::fma(Math::all(s.momentum), *buffer, g) : *buffer;
  }
  *p = Math::fma(Math::all(-s.lr), g, *p);
}

// `largest` is null but for AMSGrad.
template <class Math>
EDGEPOP_HOST_DEVICE static inline void update(const Adam& s, typename Math::Value g, typename Math::Value* p,
                                              typename Math::Value* m, typename Math::Value* v,
                                              typename Math::Value* largest) {
  g = Math::all(s.sign) * g;
  *p = Math::all(s.shrink) * *p;
  if (s.weight_decay != 0.0f) g = Math::fma(Math::all(s.weight_decay), *p, g);
  // From the nearer end, so that beta1 = 0 gives g itself.
  const typename Math::Value change = g - *m;
  *m = s.fresh1 < 0.5f ? Math::fma(Math::all(s.fresh1), change, *m) : Math::fma(Math::all(s.stale1), change, g);
  *v = Math::fma(Math::all(s.fresh2) * g, g, Math::all(s.beta2) * *v);
  if (largest != nullptr) *largest = Math::larger(*largest, *v);
  const typename Math::Value spread = Math::root(largest != nullptr ? *largest : *v);
  const typename Math::Value scale = Math::fma(Math::all(s.correction), spread, Math::all(s.eps));
  *p = Math::fma(Math::all(-s.step_size), *m / scale, *p);
}

}  // namespace edgepop
