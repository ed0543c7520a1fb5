// Convolutions and weight gradients of the amx instruction set on emulated tiles, for test_amx.py: the units of
// avx512bf16, beside those of avx512.
#define EDGEPOP_AMX_EMULATION "amx_emulation.h"
#include "cpu/dispatch/isa.h"
#include "cpu/dispatch/pages.cpp"
#include "cpu/dispatch/scratch.cpp"
#include "cpu/forward/amx.inl"
#include "cpu/forward/conv.inl"
#include "cpu/wgrad/amx.inl"
#include "cpu/wgrad/wgrad.inl"

namespace edgepop::cpu {

const Kernels& kernels() {
  using avx512bf16::forward::Tiles;
  static const TileKernels tiles = {Tiles::kRows, {Tiles::run<1>, Tiles::run<2>, Tiles::run<3>, Tiles::run<4>}};
  static const Kernels emulated = {"amx",   nullptr, nullptr, nullptr,
                                   nullptr, &tiles,  avx512bf16::wgrad::multiply_runs_tiled};
  return emulated;
}

}  // namespace edgepop::cpu

namespace edgepop {

// address, dtype, strides
static Tensor tensor(const int64_t* a) {
  return {reinterpret_cast<void*>(a[0]), static_cast<DType>(a[1]), {a[2], a[3], a[4], a[5]}};
}

// the same, and the address of signs
static Weight weight(const int64_t* a) { return {tensor(a), reinterpret_cast<const uint8_t*>(a[6])}; }

// of, address, strides, address of the cut, of the signs
static Mask mask(const int64_t* a) {
  return {static_cast<Of>(a[0]), reinterpret_cast<const void*>(a[1]), {a[2], a[3], a[4], a[5]},
          reinterpret_cast<const Cut*>(a[6]), reinterpret_cast<const uint8_t*>(a[7])};
}

static Conv conv(const int64_t* a) {
  return {a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]};
}

}  // namespace edgepop

using namespace edgepop;

extern "C" void conv_forward(const int64_t* geometry, const int64_t* x, const int64_t* w, const int64_t* m,
                             const float* bias, const int64_t* y, int threads) {
  cpu::avx512bf16::forward::conv_forward(conv(geometry), tensor(x), weight(w), mask(m), bias, tensor(y), threads);
}

extern "C" void conv_backward_input(const int64_t* geometry, const int64_t* dy, const int64_t* w, const int64_t* m,
                                    const int64_t* dx, int threads) {
  cpu::avx512bf16::forward::conv_backward_input(conv(geometry), tensor(dy), weight(w), mask(m), tensor(dx), threads);
}

extern "C" void conv_backward_weight(const int64_t* geometry, const int64_t* dy, const int64_t* x, const int64_t* w,
                                     const int64_t* m, int map, const int64_t* ds, int weight_grad, const int64_t* dw,
                                     int threads) {
  cpu::avx512bf16::wgrad::conv_backward_weight(conv(geometry), tensor(dy), tensor(x), weight(w), mask(m),
                                               static_cast<ScoreMap>(map), tensor(ds), {},
                                               static_cast<WeightGrad>(weight_grad), tensor(dw), threads);
}
