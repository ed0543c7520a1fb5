// Compiled once for each instruction set, EDGEPOP_ISA naming it (setup.py).
#include "cpu/dispatch/sets.h"
#include "cpu/select/blocks.inl"
#include "cpu/select/draw.inl"
#include "cpu/select/group_bits.inl"
#include "cpu/select/kernels.inl"
#include "cpu/select/mask_bits.inl"

namespace edgepop::cpu::EDGEPOP_ISA {

const SelectKernels kSelect = {select::codes_of,   select::scan_of,        select::kth,       select::find_of,
                               select::read,       select::draw,           select::mask_bits, select::group_bits,
                               select::magnitudes, select::add_magnitudes, select::add_onto,       select::fold};

}  // namespace edgepop::cpu::EDGEPOP_ISA
