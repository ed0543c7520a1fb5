// Compiled once for each instruction set, EDGEPOP_ISA naming it (setup.py).
#include "cpu/dispatch/sets.h"
#include "cpu/forward/conv.inl"

namespace edgepop::cpu::EDGEPOP_ISA {

const ForwardKernels kForward = {forward::conv_forward, forward::conv_backward_input};

}  // namespace edgepop::cpu::EDGEPOP_ISA
