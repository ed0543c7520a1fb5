// Included once by each isa_<name>.cpp, which is compiled with that instruction set's flags (setup.py).
#include "conv.inl"
#include "draw.inl"
#include "isa.h"
#include "mask_bits.inl"
#include "select_kernels.inl"
#include "update.inl"
#include "wgrad.inl"

#define EDGEPOP_TABLE_NAME(isa) isa##_kernels
#define EDGEPOP_TABLE(isa) EDGEPOP_TABLE_NAME(isa)
#define EDGEPOP_STRING_OF(isa) #isa
#define EDGEPOP_STRING(isa) EDGEPOP_STRING_OF(isa)

namespace edgepop::cpu {

const Kernels* EDGEPOP_TABLE(EDGEPOP_ISA)() {
  static constexpr Kernels table = {EDGEPOP_STRING(EDGEPOP_ISA), EDGEPOP_ISA::brgemm::conv_forward,
                                    EDGEPOP_ISA::brgemm::conv_backward_input, EDGEPOP_ISA::conv_backward_weight,
                                    EDGEPOP_ISA::kSelectKernels, EDGEPOP_ISA::draw,
                                    EDGEPOP_ISA::mask_bits, EDGEPOP_ISA::kUpdateKernels};
  return &table;
}

}  // namespace edgepop::cpu
