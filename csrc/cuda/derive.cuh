// Coefficients that follow from numbers on the device, finished there: by a launch of its own, before the step's.
#pragma once

#include <algorithm>
#include <cmath>

#include "cuda/step.cuh"

namespace edgepop::cuda {

// What the launch takes along; one thread for each parameter.
template <class Coefficients>
struct Derivation {
  Source sources[kMostParameters];
  uint32_t set_of[kMostParameters];
  Coefficients sets[kMostSets];
  Rates rates[kMostSets];
  uint32_t parameter_count;
  Coefficients* derived;  // [parameter_count]
};

EDGEPOP_DEVICE inline void derive(const Rates&, const Source& source, Sgd* s) {
  if (source.lr != nullptr) s->lr = *source.lr;
}

// In double, as the host does it: in float32 1 - 0.999 has lost 5 of its 7 digits.
EDGEPOP_DEVICE inline void derive(const Rates& rates, const Source& source, Adam* s) {
  if (source.count == nullptr) return;
  const double count = *source.count += 1;
  const double lr = source.lr == nullptr ? rates.lr : *source.lr;
  s->step_size = static_cast<float>(lr / (1 - pow(rates.beta1, count)));
  s->correction = static_cast<float>(1 / sqrt(1 - pow(rates.beta2, count)));
  s->shrink = static_cast<float>(1 - lr * rates.decay);
}

template <class Coefficients, class Block>
EDGEPOP_DEVICE void derive(Block& block, const Derivation<Coefficients>& d) {
  const uint32_t i = static_cast<uint32_t>(block.thread());
  if (i >= d.parameter_count) return;
  const uint32_t set = d.set_of[i];
  Coefficients own = d.sets[set];
  derive(d.rates[set], d.sources[i], &own);
  d.derived[i] = own;
}

// The launch's arguments, and those of the step's launch behind it.
template <class Coefficients>
Derivation<Coefficients> derivation_of(const std::vector<Parameter>& parameters, const std::vector<Coefficients>& sets,
                                       const Following& following) {
  Derivation<Coefficients> d = {};
  std::copy(following.sources.begin(), following.sources.end(), d.sources);
  std::transform(parameters.begin(), parameters.end(), d.set_of, [](const Parameter& p) { return p.set; });
  std::copy(sets.begin(), sets.end(), d.sets);
  std::copy(following.rates.begin(), following.rates.end(), d.rates);
  d.parameter_count = static_cast<uint32_t>(parameters.size());
  d.derived = static_cast<Coefficients*>(following.derived);
  return d;
}

template <class Coefficients>
Updating<Coefficients, const Coefficients*> updating_by(const Derivation<Coefficients>& d,
                                                        const std::vector<Parameter>& parameters) {
  Updating<Coefficients, const Coefficients*> updating = {};
  std::copy(parameters.begin(), parameters.end(), updating.parameters);
  for (uint32_t i = 0; i < d.parameter_count; ++i) updating.parameters[i].set = i;
  updating.sets = d.derived;
  return updating;
}

}  // namespace edgepop::cuda
