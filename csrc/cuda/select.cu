#include "select.h"

#include "device.cuh"
#include "launch.h"
#include "search.cuh"

namespace edgepop::cuda {
namespace {

// 4 reads of 16 bytes in flight for each of 1024 threads a multiprocessor: 64 KB, twice what latency times bandwidth
// asks for on an H200. 2048 bins are an 11-bit digit: two of them tell apart all but 2^10 keys.
using SelectShape = Shape<256, 4, 11, 1024>;
static_assert(SelectShape::kChunk == kSelectChunk);

__global__ void __launch_bounds__(SelectShape::kThreads, 4) select_kernel(const __grid_constant__ Work work) {
  __shared__ Shared<SelectShape> shared;
  Block block;
  Search<SelectShape, Block> search(block, work, shared);
  search.run(Search<SelectShape, Block>::Reading{});
}

constexpr int64_t kProgressWords = sizeof(Progress) / 4;
constexpr int64_t kGridWords = kMostPasses + 2;  // the counters of all blocks, padded to Progress's alignment

}  // namespace

int64_t select_scratch(int64_t layer_count) {
  return kGridWords + layer_count * (kProgressWords + SelectShape::kBins);
}

void select(const Selection& s, void* stream) {
  uint32_t* const progress = s.scratch + kGridWords;
  const Work work = {s.scores,
                     s.layers,
                     static_cast<uint32_t>(s.layer_count),
                     static_cast<uint32_t>(s.chunk_count),
                     s.hints,
                     s.cuts,
                     s.candidates,
                     s.scratch,
                     s.scratch + 1,
                     reinterpret_cast<Progress*>(progress),
                     progress + s.layer_count * kProgressWords};
  launch_cooperative(select_kernel, SelectShape::kThreads, s.chunk_count, work, stream);
}

}  // namespace edgepop::cuda
