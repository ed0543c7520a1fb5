// Runs of the weight, side by side, as columns of a panel's rows.
#pragma once

#include "masked_weight.inl"

namespace edgepop::cpu::EDGEPOP_ISA::brgemm {

// kLanes columns by kLanes elements where one interval decides over them all, which is nearly everywhere; false, and
// nothing read, elsewhere. Asking once instead of for every run: a linear layer of 32 rows by 4096 x 4096 in a twelfth
// less time, of 128 by 1024 x 1024 in a thirtieth (Ice Lake, 2 cores).
template <class T, Of of>
static inline bool whole_square(const Reader<T, of>& read, Place corner, Place step, Place ahead, Vec (&tile)[kLanes]) {
  if constexpr (of != Of::bits) {
    const Place last = corner + (kLanes - 1) * step + (kLanes - 1) * read.column;
    const IntervalVec* const kept = read.interval(corner.index, last.index);
    if (kept == nullptr) return false;
    const T* w = read.weight + corner.weight;
    const float* s = read.scores + corner.score;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i, w += read.column.weight, s += read.column.score) {
      __builtin_prefetch(w + ahead.weight, 0, 2);
      __builtin_prefetch(s + ahead.score, 0, 2);
      tile[i] = keep<of>(load(w), load(s), *kept);
    }
    return true;
  }
  if (step.index != 1) return false;
  const T* w = read.weight + corner.weight;
  int64_t index = corner.index;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i, w += read.column.weight, index += read.column.index) {
    __builtin_prefetch(w + ahead.weight, 0, 2);
    tile[i] = keep_bits(load(w), load_bits_at(read.bits, index));
  }
  return true;
}

// kLanes columns by `length` elements, contiguous from `first` in steps of `step`; element j goes to the row of `out`
// that row_of(j) tells, or nowhere if that is negative; asked of each in order. What lies `ahead` of them is fetched.
template <class T, Of of, class RowOf>
static inline void runs_to_columns(const Reader<T, of>& read, Place first, Place step, int64_t length, int64_t columns,
                                   Place ahead, float* out, int64_t width, RowOf row_of) {
  for (int64_t j = 0; j < length; j += kLanes) {
    const int64_t n = min(kLanes, length - j);
    Vec tile[kLanes];
    const Place corner = first + j * step;
    if (n < kLanes || columns < kLanes || !whole_square(read, corner, step, ahead, tile)) {
      for (int64_t i = 0; i < kLanes; ++i) {
        read.prefetch(corner + i * read.column + ahead);
        tile[i] = i < columns ? read.run(corner + i * read.column, step, n) : zero();
      }
    }
    transpose(tile);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = row_of(j + i);
      if (row >= 0) store(out + row * width, tile[i]);
    }
  }
}

// Of a weight of signs: 32 of a column's elements are a word of either bits, and a row is what all columns' words have at
// one place. No transposes.
template <class RowOf>
static inline void runs_to_columns(const Reader<Signs, Of::bits>& read, Place first, Place step, int64_t length,
                                   int64_t columns, Place, float* out, int64_t width, RowOf row_of) {
  for (int64_t j = 0; j < length; j += 32) {
    const int64_t n = min(32, length - j);
    int64_t rows[32];
    for (int64_t i = 0; i < n; ++i) rows[i] = row_of(j + i);
    // The last of the n elements first, in the words' highest bit.
    IntVec kept = read.words(read.kept, first + j * step, columns, 32 - n);
    IntVec negative = read.words(read.negative, first + j * step, columns, 32 - n);
    for (int64_t i = n - 1; i >= 0; --i, kept = twice(kept), negative = twice(negative)) {
      if (rows[i] >= 0) store(out + rows[i] * width, signed_lanes(kept, negative, read.magnitudes));
    }
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::brgemm
