// csrc/cuda/search.cuh on simulated threads, for ctypes.
#include <cstdio>
#include <cstring>

#include "../../csrc/cuda/search.cuh"
#include "simulator.h"

using namespace edgepop::cuda;

namespace {

template <class S>
int64_t select(Work work, int blocks, uint64_t seed, uint32_t* scratch) {
  simulator::Machine machine(blocks, S::kThreads, seed);
  const uint32_t layers = work.layer_count;
  work.arrived = scratch;
  work.open_after = scratch + 2;
  work.progress = reinterpret_cast<Progress*>(scratch + 2 + kMostPasses);
  work.histograms = reinterpret_cast<uint32_t*>(work.progress + layers);
  std::vector<Shared<S>> shared(static_cast<size_t>(blocks));
  std::memset(shared.data(), 0xa5, shared.size() * sizeof(Shared<S>));  // a device does not clear it
  machine.run([&](int b, int thread) {
    simulator::Block block(machine, b, thread);
    using Selection = Search<S, simulator::Block>;
    Selection(block, work, shared[static_cast<size_t>(b)]).run(typename Selection::Reading{});
  });
  for (uint32_t i = 0; i < layers * S::kBins; ++i) {
    if (work.histograms[i] != 0) throw std::runtime_error("a histogram was left behind");
  }
  int64_t passes = 1;
  while (work.open_after[passes - 1] != 0) ++passes;
  return passes;
}

}  // namespace

extern "C" {

// The kernel's shape, and small ones of as many scores a chunk as `chunk` says: 64, 256.
int64_t scratch_words(int64_t layers) {
  return 2 + kMostPasses + layers * (static_cast<int64_t>(sizeof(Progress)) / 4 + 2048);
}

// Number of passes; -1 and a message where a thread misbehaved.
int64_t select_on_host(int64_t chunk, void* scores, const void* layers, int64_t layer_count, int64_t chunk_count,
                       const void* hints, void* cuts, void* candidates, void* scratch, int blocks, uint64_t seed,
                       char* message) {
  Work work = {};
  work.scores = static_cast<uint32_t*>(scores);
  work.layers = static_cast<const Layer*>(layers);
  work.layer_count = static_cast<uint32_t>(layer_count);
  work.chunk_count = static_cast<uint32_t>(chunk_count);
  work.hints = static_cast<const edgepop::Cut*>(hints);
  work.cuts = static_cast<edgepop::Cut*>(cuts);
  work.candidates = static_cast<uint64_t*>(candidates);
  uint32_t* const words = static_cast<uint32_t*>(scratch);
  try {
    if (chunk == 4096) return select<Shape<256, 4, 11, 1024>>(work, blocks, seed, words);
    if (chunk == 256) return select<Shape<64, 1, 5, 16>>(work, blocks, seed, words);
    if (chunk == 128) return select<Shape<32, 1, 4, 4>>(work, blocks, seed, words);
    throw std::runtime_error("no shape with such chunks");
  } catch (const std::exception& error) {
    std::snprintf(message, 200, "%s", error.what());
    return -1;
  }
}

// What goes wrong where threads do what a device forbids; 0: half a block waits for all of it, 1: lanes diverge.
void misbehave(int fault, char* message) {
  try {
    simulator::Machine machine(1, 64, 0);
    machine.run([&](int b, int thread) {
      simulator::Block block(machine, b, thread);
      if (fault == 0 && thread < 32) block.sync();
      if (fault == 1 && thread % 2 == 0) block.any(true);
      if (fault == 1 && thread % 2 == 1) block.shuffle(0, 0);
    });
  } catch (const std::exception& error) {
    std::snprintf(message, 200, "%s", error.what());
  }
}
}
