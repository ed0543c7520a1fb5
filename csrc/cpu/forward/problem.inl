// A convolution's forward pass, its input gradient, and each phase of a strided input gradient are one problem:
//
//   out[n, i, j, q] = start[q] + sum over taps (u, v) and channels k of
//                     in[n, i*step + shift + u*spread, (the same for j, v), k] * B[u, v][k][q]
//
// with q the output's channels, B the masked weight. Forward: step is the stride, shift -pad, spread the dilation.
// Input gradient: rows ih = i*stride + phase of dx meet the rows oh of dy with oh*stride + u*dilation - pad = ih, so
// each phase sees every (stride / gcd(stride, dilation))-th tap at step 1. Taps are counted so that the image is read
// in ascending order: backwards through the weight.
#pragma once

#include "common/conv.h"
#include "common/tensor.h"
#include "cpu/simd/integers.h"
#include "cpu/simd/packed_bits.h"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

static inline int64_t bytes_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

struct Axis {
  int64_t out, in;         // extent of the grid that is computed, extent of the image that is read
  int64_t step;            // image positions per grid position
  int64_t taps;            // taps that reach this grid
  int64_t shift, spread;   // grid position i reads i*step + shift + t*spread for tap t
  int64_t kernel;          // extent of the weight
  int64_t first, every;    // tap t is the weight's first + t*every

  bool whole_kernel() const { return taps == kernel && first == 0 && every == 1; }
};

static inline Axis forward_axis(int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t pad,
                                int64_t dilation) {
  return {out, in, stride, kernel, -pad, dilation, kernel, 0, 1};
}

// The positions phase, phase + stride, ... of an input gradient with `in` positions.
static inline Axis backward_axis(int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t pad,
                                 int64_t dilation, int64_t phase) {
  Axis axis = {phase < in ? ceil_div(in - phase, stride) : 0, out, 1, 0, 0, 0, kernel, 0, 1};
  const int64_t common = gcd(stride, dilation), every = stride / common;
  int64_t nearest = min(every, kernel) - 1;
  while (nearest >= 0 && (phase + pad - nearest * dilation) % stride != 0) --nearest;
  if (nearest < 0) return axis;
  axis.taps = (kernel - 1 - nearest) / every + 1;
  axis.first = nearest + (axis.taps - 1) * every;
  axis.every = -every;
  axis.spread = dilation / common;
  axis.shift = (phase + pad - axis.first * dilation) / stride;
  return axis;
}

// Steps along the dimensions of B: column q, channel k, tap (u, v).
struct Steps {
  int64_t column, k, u, v;
};

// A weight of signs lies in the logical order of its bits.
struct MaskedWeight {
  const void* weight;  // or its one magnitude
  const uint8_t* signs;
  DType dtype;
  Steps weight_steps;
  const void* scores;  // float32 scores, or packed bits
  Steps score_steps;
  Of of;
  Steps index_steps;         // of the logical flat index
  Interval up_to, after;     // what is kept up to the cut's index, and behind it
  int64_t cut_index;
  float magnitude;           // of a weight of signs, rounded already
};

struct Problem {
  Axis h, w;
  int64_t batch, groups;
  int64_t depth, columns;  // channels read and channels written, of one group
  bool channelwise;        // every channel reads the `depth` channels of its group, in one vector with it; groups is 1
  Tensor in, out;
  const float* start;  // float32, columns * groups, or null for zeros
  MaskedWeight b;
  int64_t group_column, group_k;  // where B's next group begins
  int64_t patch_h = 0, patch_w = 0;  // of a window that the columns fill, channel by channel; 0: a pixel takes them all

  int64_t rows() const { return batch * h.out * w.out; }
  int64_t taps() const { return h.taps * w.taps; }
};

// Groups of one channel, or of few that fill a vector together.
static inline bool is_channelwise(const Conv& c) {
  const int64_t width = c.in_channels / c.groups;
  return c.groups > 1 && c.in_channels == c.out_channels && width > 0 && width < kLanes && kLanes % width == 0;
}

// The magnitude of a weight of signs in the activations' precision, to which all products round the weight.
static inline float rounded_magnitude(const Weight& w, DType in) {
  float lanes[kLanes] = {};
  with_type(in, [&](auto type) { store(lanes, round_to(broadcast(magnitude_of(w)), type)); });
  return lanes[0];
}

static inline MaskedWeight masked_weight(const Conv& c, DType in, const Weight& w, const Mask& m, bool backward) {
  const int64_t taps = c.kernel_h * c.kernel_w;
  const int64_t index_stride[4] = {c.in_channels / c.groups * taps, taps, c.kernel_w, 1};
  const auto steps = [&](const int64_t* s) {
    return backward ? Steps{s[1], s[0], s[2], s[3]} : Steps{s[0], s[1], s[2], s[3]};
  };
  MaskedWeight b = {w.data, w.signs, w.dtype, steps(w.signs == nullptr ? w.stride : index_stride),
                    m.data, steps(m.stride), m.of, steps(index_stride), {}, {}, 0, 0.0f};
  if (w.signs != nullptr) b.magnitude = rounded_magnitude(w, in);
  if (m.of == Of::bits) return b;
  b.up_to = up_to(m.of, *m.cut);
  b.after = after(m.of, *m.cut);
  b.cut_index = m.cut->index;
  return b;
}

static inline Problem forward_problem(const Conv& c, const Tensor& x, const Weight& w, const Mask& m,
                                      const float* bias, const Tensor& y, bool channelwise) {
  Problem p;
  p.h = forward_axis(c.out_h, c.in_h, c.kernel_h, c.stride_h, c.pad_h, c.dilation_h);
  p.w = forward_axis(c.out_w, c.in_w, c.kernel_w, c.stride_w, c.pad_w, c.dilation_w);
  p.channelwise = channelwise;
  p.batch = c.batch;
  p.groups = p.channelwise ? 1 : c.groups;
  p.depth = c.in_channels / c.groups;
  p.columns = c.out_channels / p.groups;
  p.in = x;
  p.out = y;
  p.start = bias;
  p.b = masked_weight(c, x.dtype, w, m, false);
  p.group_column = p.columns;
  p.group_k = 0;
  return p;
}

// The part of dx at rows h_phase + i*stride_h and columns w_phase + j*stride_w.
static inline Problem backward_problem(const Conv& c, const Tensor& dy, const Weight& w, const Mask& m,
                                       const Tensor& dx, int64_t h_phase, int64_t w_phase,
                                       bool channelwise) {
  Problem p;
  p.h = backward_axis(c.out_h, c.in_h, c.kernel_h, c.stride_h, c.pad_h, c.dilation_h, h_phase);
  p.w = backward_axis(c.out_w, c.in_w, c.kernel_w, c.stride_w, c.pad_w, c.dilation_w, w_phase);
  p.channelwise = channelwise;
  p.batch = c.batch;
  p.groups = p.channelwise ? 1 : c.groups;
  p.depth = c.out_channels / c.groups;
  p.columns = c.in_channels / p.groups;
  p.in = dy;
  p.out = dx;
  p.out.data = static_cast<char*>(dx.data) +
               (h_phase * dx.stride[2] + w_phase * dx.stride[3]) * bytes_of(dx.dtype);
  p.out.stride[2] *= c.stride_h;
  p.out.stride[3] *= c.stride_w;
  p.start = nullptr;
  // Depthwise: the channel is the weight's first dimension in both directions.
  const bool depthwise = p.channelwise && p.depth == 1;
  p.b = masked_weight(c, dy.dtype, w, m, !depthwise);
  p.group_column = 0;
  p.group_k = depthwise ? 0 : p.depth;
  return p;
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
