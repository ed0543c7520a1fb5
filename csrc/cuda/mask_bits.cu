#include "cuda/mask_bits.cuh"

#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace edgepop::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 8) pack_kernel(const __grid_constant__ Packing packing) {
  Block block;
  pack(block, packing);
}

}  // namespace

void mask_bits(const MaskBits& mask, void* stream) {
  const Packing packing = packing_of(mask);
  constexpr uint32_t kBlockWords = kThreads / kWarp * kWarpWords;
  const uint32_t blocks = (packing.words + kBlockWords - 1) / kBlockWords;
  pack_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(packing);
  check(cudaGetLastError(), "pack_kernel");
}

}  // namespace edgepop::cuda
