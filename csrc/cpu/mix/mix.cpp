#include "cpu/mix/mix.h"

#include <algorithm>
#include <vector>

#include "cpu/dispatch/threads.h"

namespace edgepop::cpu {
namespace {

constexpr int64_t kPart = 16384;              // weights: a unit of work, and of the sums, whoever works on it
constexpr int64_t kBlock = 512;               // weights whose sums of alphas stay in the first-level cache
constexpr int64_t kWeightsPerThread = 32768;  // fewer are done sooner than a second thread starts
constexpr int64_t kTurns = 4;                 // sets of sums: weights of one code in a row do not wait for each other

int team_of(int64_t count, int threads) {
  return static_cast<int>(std::min<int64_t>(threads, 1 + count / kWeightsPerThread));
}

// sums[turn][code] += a * b. Products are float32, as where the weight is multiplied by its gradient.
void add(const float* a, const float* b, const uint8_t* code, int64_t count, double (*sums)[kCodes]) {
  int64_t i = 0;
  for (; i + kTurns <= count; i += kTurns) {
    for (int64_t t = 0; t < kTurns; ++t) sums[t][code[i + t]] += static_cast<double>(a[i + t] * b[i + t]);
  }
  for (; i < count; ++i) sums[0][code[i]] += static_cast<double>(a[i] * b[i]);
}

// Of the sums by code those by bit.
void fold(const double (*sums)[kCodes], double* shares) {
  for (int64_t bit = 0; bit < kTasksPerRow; ++bit) {
    double share = 0.0;
    for (int64_t code = 0; code < kCodes; ++code) {
      if ((code >> bit & 1) == 0) continue;
      for (int64_t t = 0; t < kTurns; ++t) share += sums[t][code];
    }
    shares[bit] = share;
  }
}

}  // namespace

void superpose(const float* weight, const CodeRows& codes, const float* tables, int64_t count, float* mixed, int threads) {
  threads = team_of(count, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    float total[kBlock];
    for (int64_t row = 0; row < codes.rows; ++row) {
      const uint8_t* const code = codes.first + row * codes.pitch + begin;
      const float* const table = tables + row * kCodes;
      for (int64_t i = 0; i < n; ++i) total[i] = row == 0 ? table[code[i]] : total[i] + table[code[i]];
    }
    for (int64_t i = 0; i < n; ++i) mixed[begin + i] = total[i] * weight[begin + i];
  }
}

void shares(const float* a, const float* b, const CodeRows& codes, int64_t count, double* shares, int threads) {
  const int64_t parts = (count + kPart - 1) / kPart, tasks = codes.rows * kTasksPerRow;
  std::vector<double> found(static_cast<size_t>(parts * tasks));
  threads = team_of(count, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = part * kPart, n = std::min(kPart, count - begin);
    for (int64_t row = 0; row < codes.rows; ++row) {
      double sums[kTurns][kCodes] = {};
      add(a + begin, b + begin, codes.first + row * codes.pitch + begin, n, sums);
      fold(sums, found.data() + part * tasks + row * kTasksPerRow);
    }
  }
  std::fill_n(shares, tasks, 0.0);
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t t = 0; t < tasks; ++t) shares[t] += found[static_cast<size_t>(part * tasks + t)];
  }
}

}  // namespace edgepop::cpu
