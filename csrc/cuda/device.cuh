// The primitives of a block of threads, on a CUDA device. tests/cuda/ has the same on a CPU.
#pragma once

#include <cstdint>

namespace edgepop::cuda {

struct Block {
  __device__ static int thread() { return threadIdx.x; }
  __device__ static int threads() { return blockDim.x; }
  __device__ static uint32_t index() { return blockIdx.x; }
  __device__ static uint32_t blocks() { return gridDim.x; }

  __device__ static void sync() { __syncthreads(); }
  __device__ static void fence() { __threadfence(); }
  __device__ static void pause() { __nanosleep(32); }

  // Of a warp whose lanes are all here.
  __device__ static bool any(bool condition) { return __any_sync(~0u, condition); }
  __device__ static uint32_t ballot(bool condition) { return __ballot_sync(~0u, condition); }
  __device__ static uint32_t shuffle(uint32_t value, int lane) { return __shfl_sync(~0u, value, lane); }
  __device__ static uint32_t shuffle_up(uint32_t value, int lanes) { return __shfl_up_sync(~0u, value, lanes); }

  __device__ static uint32_t popcount(uint32_t word) { return __popc(word); }
  __device__ static uint32_t lowest_bit(uint32_t word) { return __ffs(word) - 1; }  // of a word that is not 0

  // Memory that other blocks write: read from where they write it, the first-level cache passed over.
  template <class T>
  __device__ static T load(const T* address) {
    return __ldcg(address);
  }
  __device__ static uint32_t add(uint32_t* address, uint32_t value) { return atomicAdd(address, value); }
  __device__ static uint32_t add_shared(uint32_t* address, uint32_t value) { return atomicAdd(address, value); }
};

}  // namespace edgepop::cuda
