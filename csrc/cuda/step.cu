#include "cuda/step.cuh"

#include <algorithm>

#include "cuda/derive.cuh"
#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "cuda/work.cuh"

namespace edgepop::cuda {
namespace {

// 2 fours of every operand are in flight for a thread: 96 bytes under SGD with momentum, 128 under Adam. With 512 threads
// a multiprocessor that is at least the 48 KB of selection, and leaves them the registers for it.
using StepShape = Shape<256, 2, kDigitBits, 1024>;
static_assert(StepShape::kChunk == kStepChunk);

template <class Coefficients, class Sets>
struct Arguments {
  Work work;
  Updating<Coefficients, Sets> updating;
};

template <class Coefficients, class Sets>
__global__ void __launch_bounds__(StepShape::kThreads, 2)
    step_kernel(const __grid_constant__ Arguments<Coefficients, Sets> arguments) {
  __shared__ Shared<StepShape> shared;
  Block block;
  Search<StepShape, Block>(block, arguments.work, shared).run(arguments.updating);
}

template <class Coefficients>
__global__ void __launch_bounds__(kMostParameters) derive_kernel(const __grid_constant__ Derivation<Coefficients> d) {
  Block block;
  derive(block, d);
}

template <class Coefficients, class Sets>
void launch(const Selection& selection, const Updating<Coefficients, Sets>& updating, void* stream) {
  using All = Arguments<Coefficients, Sets>;
  static_assert(sizeof(All) <= 4096, "more than every driver takes");
  launch_cooperative(step_kernel<Coefficients, Sets>, StepShape::kThreads, selection.chunk_count,
                     All{work_of(selection), updating}, stream);
}

template <class Coefficients>
void launch(const Selection& selection, const std::vector<Parameter>& parameters, const std::vector<Coefficients>& sets,
            const Following& following, void* stream) {
  if (following.sources.empty()) {
    Updating<Coefficients> updating = {};
    std::copy(parameters.begin(), parameters.end(), updating.parameters);
    std::copy(sets.begin(), sets.end(), updating.sets);
    return launch(selection, updating, stream);
  }
  const Derivation<Coefficients> derivation = derivation_of(parameters, sets, following);
  static_assert(sizeof(derivation) <= 4096, "more than every driver takes");
  derive_kernel<<<1, kMostParameters, 0, static_cast<cudaStream_t>(stream)>>>(derivation);
  check(cudaGetLastError(), "derive_kernel");
  launch(selection, updating_by(derivation, parameters), stream);
}

}  // namespace

void step(const Selection& selection, const std::vector<Parameter>& parameters, const Sets& sets,
          const Following& following, void* stream) {
  std::visit([&](const auto& coefficients) { launch(selection, parameters, coefficients, following, stream); }, sets);
}

}  // namespace edgepop::cuda
