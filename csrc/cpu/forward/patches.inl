// The input gradient of windows side by side, as in the first layer of a vision transformer: kernel and stride are one.
//
// Every element of dx lies in one window, so that dx is one product, of all channels and taps at once, where phases of
// the stride would be hundreds of a few columns each: 16 x 16 kernels on 3 channels, 256 of three.
#pragma once

#include "cpu/forward/problem.inl"
#include "cpu/forward/tile.inl"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// A step through channels and taps in their logical order, the columns of that product; 0 where there is none.
static inline int64_t step_of_patches(const Conv& c, const Steps& s) {
  const bool rows = c.kernel_h == 1 || s.u == c.kernel_w * s.v;
  const bool channels = c.in_channels == 1 || s.column == c.kernel_h * c.kernel_w * s.v;
  return rows && channels ? s.v : 0;
}

// The whole of dx as one problem, in `p`; false where it is none.
static inline bool patches_problem(const Conv& c, const Tensor& dy, const Weight& w, const Mask& m, const Tensor& dx,
                                   Problem& p) {
  const bool side_by_side = c.kernel_h == c.stride_h && c.kernel_w == c.stride_w && c.pad_h == 0 && c.pad_w == 0 &&
                            c.in_h == c.out_h * c.kernel_h && c.in_w == c.out_w * c.kernel_w;
  if (!side_by_side || c.kernel_h * c.kernel_w == 1 || c.kernel_w == 1 || c.groups > 1) return false;
  if (c.dilation_h > 1 || c.dilation_w > 1) return false;
  p.b = masked_weight(c, dy.dtype, w, m, true);
  Steps* const all[] = {&p.b.weight_steps, &p.b.index_steps, &p.b.score_steps};
  for (Steps* s : all) {
    const int64_t step = step_of_patches(c, *s);
    if (step == 0 && (s != &p.b.score_steps || m.of != Of::bits)) return false;
    *s = {step, s->k, 0, 0};
  }
  p.h = forward_axis(c.out_h, c.out_h, 1, 1, 0, 1);
  p.w = forward_axis(c.out_w, c.out_w, 1, 1, 0, 1);
  p.batch = c.batch;
  p.groups = 1;
  p.depth = c.out_channels;
  p.columns = c.in_channels * c.kernel_h * c.kernel_w;
  p.channelwise = false;
  p.in = dy;
  p.out = dx;
  p.start = nullptr;
  p.group_column = p.group_k = 0;
  p.patch_h = c.kernel_h;
  p.patch_w = c.kernel_w;
  return true;
}

// Writes a tile's results, float32 rows `pitch` apart: columns [first, first + columns), each row's to its window.
template <class To>
static void write_patches(const Problem& p, const Tile& tile, const float* from, int64_t pitch, int64_t first,
                          int64_t columns) {
  const int64_t* stride = p.out.stride;
  for (int64_t q = 0, length; q < columns; q += length) {  // a row of a window at a time
    const int64_t v = (first + q) % p.patch_w, line = (first + q) / p.patch_w;
    const int64_t u = line % p.patch_h, channel = line / p.patch_h;
    length = min(p.patch_w - v, columns - q);
    const float* row = from + q;
    for (int64_t n = tile.n; n < tile.n + tile.images; ++n) {
      for (int64_t i = tile.i; i < tile.i + tile.height; ++i) {
        To* at = static_cast<To*>(p.out.data) + n * stride[0] + channel * stride[1] + (i * p.patch_h + u) * stride[2] +
                 (tile.j * p.patch_w + v) * stride[3];
        for (int64_t j = 0; j < tile.width; ++j, row += pitch, at += p.patch_w * stride[3]) {
          if (stride[3] == 1) {
            convert_run(row, length, at);
          } else {
            for (int64_t x = 0; x < length; ++x) from_float(row[x], at + x * stride[3]);
          }
        }
      }
    }
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
