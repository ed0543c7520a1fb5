#define EDGEPOP_ISA avx512
#include "isa_kernels.inl"
