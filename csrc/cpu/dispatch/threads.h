// The threads of a parallel region: OpenMP's, or one where the compiler has none (Apple's clang).
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace edgepop::cpu {

#if defined(_OPENMP)
constexpr bool kThreads = true;
static inline int thread_number() { return omp_get_thread_num(); }
static inline int thread_count() { return omp_get_num_threads(); }
#else
constexpr bool kThreads = false;
static inline int thread_number() { return 0; }
static inline int thread_count() { return 1; }
#endif

}  // namespace edgepop::cpu
