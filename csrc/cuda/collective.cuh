// What the threads of a warp, a block and a grid do together, over the few primitives of a Block (device.cuh).
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace edgepop::cuda {

constexpr int kWarp = 32;

// Sum of `value` over the lanes before this one; *total over the whole warp.
template <class Block>
EDGEPOP_DEVICE uint32_t warp_offset(Block& block, uint32_t value, uint32_t* total) {
  const int lane = block.thread() % kWarp;
  uint32_t sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t before = block.shuffle_up(sum, step);
    if (lane >= step) sum += before;
  }
  *total = block.shuffle(sum, kWarp - 1);
  return sum - value;
}

// Sum of `value` over the threads before this one; *total over the whole block. scratch: shared, a word for each warp.
template <class Block>
EDGEPOP_DEVICE uint32_t block_offset(Block& block, uint32_t value, uint32_t* scratch, uint32_t* total) {
  const int warp = block.thread() / kWarp;
  uint32_t offset = warp_offset(block, value, total);
  if (block.thread() % kWarp == 0) scratch[warp] = *total;
  block.sync();
  *total = 0;
  for (int w = 0; w < block.threads() / kWarp; ++w) {
    if (w == warp) offset += *total;
    *total += scratch[w];
  }
  block.sync();  // the scratch is free again
  return offset;
}

// Waits for all blocks, which must all be running; what any thread wrote before is seen by every thread after it.
// arrived: zero before the first barrier.
template <class Block>
EDGEPOP_DEVICE void sync_grid(Block& block, uint32_t* arrived) {
  block.sync();
  if (block.thread() == 0) {
    block.fence();
    const uint32_t ticket = block.add(arrived, 1);
    const uint32_t all = (ticket / block.blocks() + 1) * block.blocks();
    while (block.load(arrived) < all) block.pause();
    block.fence();
  }
  block.sync();
}

}  // namespace edgepop::cuda
