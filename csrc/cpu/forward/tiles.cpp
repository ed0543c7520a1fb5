// The tiles of AMX, beside the kernels of the instruction set below it (setup.py).
#include "cpu/dispatch/sets.h"
#include "cpu/forward/amx.inl"

namespace edgepop::cpu::EDGEPOP_ISA {

const TileKernels kTiles = {forward::Tiles::kRows,
                            {forward::Tiles::run<1>, forward::Tiles::run<2>, forward::Tiles::run<3>,
                             forward::Tiles::run<4>}};

}  // namespace edgepop::cpu::EDGEPOP_ISA
