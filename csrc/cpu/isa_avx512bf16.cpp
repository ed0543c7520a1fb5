#define EDGEPOP_ISA avx512bf16
#include "isa_kernels.inl"
