// Register-blocked products of M rows by N vectors of columns, reduced over taps and channels:
//
//   c[m][n] = start[n] + sum over t, k of a[t][m][k] * panel[t][k][n]
//
// Rows are given by address, one per tap, so activations are read where they lie. M*N accumulators, N panel vectors
// and one broadcast fill the register file; with 32 registers 6 x 4 vectors need 10 loads for 24 products.
#pragma once

#include "cpu/forward/kernels.h"
#include "cpu/simd/integers.h"
#include "cpu/simd/vec.h"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// Widest panel in vectors, and rows per block for each width.
constexpr int kMaxVectors = kRegisters == 32 ? 4 : 2;
constexpr int rows_per_block(int vectors) {
  return kRegisters == 32 ? (vectors == 4 ? 6 : vectors == 3 ? 8 : 12) : (vectors == 2 ? 6 : 12);
}
constexpr int kMaxRows = 12;

// Always inlined: in a call the accumulators of 6 rows and 64 columns pass through memory, a tenth of the time of a
// product of depth 128. The compiler stops inlining by itself where several kernels load them.
template <int N, int M>
__attribute__((always_inline)) static inline void load_accumulators(const PanelProduct& b, Vec (&acc)[M][N]) {
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    const float* c = b.c[m] + b.column;
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      if (b.start != nullptr) {
        acc[m][n] = load(b.start + n * kLanes);
      } else {
        acc[m][n] = n + 1 == N && b.tail < kLanes ? load(c + n * kLanes, b.tail) : load(c + n * kLanes);
      }
    }
  }
}

template <int N, int M>
__attribute__((always_inline)) static inline void store_accumulators(const PanelProduct& b, const Vec (&acc)[M][N]) {
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    float* c = b.c[m] + b.column;
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      if (n + 1 == N && b.tail < kLanes) {
        store(c + n * kLanes, acc[m][n], b.tail);
      } else {
        store(c + n * kLanes, acc[m][n]);
      }
    }
  }
}

// One step of the reduction, M x N fused multiply-adds.
struct F32 {
  static constexpr int64_t kLine = 16;  // elements of a 64-byte cache line

  template <int M>
  static inline void fetch(const PanelProduct& b, int64_t k) {
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) __builtin_prefetch(static_cast<const float*>(b.ahead[m]) + k);
    if (k >= b.next_columns) return;
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) __builtin_prefetch(b.next_c[m] + b.next_column + k);
  }

  template <int N, int M>
  static void run(const PanelProduct& b) {
    Vec acc[M][N];
    load_accumulators<N, M>(b, acc);
    const float* panel = static_cast<const float*>(b.panel);
    const void* const* rows = b.a;
    for (int64_t t = 0; t < b.taps; ++t, rows += M) {
      const float* a[M];
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) a[m] = static_cast<const float*>(rows[m]);
      for (int64_t k = 0; k < b.depth; ++k, panel += N * kLanes) {
        if (k % kLine == 0 && t + 1 == b.taps) fetch<M>(b, k);
        Vec column[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) column[n] = load(panel + n * kLanes);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
          const Vec x = broadcast(a[m][k]);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) acc[m][n] = fma(x, column[n], acc[m][n]);
        }
      }
    }
    store_accumulators<N, M>(b, acc);
  }
};

// Two channels per step; the last of an odd depth is paired with zero.
struct Pairs {
  static constexpr int64_t kLine = 32;

  template <int M>
  static inline void fetch(const PanelProduct& b, int64_t k) {
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) __builtin_prefetch(static_cast<const bf16*>(b.ahead[m]) + k);
  }

  template <int N, int M>
  static inline void step(const IntVec (&x)[M], const bf16* panel, Vec (&acc)[M][N]) {
    IntVec column[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) column[n] = load_pairs(panel + 2 * n * kLanes);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = dot(x[m], column[n], acc[m][n]);
    }
  }

  template <int N, int M>
  static void run(const PanelProduct& b) {
    Vec acc[M][N];
    load_accumulators<N, M>(b, acc);
    const bf16* panel = static_cast<const bf16*>(b.panel);
    const void* const* rows = b.a;
    for (int64_t t = 0; t < b.taps; ++t, rows += M) {
      const bf16* a[M];
      IntVec x[M];
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) a[m] = static_cast<const bf16*>(rows[m]);
      for (int64_t k = 0; k + 1 < b.depth; k += 2, panel += 2 * N * kLanes) {
        if (k % kLine == 0 && t + 1 == b.taps) fetch<M>(b, k);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) x[m] = broadcast_pair(a[m] + k);
        step<N, M>(x, panel, acc);
      }
      if (b.depth % 2 != 0) {
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) x[m] = broadcast_last(a[m] + b.depth - 1);
        step<N, M>(x, panel, acc);
        panel += 2 * N * kLanes;
      }
    }
    store_accumulators<N, M>(b, acc);
  }
};

// Each column reads its own channel: a[t][m][q] * panel[t][q].
struct Depthwise {
  template <int N, int M, bool whole>
  static inline void multiply(const PanelProduct& b) {
    Vec acc[M][N];
    load_accumulators<N, M>(b, acc);
    const float* panel = static_cast<const float*>(b.panel);
    const void* const* rows = b.a;
    for (int64_t t = 0; t < b.taps; ++t, rows += M, panel += N * kLanes) {
      Vec column[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) column[n] = load(panel + n * kLanes);
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const float* a = static_cast<const float*>(rows[m]) + b.column;
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const Vec x = whole || n + 1 < N ? load(a + n * kLanes) : load(a + n * kLanes, b.tail);
          acc[m][n] = fma(x, column[n], acc[m][n]);
        }
      }
    }
    store_accumulators<N, M>(b, acc);
  }

  template <int N, int M>
  static void run(const PanelProduct& b) {
    b.tail == kLanes ? multiply<N, M, true>(b) : multiply<N, M, false>(b);
  }
};

// Each column reads the D channels of its group: a[t][m][q / D * D + k] * panel[t][k][q].
template <int D>
struct Grouped {
  template <int M, bool whole>
  static inline void multiply(const PanelProduct& b) {
    Vec acc[M][1];
    load_accumulators<1, M>(b, acc);
    IntVec lanes[D];
#pragma GCC unroll 8
    for (int k = 0; k < D; ++k) lanes[k] = lane_of_group(D, k);
    const float* panel = static_cast<const float*>(b.panel);
    const void* const* rows = b.a;
    for (int64_t t = 0; t < b.taps; ++t, rows += M) {
#pragma GCC unroll 8
      for (int k = 0; k < D; ++k, panel += kLanes) {
        const Vec column = load(panel);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
          const float* a = static_cast<const float*>(rows[m]) + b.column;
          acc[m][0] = fma(permute(whole ? load(a) : load(a, b.tail), lanes[k]), column, acc[m][0]);
        }
      }
    }
    store_accumulators<1, M>(b, acc);
  }

  template <int N, int M>
  static void run(const PanelProduct& b) {
    static_assert(N == 1, "one vector of groups");
    b.tail == kLanes ? multiply<M, true>(b) : multiply<M, false>(b);
  }
};

// The rows that micro-kernels are compiled for, of those that a width has registers for. A block of another number is
// given its last row several times: each copy starts from what memory holds, and stores the same sums.
constexpr int kHeights[] = {1, 2, 3, 4, 6, 8, 12};
constexpr int next_height(int rows) {
  for (const int height : kHeights) {
    if (rows <= height) return height;
  }
  return kMaxRows;
}

// The instance of `Kind` for m rows, one of kHeights up to rows_per_block(N).
template <class Kind, int N, int M = 1>
static inline MicroKernel with_rows(int m) {
  if constexpr (M < rows_per_block(N)) {
    if (m > M) return with_rows<Kind, N, next_height(M + 1)>(m);
  }
  return &Kind::template run<N, M>;
}

// The rows of the next block of a tile, `left` of them being left: as many as a micro-kernel takes, and of the last two
// blocks about half. Two rows by two vectors are too few sums to hide a multiply-add's latency: 32 rows as 4 + 4 behind
// four sixes instead of 2 behind five took 0.97 of the time (32 x 1024 x 1024, AVX2).
static inline int64_t block_of_rows(int64_t left, int64_t most) {
  if (left <= most) return left;
  return left < 2 * most ? next_height(static_cast<int>(ceil_div(left, 2))) : most;
}

// `depth` is a power of two below kLanes.
template <int D = kLanes / 2>
static inline MicroKernel grouped_kernel(int64_t depth, int m) {
  if constexpr (D > 2) {
    if (depth < D) return grouped_kernel<D / 2>(depth, m);
  }
  return with_rows<Grouped<D>, 1>(m);
}

template <class Kind>
static inline MicroKernel micro_kernel(int vectors, int m) {
  if (vectors == 1) return with_rows<Kind, 1>(m);
  if (vectors == 2) return with_rows<Kind, 2>(m);
  if constexpr (kMaxVectors > 2) {
    if (vectors == 3) return with_rows<Kind, 3>(m);
    return with_rows<Kind, 4>(m);
  }
  return nullptr;
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
