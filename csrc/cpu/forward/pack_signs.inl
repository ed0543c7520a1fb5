// What pack_runs.inl does, of a weight of signs: 32 elements are a word of either bits, and no more is read of them.
//
// Of the time with a float weight beside the mask's bits, 32 rows by 4096 x 4096 take 0.70 forward and 0.54 for the
// input gradient with AVX-512, 0.77 and 0.48 with AVX2, 0.32 and 0.25 in bfloat16 with AMX (Xeon with AMX, one thread).
#pragma once

#include "cpu/forward/masked_weight.inl"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// Elements of each of kLanes columns, the last of them in front. No transposes: a row is what all columns have there.
struct ColumnWords {
  IntVec kept, negative;
  Vec magnitudes;

  // n from p on, n <= 32; behind them come elements that are not kept, up to `rows`.
  ColumnWords(const Reader<Signs, Of::bits>& read, Place p, int64_t columns, int64_t n, int64_t rows)
      : magnitudes(read.magnitudes) {
    uint32_t words[2][kLanes] = {};
    for (int64_t i = 0; i < columns; ++i, p.index += read.column.index) {
      words[0][i] = (load_32_bits_at(read.kept, p.index) & low_bits(n)) << (32 - rows);
      words[1][i] = load_32_bits_at(read.negative, p.index) << (32 - rows);
    }
    kept = load_bits(words[0]);
    negative = load_bits(words[1]);
  }

  // The row of the last elements, which are gone then.
  Vec pop() {
    const Vec row = signed_lanes(kept, negative, magnitudes);
    kept = twice(kept);
    negative = twice(negative);
    return row;
  }
};

template <class RowOf>
static inline void runs_to_columns(const Reader<Signs, Of::bits>& read, Place first, Place step, int64_t length,
                                   int64_t columns, Place, float* out, int64_t width, RowOf row_of) {
  for (int64_t j = 0; j < length; j += 32) {
    const int64_t n = min(32, length - j);
    int64_t rows[32];
    for (int64_t i = 0; i < n; ++i) rows[i] = row_of(j + i);
    ColumnWords words(read, first + j * step, columns, n, n);
    for (int64_t i = n - 1; i >= 0; --i) {
      const Vec row = words.pop();
      if (rows[i] >= 0) store(out + rows[i] * width, row);
    }
  }
}

// The first n of a row's elements from p on, n <= 32, behind them some that are not kept; columns are contiguous.
struct RowWords {
  IntVec kept, negative;
  Vec magnitudes;

  RowWords(const Reader<Signs, Of::bits>& read, Place p, int64_t n)
      : kept(broadcast_bits(load_32_bits_at(read.kept, p.index) & low_bits(n))),
        negative(broadcast_bits(load_32_bits_at(read.negative, p.index))),
        magnitudes(read.magnitudes) {}

  Vec from(int i) const { return signed_lanes(raise_lanes(kept, i), raise_lanes(negative, i), magnitudes); }
};

static inline void copy_rows(const Reader<Signs, Of::bits>& read, Place at, int64_t count, int64_t columns, float* out,
                             int64_t step) {
  for (int64_t row = 0; row < count; ++row, at = at + read.k, out += step) {
    for (int64_t column = 0; column < columns; column += 32) {
      const int64_t n = min(32, columns - column);
      const RowWords words(read, at + column * read.column, n);
#pragma GCC unroll 8
      for (int i = 0; i < 32; i += kLanes) {
        if (i < n) store(out + column + i, words.from(i));
      }
    }
  }
}

static inline void runs_to_pairs(const Reader<Signs, Of::bits>& read, Place first, int64_t depth, int64_t columns,
                                 bf16* out, int64_t width) {
  for (int64_t k = 0; k < depth; k += 32) {
    const int64_t n = min(32, depth - k), rows = round_up(n, 2);
    ColumnWords words(read, first + k * read.k, columns, n, rows);
    for (int64_t i = rows - 2; i >= 0; i -= 2) {
      const Vec odd = words.pop();
      store_pairs(out + (k + i) * width, pairs_of(words.pop(), odd));
    }
  }
}

// Two rows, of which the second need not exist, as one of pairs.
static inline void copy_pair(const Reader<Signs, Of::bits>& read, Place at, bool two, int64_t columns, bf16* out) {
  for (int64_t column = 0; column < columns; column += 32) {
    const int64_t n = min(32, columns - column);
    const Place p = at + column * read.column;
    const RowWords even(read, p, n), odd(read, two ? p + read.k : p, two ? n : 0);
#pragma GCC unroll 2
    for (int i = 0; i < 32; i += kLanes) {
      if (i < n) store_pairs(out + 2 * (column + i), pairs_of(even.from(i), odd.from(i)));
    }
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
