#define EDGEPOP_ISA portable
#include "isa_kernels.inl"
