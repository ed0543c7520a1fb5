// The tiles of AMX, beside the kernels of the instruction set below it (setup.py).
#include "cpu/dispatch/sets.h"
#include "cpu/wgrad/amx.inl"

namespace edgepop::cpu::EDGEPOP_ISA {

void multiply_tiled(const TiledRuns& runs) { wgrad::multiply_runs_tiled(runs); }

}  // namespace edgepop::cpu::EDGEPOP_ISA
