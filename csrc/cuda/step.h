// One step of an optimizer on a CUDA device, and in the same launch the next cuts of the parameters that are scores.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "common/update.h"
#include "cuda/select.h"

namespace edgepop::cuda {

// What a launch takes along as arguments, so that nothing is copied to the device: 3.4 of the 4 KB there are.
constexpr int kMostParameters = 64;
constexpr int kMostSets = 8;

// Elements that a block updates at a time.
constexpr int64_t kStepChunk = 2048;

// What goes with a parameter; as many elements as the layer has, in the same order of memory, aligned to 16 bytes.
struct Parameter {
  const float* grad;
  float* moments[3];  // Sgd: the buffer; Adam: m, v and, for AMSGrad, the largest v. Null where there is none
  const Cut* hint;    // an earlier cut, or null
  uint32_t set;       // of coefficients
};

using Sets = std::variant<std::vector<Sgd>, std::vector<Adam>>;

// What those of Adam's coefficients follow from that change from step to step; decay: of AdamW, 0 for Adam.
struct Rates {
  double lr, beta1, beta2, decay;
};

// Numbers on the device that a parameter's coefficients follow from; null where they do not.
struct Source {
  float* count;     // of Adam's steps: made one more, then used
  const float* lr;  // in the place of the number that the host knows; Adam's only beside a count
};

// For a step that hangs on numbers of the device: a launch before it reads them, and the host never does.
struct Following {
  std::vector<Source> sources;  // of each parameter; none where the sets are all there is to know
  std::vector<Rates> rates;     // of each set; Sgd's are not read
  void* derived;                // room for the coefficients of each parameter
};

// Updates the layers of the selection, a parameter each; those with `kept` 0 are no scores, and get no cut. The cuts
// are those that `select` would find in the updated scores. Enqueued as `select` is.
void step(const Selection& selection, const std::vector<Parameter>& parameters, const Sets& sets,
          const Following& following, void* stream);

}  // namespace edgepop::cuda
