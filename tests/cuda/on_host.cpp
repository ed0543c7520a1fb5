// The templates of csrc/cuda/ on simulated threads, for ctypes.
#include <cstdio>
#include <cstring>

#include "cuda/derive.cuh"
#include "cuda/mask_bits.cuh"
#include "cuda/step.cuh"
#include "simulator.h"

using namespace edgepop;
using namespace edgepop::cuda;

namespace {

// The numbers and addresses of a call, as tests/cuda_host.py packs them.
struct Call {
  int64_t chunk;  // the kernels' shapes: 4096 and 2048 (with `step`); small ones: 256, 128
  uint32_t* scores;
  const Layer* layers;
  int64_t layer_count, chunk_count;
  Cut* cuts;
  uint64_t* candidates;
  uint32_t* scratch;
  int64_t blocks, seed;
};

template <class S, class Read>
int64_t search(const Call& call, const Read& read) {
  simulator::Machine machine(static_cast<int>(call.blocks), S::kThreads, static_cast<uint64_t>(call.seed));
  Work work = {};
  work.scores = call.scores;
  work.layers = call.layers;
  work.layer_count = static_cast<uint32_t>(call.layer_count);
  work.chunk_count = static_cast<uint32_t>(call.chunk_count);
  work.cuts = call.cuts;
  work.candidates = call.candidates;
  work.arrived = call.scratch;
  work.open_after = call.scratch + 2;
  work.progress = reinterpret_cast<Progress*>(call.scratch + 2 + kMostPasses);
  work.histograms = reinterpret_cast<uint32_t*>(work.progress + call.layer_count);
  std::vector<Shared<S>> shared(static_cast<size_t>(call.blocks));
  std::memset(static_cast<void*>(shared.data()), 0xa5, shared.size() * sizeof(Shared<S>));  // as a device leaves it
  machine.run([&](int b, int thread) {
    simulator::Block block(machine, b, thread);
    Search<S, simulator::Block> search(block, work, shared[static_cast<size_t>(b)]);
    if constexpr (std::is_same_v<Read, Reading>) search.keep_nothing();
    search.run(read);
  });
  for (int64_t i = 0; i < call.layer_count * S::kBins; ++i) {
    if (work.histograms[i] != 0) throw std::runtime_error("a histogram was left behind");
  }
  int64_t passes = 1;
  while (work.open_after[passes - 1] != 0) ++passes;
  return passes;
}

template <class Read>
int64_t run(const Call& call, const Read& read) {
  if (call.chunk == 4096) return search<Shape<256, 4, 11, 1024>>(call, read);
  if (call.chunk == 2048) return search<Shape<256, 2, 11, 1024>>(call, read);
  if (call.chunk == 256) return search<Shape<64, 1, 5, 16>>(call, read);
  if (call.chunk == 128) return search<Shape<32, 1, 4, 4>>(call, read);
  throw std::runtime_error("no shape with such chunks");
}

// What a launch of step.cu takes besides the selection, as tests/cuda_host.py packs it.
struct StepCall {
  const Parameter* parameters;
  int64_t set_count;
  const Source* sources;  // null: nothing follows from the device
  const Rates* rates;
  void* derived;
};

template <class Coefficients>
int64_t step(const Call& call, const StepCall& given, const std::vector<Coefficients>& sets) {
  if (call.layer_count > kMostParameters) throw std::runtime_error("more parameters than a launch takes");
  if (given.set_count > kMostSets) throw std::runtime_error("more sets of coefficients than a launch takes");
  const std::vector<Parameter> parameters(given.parameters, given.parameters + call.layer_count);
  if (given.sources == nullptr) {
    Updating<Coefficients> updating = {};
    std::copy(parameters.begin(), parameters.end(), updating.parameters);
    std::copy(sets.begin(), sets.end(), updating.sets);
    return run(call, updating);
  }
  const Following following = {{given.sources, given.sources + call.layer_count},
                               {given.rates, given.rates + given.set_count},
                               given.derived};
  const Derivation<Coefficients> derivation = derivation_of(parameters, sets, following);
  simulator::Machine machine(1, kMostParameters, static_cast<uint64_t>(call.seed));
  machine.run([&](int b, int thread) {
    simulator::Block block(machine, b, thread);
    derive(block, derivation);
  });
  return run(call, updating_by(derivation, parameters));
}

template <class Body>
int64_t with_message(char* message, Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    std::snprintf(message, 200, "%s", error.what());
    return -1;
  }
}

}  // namespace

extern "C" {

int64_t scratch_words(int64_t layers) {
  return 2 + kMostPasses + layers * (static_cast<int64_t>(sizeof(Progress)) / 4 + 2048);
}

// Number of passes; -1 and a message where a thread misbehaved.
int64_t select_on_host(const Call* call, const Cut* hints, char* message) {
  return with_message(message, [&] { return run(*call, Reading{hints}); });
}

// coefficients: of each set the fields of Sgd or Adam in their order.
int64_t step_on_host(const Call* call, const StepCall* given, const float* coefficients, int adam, char* message) {
  return with_message(message, [&] {
    if (!adam) {
      std::vector<Sgd> sets;
      for (int64_t i = 0; i < given->set_count; ++i) {
        const float* c = coefficients + 7 * i;
        sets.push_back({c[0], c[1], c[2], c[3], c[4], c[5] != 0, c[6] != 0});
      }
      return step(*call, *given, sets);
    }
    static_assert(sizeof(Adam) == 10 * sizeof(float));
    std::vector<Adam> sets(static_cast<size_t>(given->set_count));
    std::memcpy(sets.data(), coefficients, sets.size() * sizeof(Adam));
    return step(*call, *given, sets);
  });
}

// Number of blocks; -1 and a message where a thread misbehaved.
int64_t mask_bits_on_host(const MaskBits* mask, int threads, int64_t seed, char* message) {
  return with_message(message, [&]() -> int64_t {
    const Packing packing = packing_of(*mask);
    const int block_words = threads / kWarp * kWarpWords;
    const int blocks = (static_cast<int>(packing.words) + block_words - 1) / block_words;
    simulator::Machine machine(blocks, threads, static_cast<uint64_t>(seed));
    machine.run([&](int b, int thread) {
      simulator::Block block(machine, b, thread);
      pack(block, packing);
    });
    return blocks;
  });
}

// What goes wrong where threads do what a device forbids; 0: half a block waits for all of it, 1: lanes diverge.
void misbehave(int fault, char* message) {
  with_message(message, [&] {
    simulator::Machine machine(1, 64, 0);
    machine.run([&](int b, int thread) {
      simulator::Block block(machine, b, thread);
      if (fault == 0 && thread < 32) block.sync();
      if (fault == 1 && thread % 2 == 0) block.any(true);
      if (fault == 1 && thread % 2 == 1) block.shuffle(0, 0);
    });
    return int64_t{0};
  });
}
}
