// Launching a kernel whose blocks wait for each other.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace edgepop::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a refused launch is reported once, here
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// As many blocks as the current device holds at once, at most one for each of `chunks`.
template <class Argument>
void launch_cooperative(void (*kernel)(Argument), int threads, int64_t chunks, const Argument& argument, void* stream) {
  int device, multiprocessors, per_multiprocessor;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, 0),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const int64_t room = int64_t{multiprocessors} * per_multiprocessor;
  const unsigned blocks = static_cast<unsigned>(std::max<int64_t>(1, std::min(room, chunks)));
  void* arguments[] = {const_cast<Argument*>(&argument)};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads), arguments, 0,
                                    static_cast<cudaStream_t>(stream)),
        "cudaLaunchCooperativeKernel");
}

}  // namespace edgepop::cuda
