// Compiled once for each instruction set, EDGEPOP_ISA naming it (setup.py).
#include "cpu/dispatch/sets.h"
#include "cpu/optim/kernels.inl"

namespace edgepop::cpu::EDGEPOP_ISA {

const UpdateKernels kUpdate = {optim::step, optim::step_scan};

}  // namespace edgepop::cpu::EDGEPOP_ISA
