#include "step.cuh"

#include <algorithm>

#include "device.cuh"
#include "launch.h"
#include "work.cuh"

namespace edgepop::cuda {
namespace {

// 2 fours of every operand are in flight for a thread: 96 bytes under SGD with momentum, 128 under Adam. With 512 threads
// a multiprocessor that is at least the 48 KB of selection, and leaves them the registers for it.
using StepShape = Shape<256, 2, kDigitBits, 1024>;
static_assert(StepShape::kChunk == kStepChunk);

template <class Coefficients>
struct Arguments {
  Work work;
  Updating<Coefficients> updating;
};
static_assert(sizeof(Arguments<Adam>) <= 4096, "more than every driver takes");

template <class Coefficients>
__global__ void __launch_bounds__(StepShape::kThreads, 2)
    step_kernel(const __grid_constant__ Arguments<Coefficients> arguments) {
  __shared__ Shared<StepShape> shared;
  Block block;
  Search<StepShape, Block>(block, arguments.work, shared).run(arguments.updating);
}

template <class Coefficients>
void launch(const Selection& selection, const std::vector<Parameter>& parameters, const std::vector<Coefficients>& sets,
            void* stream) {
  Arguments<Coefficients> arguments = {};
  arguments.work = work_of(selection);
  std::copy(parameters.begin(), parameters.end(), arguments.updating.parameters);
  std::copy(sets.begin(), sets.end(), arguments.updating.sets);
  launch_cooperative(step_kernel<Coefficients>, StepShape::kThreads, selection.chunk_count, arguments, stream);
}

}  // namespace

void step(const Selection& selection, const std::vector<Parameter>& parameters, const Sets& sets, void* stream) {
  std::visit([&](const auto& coefficients) { launch(selection, parameters, coefficients, stream); }, sets);
}

}  // namespace edgepop::cuda
