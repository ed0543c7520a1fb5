// The weight gradient's walk over pixels: which output positions make a block, and where a block's inputs lie once
// packed.
//
// The reduction of dW_eff[o, c, u, v] runs over the output positions (n, i, j). A block is some images x rows x columns
// of them; its pixels are packed in the order (i, j, n), so the positions where a tap finds the image form one run per
// row of the block: taps that look over the border shorten their runs, and no padding is stored or multiplied.
#pragma once

#include <cstdint>

#include "common/conv.h"
#include "cpu/simd/integers.h"
#include "cpu/simd/vec.h"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// One spatial axis: output position j and tap v meet input j*stride + v*dilation - pad. For a block of output positions
// only the inputs that some tap meets are packed, such that stepping j by one steps one slot whatever the stride is:
// taps whose inputs agree modulo the stride share a class, and a class's inputs lie `stride` apart, side by side.
struct WalkAxis {
  int64_t in, out, taps, stride, dilation, pad;
  int64_t block;   // output positions per block
  int64_t period;  // taps v and v + period are in one class
  int64_t shift;   // slots between them: their inputs overlap if the block is long enough, else they are packed apart
  bool overlap;
  int64_t span;   // slots per class
  int64_t slots;  // per block

  int64_t slot(int64_t tap) const { return tap % period * span + tap / period * shift; }

  // Positions of the block [first, first + length) that `tap` finds inside the input, counted from `first`.
  Range valid(int64_t tap, int64_t first, int64_t length) const {
    const int64_t before = pad - tap * dilation, last = in - 1 + before;
    const int64_t begin = before > 0 ? max(ceil_div(before, stride) - first, 0) : 0;
    const int64_t end = last < 0 ? 0 : min(last / stride + 1 - first, length);
    return {begin, max(begin, end)};
  }

  // Calls run(slot, input, count) for the inputs of a block: `count` slots in a row take inputs `stride` apart.
  template <class Run>
  void for_each_segment(int64_t first, int64_t length, const Run& run) const {
    for (int64_t c = 0; c < min(taps, period); ++c) {
      const int64_t members = ceil_div(taps - c, period);
      for (int64_t m = 0; m < (overlap ? 1 : members); ++m) {
        const int64_t input = first * stride + (c + m * period) * dilation - pad;
        const int64_t begin = input < 0 ? ceil_div(-input, stride) : 0;
        const int64_t count = overlap ? length + (members - 1) * shift : length;
        const int64_t end = input >= in ? 0 : min(count, (in - 1 - input) / stride + 1);
        if (begin < end) run(c * span + m * shift + begin, input + begin * stride, end - begin);
      }
    }
  }
};

static inline WalkAxis axis(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t dilation, int64_t pad,
                        int64_t block) {
  WalkAxis a = {in, out, taps, stride, dilation, pad, block, 0, 0, false, 0, 0};
  const int64_t common = gcd(stride, dilation);
  a.period = stride / common;
  a.overlap = dilation / common <= block;
  a.shift = a.overlap ? dilation / common : block;
  a.span = block + (ceil_div(taps, a.period) - 1) * a.shift;
  a.slots = min(taps, a.period) * a.span;
  return a;
}

// The same axis as dy sees it: every output position once.
static inline WalkAxis positions(const WalkAxis& a) { return axis(a.out, a.out, 1, 1, 1, 0, a.block); }

// The largest block size not above `most` that cuts `total` evenly.
static inline int64_t even_block(int64_t total, int64_t most) {
  if (total <= 0) return 1;
  const int64_t size = max(min(total, most), 1);
  return ceil_div(total, ceil_div(total, size));
}

// Depends on the geometry alone, never on the number of threads: the order of every sum is settled here.
struct Walk {
  int64_t units;       // images, or pairs of images where products are taken in pairs
  int64_t unit_block;  // of them per block
  WalkAxis h, w;
  int64_t blocks;

  int64_t unit_blocks() const { return ceil_div(units, unit_block); }
};

// One block of the walk.
struct Block {
  int64_t unit, units;
  int64_t row, rows;
  int64_t column, columns;
};

// Output positions (or pairs) per block: the packed panels of 128 positions, 32 KB of lanes and 3 KB of rows on
// AVX-512, stay in the first-level cache while a tap's products pass over them.
constexpr int64_t kBlockPositions = 128;

// one_unit: a block holds rows of a single image or pair.
static inline Walk walk(const Conv& g, int64_t images_per_unit, bool one_unit) {
  Walk k;
  const int64_t column_block = even_block(g.out_w, kBlockPositions);
  const int64_t row_block = even_block(g.out_h, kBlockPositions / column_block);
  k.units = ceil_div(g.batch, images_per_unit);
  k.unit_block = one_unit ? 1 : even_block(k.units, kBlockPositions / (column_block * row_block));
  k.h = axis(g.in_h, g.out_h, g.kernel_h, g.stride_h, g.dilation_h, g.pad_h, row_block);
  k.w = axis(g.in_w, g.out_w, g.kernel_w, g.stride_w, g.dilation_w, g.pad_w, column_block);
  k.blocks = k.unit_blocks() * ceil_div(g.out_h, row_block) * ceil_div(g.out_w, column_block);
  return k;
}

static inline Block block_at(const Walk& k, int64_t index) {
  const int64_t across = ceil_div(k.w.out, k.w.block), down = ceil_div(k.h.out, k.h.block);
  const int64_t column = index % across * k.w.block, row = index / across % down * k.h.block;
  const int64_t unit = index / across / down * k.unit_block;
  return {unit,   min(k.unit_block, k.units - unit),  row, min(k.h.block, k.h.out - row),
          column, min(k.w.block, k.w.out - column)};
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
