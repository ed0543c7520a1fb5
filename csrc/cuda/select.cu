#include "cuda/select.h"

#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "cuda/work.cuh"

namespace edgepop::cuda {
namespace {

// 4 reads of 16 bytes in flight for each of 768 threads a multiprocessor: 48 KB. Latency times bandwidth asks for about
// 30 KB on an H200, less on an A100.
using SelectShape = Shape<256, 4, kDigitBits, 1024>;
static_assert(SelectShape::kChunk == kSelectChunk);

struct Arguments {
  Work work;
  Reading reading;
};

__global__ void __launch_bounds__(SelectShape::kThreads, 3) select_kernel(const __grid_constant__ Arguments arguments) {
  __shared__ Shared<SelectShape> shared;
  Block block;
  Search<SelectShape, Block> search(block, arguments.work, shared);
  search.keep_nothing();
  search.run(arguments.reading);
}

}  // namespace

int64_t scratch_words(int64_t layer_count) { return kGridWords + layer_count * (kProgressWords + (1 << kDigitBits)); }

void select(const Selection& selection, const Cut* hints, void* stream) {
  const Arguments arguments = {work_of(selection), {hints}};
  launch_cooperative(select_kernel, SelectShape::kThreads, selection.chunk_count, arguments, stream);
}

}  // namespace edgepop::cuda
