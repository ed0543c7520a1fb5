// Functions that CUDA kernels share with the CPU's; the tests run them on the CPU.
#pragma once

#if defined(__CUDACC__)
#define EDGEPOP_HOST_DEVICE __host__ __device__
#define EDGEPOP_DEVICE __device__
#else
#define EDGEPOP_HOST_DEVICE
#define EDGEPOP_DEVICE
#endif

// In front of a loop of constant length whose arrays are to stay in registers. The host's passes warn of the pragma.
#if defined(__CUDA_ARCH__)
#define EDGEPOP_UNROLL _Pragma("unroll")
#else
#define EDGEPOP_UNROLL
#endif
