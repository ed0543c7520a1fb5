#define EDGEPOP_ISA avx2
#include "isa_kernels.inl"
