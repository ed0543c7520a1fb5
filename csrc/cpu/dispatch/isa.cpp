#include "cpu/dispatch/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace edgepop::cpu {
namespace {

// Of an instruction set: null where it can be used, else why not.
using Missing = const char* (*)();

constexpr const char* kNotThere = "this CPU does not have it";
const char* nothing_missing() { return nullptr; }

#if defined(__x86_64__)
[[maybe_unused]] const char* avx2_missing() {
  __builtin_cpu_init();
  const bool there =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return there ? nullptr : kNotThere;
}

[[maybe_unused]] const char* avx512_missing() {
  const bool there = avx2_missing() == nullptr && __builtin_cpu_supports("avx512f") &&
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("avx512vl");
  return there ? nullptr : kNotThere;
}

[[maybe_unused]] const char* avx512bf16_missing() {
  return avx512_missing() == nullptr && __builtin_cpu_supports("avx512bf16") ? nullptr : kNotThere;
}

bool has(uint64_t word, int bit) { return word >> bit & 1; }

// Tiles are 8 KB of state that the system must save at each switch of threads: it says in XCR0 that it does, and Linux
// wants every process to ask for them (Documentation/arch/x86/xstate.rst).
[[maybe_unused]] const char* amx_missing() {
  unsigned a, b, c, d;
  if (avx512bf16_missing() != nullptr || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return kNotThere;
  if (!has(d, 22) || !has(d, 24)) return kNotThere;  // AMX-BF16, AMX-TILE
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));  // AVX-512 runs, so this instruction does
  if (!has(low, 17) || !has(low, 18)) return "the operating system does not save its tiles";
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return "the operating system refuses its tiles";
#endif
  return nullptr;
}
#endif

struct Entry {
  Kernels kernels;
  Missing missing;
};

// Those that were built (setup.py: EDGEPOP_ISAS).
constexpr Entry kWidestFirst[] = {
#if defined(EDGEPOP_HAS_AMX)
    {{"amx", &avx512bf16::kForward, &avx512bf16::kWgrad, &avx512::kSelect, &avx512::kUpdate, &amx::kTiles,
      amx::multiply_tiled},
     amx_missing},
#endif
#if defined(EDGEPOP_HAS_AVX512BF16)
    {{"avx512bf16", &avx512bf16::kForward, &avx512bf16::kWgrad, &avx512::kSelect, &avx512::kUpdate}, avx512bf16_missing},
#endif
#if defined(EDGEPOP_HAS_AVX512)
    {{"avx512", &avx512::kForward, &avx512::kWgrad, &avx512::kSelect, &avx512::kUpdate}, avx512_missing},
#endif
#if defined(EDGEPOP_HAS_AVX2)
    {{"avx2", &avx2::kForward, &avx2::kWgrad, &avx2::kSelect, &avx2::kUpdate}, avx2_missing},
#endif
#if defined(EDGEPOP_HAS_NEON)
    {{"neon", &neon::kForward, &neon::kWgrad, &neon::kSelect, &neon::kUpdate}, nothing_missing},
#endif
    {{"portable", &portable::kForward, &portable::kWgrad, &portable::kSelect, &portable::kUpdate}, nothing_missing}};

struct Choice {
  const Kernels* kernels;
  std::string passed_over;
};

Choice choose() {
  const char* named = std::getenv("EDGEPOP_ISA");
  if (named != nullptr && *named == '\0') named = nullptr;  // set to nothing: not set
  std::string passed_over, allowed;
  for (const Entry& entry : kWidestFirst) {
    allowed += std::string(allowed.empty() ? "" : ", ") + entry.kernels.name;
    if (named != nullptr && entry.kernels.name != std::string(named)) continue;
    const char* missing = entry.missing();
    if (missing == nullptr) return {&entry.kernels, passed_over};
    if (named != nullptr) throw std::runtime_error("EDGEPOP_ISA=" + std::string(named) + ": " + missing);
    if (missing != kNotThere) passed_over = std::string("not ") + entry.kernels.name + ": " + missing;
  }
  throw std::runtime_error("EDGEPOP_ISA=" + std::string(named) + ": allowed are " + allowed);
}

const Choice& chosen() {
  static const Choice choice = choose();
  return choice;
}

std::atomic<const Kernels*> switched_to = nullptr;

}  // namespace

const char* passed_over() { return chosen().passed_over.c_str(); }

const Kernels& kernels() {
  const Kernels* const other = switched_to.load(std::memory_order_acquire);
  return other != nullptr ? *other : *chosen().kernels;
}

std::vector<std::string> usable() {
  std::vector<std::string> names;
  for (const Entry& entry : kWidestFirst) {
    if (entry.missing() == nullptr) names.push_back(entry.kernels.name);
  }
  return names;
}

std::string use(const std::string& name) {
  const std::string before = kernels().name;
  for (const Entry& entry : kWidestFirst) {
    if (name != entry.kernels.name) continue;
    const char* missing = entry.missing();
    if (missing != nullptr) throw std::runtime_error("use_isa: " + name + ": " + missing);
    switched_to.store(&entry.kernels, std::memory_order_release);
    return before;
  }
  throw std::runtime_error("use_isa: " + name + " is none that was built");
}

}  // namespace edgepop::cpu
