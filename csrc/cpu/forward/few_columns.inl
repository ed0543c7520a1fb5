// A linear layer of few columns, as one that gives a single number: in a panel a vector would hold that one column. Here
// the masked columns stand still, and the rows of activations run past them: a product is a sum over lanes of channels.
#pragma once

#include "cpu/forward/few_rows.inl"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

constexpr int64_t kFewColumns = 2;

// Whatever the layout of the weight.
static inline bool has_few_columns(const Problem& p) {
  return p.columns <= kFewColumns && p.depth >= kLanes && is_linear(p);
}

class FewColumns {
 public:
  static constexpr int64_t kWeight = kFewColumns * kFewDepth, kResults = kFewColumns * kHeld;
  static constexpr int64_t kBlock = kRuns * kRunLength, kSums = kFewColumns * kRuns * kLanes;
  static constexpr int64_t kBytes = 4 * (kWeight + kResults + kBlock + kSums);

  FewColumns(const Problem& problem, char* memory)
      : p_(problem),
        weight_(reinterpret_cast<float*>(memory)),
        results_(weight_ + kWeight),
        block_(results_ + kResults),
        sums_(block_ + kBlock) {}

  void run(int64_t begin, int64_t end) {
    for (first_ = begin; first_ < end; first_ += kHeld) {
      rows_ = min(kHeld, end - first_);
      for (int64_t column = 0; column < p_.columns; ++column) {
        const float start = p_.start == nullptr ? 0.0f : p_.start[column];
        for (int64_t row = 0; row < rows_; ++row) results_[column * kHeld + row] = start;
      }
      for (int64_t k = 0; k < p_.depth; k += kFewDepth) {
        const int64_t depth = min(kFewDepth, p_.depth - k);
        read_runs(p_, 0, k, true, p_.columns, depth, kFewDepth, weight_);
        for (int64_t row = 0; row < rows_; row += kRuns) multiply_rows(row, k, depth);
      }
      write();
    }
  }

 private:
  void multiply_rows(int64_t row, int64_t k, int64_t depth) {
    const int64_t rows = min(kRuns, rows_ - row);
    std::memset(sums_, 0, static_cast<size_t>(p_.columns * kRuns * kLanes * 4));
    for (int64_t at = 0; at < depth; at += kRunLength) {
      const int64_t length = min(kRunLength, depth - at);
      read_rows(p_, first_ + row, rows, k + at, length, kRunLength, block_);
      for (int64_t column = 0; column < p_.columns; ++column) {
        multiply_runs(weight_ + column * kFewDepth + at, block_, length, sums_ + column * kRuns * kLanes);
      }
    }
    for (int64_t column = 0; column < p_.columns; ++column) {
      add_lanes(sums_ + column * kRuns * kLanes, rows, results_ + column * kHeld + row);
    }
  }

  void write() const {
    const int64_t step = p_.out.stride[3];
    with_type(p_.out.dtype, [&](auto type) {
      using To = decltype(type);
      for (int64_t column = 0; column < p_.columns; ++column) {
        const float* from = results_ + column * kHeld;
        To* to = static_cast<To*>(p_.out.data) + first_ * step + column * p_.out.stride[1];
        if (step == 1) {
          convert_run(from, rows_, to);
        } else {
          for (int64_t row = 0; row < rows_; ++row) from_float(from[row], to + row * step);
        }
      }
    });
  }

  const Problem& p_;
  float* const weight_;   // [columns][kFewDepth]
  float* const results_;  // [columns][kHeld]
  float* const block_;    // [kRuns][kRunLength], rows of activations
  float* const sums_;     // [columns][kRuns][kLanes]
  int64_t first_ = 0, rows_ = 0;
};

static inline void multiply_few_columns(const Problem& p, int threads) {
  share_lines(p, p.rows(), FewColumns::kBytes, threads,
              [&](char* memory, int64_t begin, int64_t end) { FewColumns(p, memory).run(begin, end); });
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
