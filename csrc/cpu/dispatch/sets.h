// What the units of each instruction set define, in a namespace of its name.
//
// Rule for kernel sources (*.inl, simd/*.h): everything lives in namespace edgepop::cpu::EDGEPOP_ISA and instantiates no
// template from outside it. An inline function shared by two translation units is merged by the linker, and the
// copy that survives may hold instructions this machine lacks.
#pragma once

#include "cpu/forward/kernels.h"
#include "cpu/optim/kernels.h"
#include "cpu/select/kernels.h"
#include "cpu/wgrad/kernels.h"

namespace edgepop::cpu {

#define EDGEPOP_SET(isa)                 \
  namespace isa {                        \
  extern const ForwardKernels kForward;  \
  extern const WgradKernels kWgrad;      \
  extern const SelectKernels kSelect;    \
  extern const UpdateKernels kUpdate;    \
  }
EDGEPOP_SET(portable)
EDGEPOP_SET(avx2)
EDGEPOP_SET(avx512)
EDGEPOP_SET(neon)
#undef EDGEPOP_SET

// Add-ons: what they do not define, the set below them does.
namespace avx512bf16 {  // products of bfloat16 pairs, beside avx512
extern const ForwardKernels kForward;
extern const WgradKernels kWgrad;
}  // namespace avx512bf16
namespace amx {  // tiles for those, beside avx512bf16
extern const TileKernels kTiles;
void multiply_tiled(const TiledRuns&);
}  // namespace amx

}  // namespace edgepop::cpu
