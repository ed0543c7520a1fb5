// One binary for every CPU: each instruction set compiles the same kernels in translation units of its own (sets.h); the
// widest one that this machine can run is chosen once, or named by EDGEPOP_ISA.
#pragma once

#include <string>
#include <vector>

#include "cpu/dispatch/sets.h"

namespace edgepop::cpu {

struct Kernels {
  const char* name;
  const ForwardKernels* forward;
  const WgradKernels* wgrad;
  const SelectKernels* select;  // inner loops; select (select.h) runs its own threads
  const UpdateKernels* update;  // likewise of step (step.h)
  // Of AMX, for products and for the weight gradient of pairs; null: there are none.
  const TileKernels* tiles = nullptr;
  MultiplyTiled multiply_tiled = nullptr;
};

// Why this machine's widest instruction set is not the one in use, although the CPU has it; empty where it is, or where
// EDGEPOP_ISA names another.
const char* passed_over();

// The table in use. Throws std::runtime_error when EDGEPOP_ISA names a set this machine or this build lacks.
const Kernels& kernels();

// The sets that were built and that this machine can run, the widest first.
std::vector<std::string> usable();

// Has all later calls use the named set, whatever EDGEPOP_ISA says; returns the name of the one in use before. Throws
// std::runtime_error as kernels() does, and for a set that is not usable().
std::string use(const std::string& name);

}  // namespace edgepop::cpu
