// Runs of the weight, side by side, as columns of a panel's rows.
#pragma once

#include "cpu/forward/masked_weight.inl"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// How far ahead of use the weight is fetched: in elements of a run, in channels of whole kernels.
// 48 elements instead of 128 pack 4096 x 4096 a tenth faster for the forward pass (Ice Lake, 2 cores); pairs have kept
// the distance that was measured on a CPU that has them.
constexpr int64_t kAhead = 48, kPairedAhead = 128, kChannelsAhead = 6;

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

// `count` rows, a channel each, of columns that are contiguous from `at` on, to rows of `out` that lie `step` apart.
template <class T, Of of>
static inline void copy_rows(const Reader<T, of>& read, Place at, int64_t count, int64_t columns, float* out,
                             int64_t step) {
  const IntervalVec* kept = nullptr;
  if constexpr (of != Of::bits) {
    kept = read.interval(at.index, (at + (count - 1) * read.k + (columns - 1) * read.column).index);
  }
  const bool decided = of == Of::bits ? read.column.index == 1 : kept != nullptr;
  for (int64_t column = 0; column < columns; column += kLanes, out += kLanes) {
    const int64_t n = min(kLanes, columns - column);
    const Place p = at + column * read.column;
    if (decided && n == kLanes) {
      read.decided(p, kept, count, out, step);
    } else {
      for (int64_t row = 0; row < count; ++row) store(out + row * step, read.run(p + row * read.k, read.column, n));
    }
  }
}

// kLanes columns of `depth` channels, contiguous from `first` on, as rows of pairs. Two vectors of a column's channels
// become one of pairs before the transpose: half as many of those, and no second pass over float32 rows. 1024 x 1024
// packs in 120 us instead of 170 (Zen 5, 2 cores).
template <class T, Of of>
static inline void runs_to_pairs(const Reader<T, of>& read, Place first, int64_t depth, int64_t columns, bf16* out,
                                 int64_t width) {
  for (int64_t k = 0; k < depth; k += 2 * kLanes) {
    const int64_t low = min(kLanes, depth - k), high = min(kLanes, depth - k - kLanes);
    Vec tile[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const Place p = first + k * read.k + i * read.column, next = p + kLanes * read.k;
      read.prefetch(p + kPairedAhead * read.k);
      read.prefetch(next + kPairedAhead * read.k);
      if (i < columns) {
        tile[i] = (Vec)narrow_joined(read.run(p, read.k, low), high > 0 ? read.run(next, read.k, high) : zero());
      } else {
        tile[i] = zero();
      }
    }
    transpose(tile);
    const int64_t rows = ceil_div(min(2 * kLanes, depth - k), 2);
    for (int64_t i = 0; i < rows; ++i) store_pairs(out + (k + 2 * i) * width, bits_of(tile[i]));
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
