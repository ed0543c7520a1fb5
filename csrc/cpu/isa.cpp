#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace edgepop::cpu {
namespace {

struct Entry {
  const char* name;
  const Kernels* (*table)();
  bool runs;
};

// Widest first.
const Kernels* choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  const Entry entries[] = {{"avx512bf16", avx512bf16_kernels, avx512bf16},
                           {"avx512", avx512_kernels, avx512},
                           {"avx2", avx2_kernels, avx2},
                           {"portable", portable_kernels, true}};
#else
  const Entry entries[] = {{"portable", portable_kernels, true}};
#endif
  const char* named = std::getenv("EDGEPOP_ISA");
  for (const Entry& entry : entries) {
    if (named == nullptr ? entry.runs : entry.name == std::string(named)) {
      if (entry.runs) return entry.table();
      throw std::runtime_error("EDGEPOP_ISA=" + std::string(named) + ": this CPU does not have it");
    }
  }
  throw std::runtime_error("EDGEPOP_ISA=" + std::string(named) + ": allowed are avx512bf16, avx512, avx2, portable");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels* const chosen = choose();
  return *chosen;
}

}  // namespace edgepop::cpu
