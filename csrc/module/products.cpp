#include "cpu/dispatch/isa.h"
#include "module/arguments.h"
#include "module/parts.h"

namespace edgepop::python {
namespace {

// (address, dtype, strides); address 0 means absent.
using TensorArg = std::tuple<uintptr_t, int32_t, Strides>;
// (address, dtype, strides, address of packed signs or 0): with signs, the address of the one magnitude.
using WeightArg = std::tuple<uintptr_t, int32_t, Strides, uintptr_t>;
// (of, address of scores or bits, strides, address of the cut, address of the scores' packed signs or 0)
using MaskArg = std::tuple<int32_t, uintptr_t, Strides, uintptr_t, uintptr_t>;
// batch, groups, in_channels, in_h, in_w, out_channels, out_h, out_w, then (h, w) of kernel, stride, pad, dilation
using ConvArg = std::array<int64_t, 16>;

Tensor tensor(const TensorArg& arg) {
  Tensor t;
  t.data = reinterpret_cast<void*>(std::get<0>(arg));
  t.dtype = static_cast<DType>(std::get<1>(arg));
  std::copy(std::get<2>(arg).begin(), std::get<2>(arg).end(), t.stride);
  return t;
}

Weight weight(const WeightArg& arg) {
  const auto& [data, dtype, stride, signs] = arg;
  return {tensor({data, dtype, stride}), reinterpret_cast<const uint8_t*>(signs)};
}

Mask mask(const MaskArg& arg) {
  Mask m;
  m.of = static_cast<Of>(std::get<0>(arg));
  m.data = reinterpret_cast<const void*>(std::get<1>(arg));
  std::copy(std::get<2>(arg).begin(), std::get<2>(arg).end(), m.stride);
  m.cut = reinterpret_cast<const Cut*>(std::get<3>(arg));
  m.signs = reinterpret_cast<const uint8_t*>(std::get<4>(arg));
  return m;
}

Conv conv(const ConvArg& a) {
  return Conv{a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]};
}

int64_t images(const Conv& c) { return c.batch * c.in_channels * c.in_h * c.in_w; }
int64_t outputs(const Conv& c) { return c.batch * c.out_channels * c.out_h * c.out_w; }
int64_t weights(const Conv& c) { return c.out_channels * (c.in_channels / c.groups) * c.kernel_h * c.kernel_w; }

void check_weight(const Conv& c, const WeightArg& w, const MaskArg& m) {
  check("weight", std::get<0>(w), weights(c));
  check("scores", std::get<1>(m), weights(c));
}

// Products with a weight of one magnitude are compiled for masks of bits alone.
void check_product(const Conv& c, const WeightArg& w, const MaskArg& m) {
  check_weight(c, w, m);
  if (std::get<3>(w) != 0 && static_cast<Of>(std::get<0>(m)) != Of::bits) {
    throw py::value_error("mask: expected packed bits beside a weight of signs, got scores");
  }
}

void conv_forward(const ConvArg& geometry, const TensorArg& x, const WeightArg& w, const MaskArg& m, uintptr_t bias,
                  const TensorArg& y, int threads) {
  check("x", std::get<0>(x), images(conv(geometry)));
  check_product(conv(geometry), w, m);
  py::gil_scoped_release release;
  cpu::kernels().forward->conv_forward(conv(geometry), tensor(x), weight(w), mask(m), reinterpret_cast<const float*>(bias),
                              tensor(y), threads);
}

void conv_backward_input(const ConvArg& geometry, const TensorArg& dy, const WeightArg& w, const MaskArg& m,
                         const TensorArg& dx, int threads) {
  check("dy", std::get<0>(dy), outputs(conv(geometry)));
  check_product(conv(geometry), w, m);
  py::gil_scoped_release release;
  cpu::kernels().forward->conv_backward_input(conv(geometry), tensor(dy), weight(w), mask(m), tensor(dx), threads);
}

void check_backward_weight(const Conv& c, const TensorArg& dy, const TensorArg& x, const WeightArg& w, const MaskArg& m,
                           int32_t weight_grad) {
  check("dy", std::get<0>(dy), outputs(c));
  check("x", std::get<0>(x), images(c));
  check_weight(c, w, m);
  if (std::get<3>(w) != 0 && static_cast<WeightGrad>(weight_grad) != WeightGrad::none) {
    throw py::value_error("weight_grad: expected none beside a weight of signs, which has no gradient");
  }
}

void conv_backward_weight(const ConvArg& geometry, const TensorArg& dy, const TensorArg& x, const WeightArg& w,
                          const MaskArg& m, int32_t map, const TensorArg& ds, int32_t weight_grad, const TensorArg& dw,
                          int threads) {
  check_backward_weight(conv(geometry), dy, x, w, m, weight_grad);
  py::gil_scoped_release release;
  cpu::kernels().wgrad->conv_backward_weight(conv(geometry), tensor(dy), tensor(x), weight(w), mask(m),
                                      static_cast<ScoreMap>(map), tensor(ds), {}, static_cast<WeightGrad>(weight_grad),
                                      tensor(dw), threads);
}

// The same with an update of the mask's scores in place of ds.
void conv_update_scores(const ConvArg& geometry, const TensorArg& dy, const TensorArg& x, const WeightArg& w,
                        const MaskArg& m, int32_t map, const UpdateArg& update_arg, const MomentsArg& moments,
                        int32_t weight_grad, const TensorArg& dw, int threads) {
  cpu::ScoreUpdate step = {reinterpret_cast<float*>(std::get<1>(m)), update(update_arg), {}};
  for (size_t i = 0; i < moments.size(); ++i) step.moments[i] = reinterpret_cast<float*>(moments[i]);
  check_backward_weight(conv(geometry), dy, x, w, m, weight_grad);
  py::gil_scoped_release release;
  cpu::kernels().wgrad->conv_backward_weight(conv(geometry), tensor(dy), tensor(x), weight(w), mask(m),
                                      static_cast<ScoreMap>(map), Tensor{}, step, static_cast<WeightGrad>(weight_grad),
                                      tensor(dw), threads);
}

}  // namespace

void define_products(py::module_& m) {
  m.def("conv_forward", &conv_forward);
  m.def("conv_backward_input", &conv_backward_input);
  m.def("conv_backward_weight", &conv_backward_weight);
  m.def("conv_update_scores", &conv_update_scores);
}

}  // namespace edgepop::python
