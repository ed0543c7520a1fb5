// A linear layer of few rows: a weight that so few products use is masked in the first-level cache and multiplied
// there, a few runs of it at a time, and no panel of it is ever written.
//
// The weight is read along the dimension in which it is contiguous: the reduction, as in a forward pass, where each run
// is a column and gives one sum to each row; or the columns, as in an input gradient, where each run is a channel that
// goes into all sums of a row. The order of a sum hangs on the geometry alone.
#pragma once

#include "cpu/dispatch/scratch.h"
#include "cpu/dispatch/threads.h"
#include "cpu/forward/pack.inl"
#include "cpu/forward/tile.inl"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// Up to here no panel pays: with 8 rows a forward pass took 0.94 and an input gradient 0.7 of the time with panels
// (1024 x 1024, packed mask, Xeon with AMX, 1 of 2 cores), with 16 rows 1.1 and 0.93, with 32 both 1.2.
constexpr int64_t kFewRows = 8;
constexpr int kRuns = kRegisters / 2;  // of the weight, read side by side
constexpr int64_t kRunLength = 256;    // of a run, in the first-level cache at once
constexpr int64_t kRunsAhead = 2;      // are fetched
constexpr int64_t kFewDepth = 4096;    // channels that are held as float32 at once
constexpr int64_t kHeld = 1024;        // results of a row, or of a column where those are few, that are held
// Fewer products for each thread take less time than to wake one.
constexpr int64_t kProductsOfThread = 64 << 10;

static inline bool is_linear(const Problem& p) {
  const auto plain = [](const Axis& axis) { return axis.kernel == 1 && axis.step == 1 && axis.shift == 0; };
  return p.batch == 1 && p.h.out == 1 && p.groups == 1 && !p.channelwise && plain(p.h) && plain(p.w) &&
         p.h.in == p.h.out && p.w.in == p.w.out;
}
// How the scores lie does not matter: a cut gives the bits that a packed mask gives.
static inline bool has_few_rows(const Problem& p) {
  return p.rows() <= kFewRows && is_linear(p) && p.b.weight_steps.k == p.b.index_steps.k &&
         p.b.weight_steps.column == p.b.index_steps.column;
}

// `length` elements of a masked weight from `first` on, `step` apart, and zeros up to a whole vector.
//
// Masks that begin with a byte, as nearly all do, are read without a shift of each vector's. A weight beside bits is
// fetched `ahead`, which is more than the hardware does: 4096 x 4096 in a sixth less time; beside scores it cost a fifth
// more (Xeon with AMX, 1 of 2 cores).
template <class T, Of of>
static void read_run(const Reader<T, of>& weight, Place first, Place step, Place ahead, int64_t length, float* to) {
  const int64_t byte = first.index >> 3 << 3, whole = length / kLanes * kLanes;
  const Place one = {1, 1, 1};
  if (step.index != 1 || (!kIsSigns<T> && step.weight != 1) || (of != Of::bits && step.score != 1)) {
    for (int64_t i = 0; i < length; i += kLanes) {
      store(to + i, weight.gather(first + i * step, step, min(kLanes, length - i)));
    }
    return;
  }
  if (of == Of::bits && kLanes % 8 == 0 && byte == first.index) {
    for (int64_t i = 0; i < whole; i += kLanes) {
      weight.prefetch(ahead + i * one);
      store(to + i, weight.run({first.weight + i, first.score + i, byte + i}, one, kLanes));
    }
  } else {
    for (int64_t i = 0; i < whole; i += kLanes) store(to + i, weight.run(first + i * one, one, kLanes));
  }
  if (whole < length) store(to + whole, weight.run(first + whole * one, one, length - whole));
}

// Runs [column, ...) or [k, ...) of a masked weight, along its channels or its columns, `pitch` apart, and in the
// activations' precision.
static void read_runs(const Problem& p, int64_t column, int64_t k, bool along_k, int64_t runs, int64_t length,
                      int64_t pitch, float* out) {
  with_packer(p, Slab{}, 0, [&](const auto& packer) {
    const auto& weight = packer.read;
    const Place step = along_k ? weight.k : weight.column, next = along_k ? weight.column : weight.k;
    Place first = column * weight.column + k * weight.k;
    float* to = out;
    for (int64_t run = 0; run < runs; ++run, first = first + next, to += pitch) {
      read_run(weight, first, step, first + kRunsAhead * next, length, to);
    }
  });
  for (int64_t run = 0; run < runs; ++run) round_rows(p, length, out + run * pitch);
}

// Channels [k, k + depth) of rows [row, row + rows) of a linear layer's activations, `pitch` apart, and zeros up to a
// whole vector.
static void read_rows(const Problem& p, int64_t row, int64_t rows, int64_t k, int64_t depth, int64_t pitch, float* to) {
  const Source source = source_of(p.in, k);
  const int64_t whole = round_up(depth, kLanes);
  with_type(p.in.dtype, [&](auto type) {
    using From = decltype(type);
    for (int64_t i = 0; i < rows; ++i, to += pitch) {
      const From* from = reinterpret_cast<const From*>(source.pixel(0, 0, row + i));
      if (source.stride_c == 1) {
        convert_run(from, depth, to);
      } else {
        for (int64_t c = 0; c < depth; ++c) to[c] = to_float(from[c * source.stride_c]);
      }
      for (int64_t c = depth; c < whole; ++c) to[c] = 0.0f;
    }
  });
}

// sums[i][:] += x[:] * block[i][:], lane by lane, for kRuns runs of a block.
static void multiply_runs(const float* x, const float* block, int64_t length, float* sums) {
  Vec acc[kRuns];
#pragma GCC unroll 16
  for (int i = 0; i < kRuns; ++i) acc[i] = load(sums + i * kLanes);
  for (int64_t at = 0; at < length; at += kLanes) {
    const Vec a = load(x + at);
#pragma GCC unroll 16
    for (int i = 0; i < kRuns; ++i) acc[i] = fma(a, load(block + i * kRunLength + at), acc[i]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRuns; ++i) store(sums + i * kLanes, acc[i]);
}

// to[i] += all lanes of sums[i], of `runs` of them.
static void add_lanes(const float* sums, int64_t runs, float* to) {
  for (int64_t run = 0; run < runs; run += kLanes) {
    Vec tile[kLanes];
    for (int i = 0; i < kLanes; ++i) tile[i] = load(sums + (run + i) * kLanes);
    transpose(tile);
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) tile[i] = tile[i] + tile[i + half];
    }
    const int64_t n = min(kLanes, runs - run);
    store(to + run, load(to + run, n) + tile[0], n);
  }
}
static_assert(kRuns % kLanes == 0, "the lanes of all runs' sums fill whole tiles");

class FewRows {
 public:
  static constexpr int64_t kInput = kFewRows * kFewDepth, kResults = kFewRows * kHeld;
  static constexpr int64_t kBlock = kRuns * kRunLength, kSums = kFewRows * kRuns * kLanes;
  static constexpr int64_t kBytes = 4 * (kInput + kResults + kBlock + kSums);

  FewRows(const Problem& problem, char* memory)
      : p_(problem),
        rows_(problem.rows()),
        tile_{0, 1, 0, 1, 0, problem.w.out},
        input_(reinterpret_cast<float*>(memory)),
        results_(input_ + kInput),
        block_(results_ + kResults),
        sums_(block_ + kBlock) {}

  void run(int64_t begin, int64_t end) {
    const bool along_k = p_.b.index_steps.k == 1;
    for (first_ = begin; first_ < end; first_ += kHeld) {
      columns_ = min(kHeld, end - first_);
      start();
      for (int64_t k = 0; k < p_.depth; k += kFewDepth) {
        const int64_t depth = min(kFewDepth, p_.depth - k);
        read_rows(p_, 0, rows_, k, depth, kFewDepth, input_);
        along_k ? sum_runs(k, depth) : add_runs(k, depth);
      }
      with_type(p_.out.dtype, [&](auto type) {
        write_tile<decltype(type)>(p_, tile_, results_, kHeld, first_, columns_);
      });
    }
  }

 private:
  void start() {
    for (int64_t row = 0; row < rows_; ++row) {
      float* to = results_ + row * kHeld;
      if (p_.start == nullptr) {
        std::memset(to, 0, static_cast<size_t>(columns_ * 4));
      } else {
        std::memcpy(to, p_.start + first_, static_cast<size_t>(columns_ * 4));
      }
    }
  }

  // Runs are columns: their products with each row, added up.
  void sum_runs(int64_t k, int64_t depth) {
    for (int64_t column = 0; column < columns_; column += kRuns) {
      const int64_t runs = min(kRuns, columns_ - column);
      std::memset(sums_, 0, static_cast<size_t>(rows_ * kRuns * kLanes * 4));
      for (int64_t at = 0; at < depth; at += kRunLength) {
        const int64_t length = min(kRunLength, depth - at);
        read_runs(p_, first_ + column, k + at, true, runs, length, kRunLength, block_);
        for (int64_t row = 0; row < rows_; ++row) {
          multiply_runs(input_ + row * kFewDepth + at, block_, length, sums_ + row * kRuns * kLanes);
        }
      }
      for (int64_t row = 0; row < rows_; ++row) {
        add_lanes(sums_ + row * kRuns * kLanes, runs, results_ + row * kHeld + column);
      }
    }
  }

  // Runs are channels: each row's sums take them, as many channels at a time as there are runs.
  void add_runs(int64_t k, int64_t depth) {
    for (int64_t at = 0; at < depth; at += kRuns) {
      const int64_t runs = min(kRuns, depth - at);
      for (int64_t column = 0; column < columns_; column += kRunLength) {
        const int64_t length = min(kRunLength, columns_ - column);
        read_runs(p_, first_ + column, k + at, false, runs, length, kRunLength, block_);
        add_channels(input_ + at, runs, length, results_ + column);
      }
    }
  }

  void add_channels(const float* x, int64_t runs, int64_t length, float* results) const {
    for (int64_t q = 0; q < length; q += kLanes) {  // results have room for whole vectors
      Vec w[kRuns];
#pragma GCC unroll 16
      for (int i = 0; i < kRuns; ++i) w[i] = load(block_ + i * kRunLength + q);
      for (int64_t row = 0; row < rows_; ++row) {
        float* const to = results + row * kHeld + q;
        const float* const a = x + row * kFewDepth;
        Vec sum = load(to);
        if (runs == kRuns) {
#pragma GCC unroll 16
          for (int i = 0; i < kRuns; ++i) sum = fma(broadcast(a[i]), w[i], sum);
        } else {
          for (int64_t i = 0; i < runs; ++i) sum = fma(broadcast(a[i]), load(block_ + i * kRunLength + q), sum);
        }
        store(to, sum);
      }
    }
  }

  const Problem& p_;
  const int64_t rows_;
  const Tile tile_;
  float* const input_;    // [rows][kFewDepth]
  float* const results_;  // [rows][kHeld]
  float* const block_;    // [kRuns][kRunLength]
  float* const sums_;     // [rows][kRuns][kLanes]
  int64_t first_ = 0, columns_ = 0;
};

// Threads share `count` columns or rows of results, whole cache lines of the output each. work(memory, begin, end).
template <class Work>
static void share_lines(const Problem& p, int64_t count, int64_t bytes, int threads, const Work& work) {
  const int64_t line = 64 / bytes_of(p.out.dtype), lines = ceil_div(count, line);
  if (p.depth * count < 2 * kProductsOfThread) threads = 1;
  char* memory = scratch(static_cast<size_t>(threads * bytes));
  const auto share = [&](int64_t thread, int64_t workers) {
    work(memory + thread * bytes, lines * thread / workers * line, min(lines * (thread + 1) / workers * line, count));
  };
  if (threads == 1) return share(0, 1);
#pragma omp parallel num_threads(threads)
  share(thread_number(), thread_count());
}

static inline void multiply_few_rows(const Problem& p, int threads) {
  share_lines(p, p.columns, FewRows::kBytes, threads,
              [&](char* memory, int64_t begin, int64_t end) { FewRows(p, memory).run(begin, end); });
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
