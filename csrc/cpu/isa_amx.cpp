#define EDGEPOP_ISA amx
#include "isa_kernels.inl"
