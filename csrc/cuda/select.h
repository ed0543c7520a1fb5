// Exact selection on a CUDA device: the cut of every layer of a network in one launch, at about one read of the scores.
#pragma once

#include <cstdint>

#include "cuda/layer.h"

namespace edgepop::cuda {

// Scores that a block reads at a time: a layer has count / kSelectChunk chunks, rounded up.
constexpr int64_t kSelectChunk = 4096;

// 32-bit words of scratch that a selection wants zero.
int64_t scratch_words(int64_t layer_count);

// What is searched and where it goes; everything is an address on the current device.
struct Selection {
  uint32_t* scores;     // what the layers' offsets count from
  const Layer* layers;  // [layer_count + 1]
  int64_t layer_count;
  int64_t chunk_count;
  Cut* cuts;  // [layer_count]
  uint64_t* candidates;
  uint32_t* scratch;  // zero; 8-byte aligned
};

// Writes every layer's cut as cpu::select does: the same, bit for bit, whatever the hints, the device, the schedule.
// hints: [layer_count] earlier cuts of these scores, stale or garbage as they may be; or null.
//
// Enqueued on `stream` (a cudaStream_t), nothing waited for; can be captured in a CUDA graph. The launch is cooperative:
// it starts once the device has room for all its blocks. Throws std::runtime_error where CUDA refuses it.
void select(const Selection& selection, const Cut* hints, void* stream);

}  // namespace edgepop::cuda
