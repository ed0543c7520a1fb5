// Compiled once for each instruction set, EDGEPOP_ISA naming it (setup.py).
#include "cpu/dispatch/sets.h"
#include "cpu/wgrad/wgrad.inl"

namespace edgepop::cpu::EDGEPOP_ISA {

const WgradKernels kWgrad = {wgrad::conv_backward_weight};

}  // namespace edgepop::cpu::EDGEPOP_ISA
