// Geometry of a two-dimensional convolution; a linear layer is the 1x1 case with one image row of `rows` pixels.
//
//   y[n, o, i, j] = b[o] + sum over c, u, v of x[n, c, i*stride_h + u*dilation_h - pad_h, j*stride_w + v*dilation_w - pad_w]
//                                              * (W * M)[o, c, u, v]
//
// Only the leading pads are named: the trailing ones follow from the output's size.
#pragma once

#include <cstdint>

namespace edgepop {

struct Conv {
  int64_t batch, groups;
  int64_t in_channels, in_h, in_w;     // of all groups together
  int64_t out_channels, out_h, out_w;  // of all groups together
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
};

}  // namespace edgepop
