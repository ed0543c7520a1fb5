// The pybind11 module edgepop_kernels._native: addresses and numbers in, nothing of torch.
// Arguments are checked in Python, once, before an address is taken. The last line before the kernels is here: a tensor
// that has elements and no address (a DTensor and other wrappers keep theirs elsewhere) is refused, not read.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "cpu/select/blocks.h"
#include "cpu/select/draw.h"
#include "cpu/select/group_bits.h"
#include "cpu/select/fingerprint.h"
#include "cpu/dispatch/isa.h"
#include "cpu/dispatch/threads.h"
#include "cpu/select/mask_bits.h"
#include "cpu/select/read.h"
#include "cpu/select/select.h"
#include "cpu/optim/step.h"
#if defined(EDGEPOP_CUDA)
#include "cuda/compiled.h"
#include "cuda/mask_bits.h"
#include "cuda/select.h"
#include "cuda/step.h"
#endif

namespace py = pybind11;

namespace edgepop {
namespace {

using Strides = std::array<int64_t, 4>;

// (address, dtype, strides); address 0 means absent.
using TensorArg = std::tuple<uintptr_t, int32_t, Strides>;
// (address, dtype, strides, address of packed signs or 0): with signs, the address of the one magnitude.
using WeightArg = std::tuple<uintptr_t, int32_t, Strides, uintptr_t>;
// (of, address of scores or bits, strides, address of the cut, address of the scores' packed signs or 0)
using MaskArg = std::tuple<int32_t, uintptr_t, Strides, uintptr_t, uintptr_t>;
// batch, groups, in_channels, in_h, in_w, out_channels, out_h, out_w, then (h, w) of kernel, stride, pad, dilation
using ConvArg = std::array<int64_t, 16>;

void check(const char* name, uintptr_t address, int64_t count) {
  if (address == 0 && count > 0) {
    throw py::type_error(std::string(name) + ": expected a tensor with memory of its own, got one without: a wrapper "
                         "such as DTensor keeps its values elsewhere");
  }
}

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

void check(const Conv& c, const WeightArg& w, const MaskArg& m) {
  check("weight", std::get<0>(w), weights(c));
  check("scores", std::get<1>(m), weights(c));
}

// Products with a weight of one magnitude are compiled for masks of bits alone.
void check_product(const Conv& c, const WeightArg& w, const MaskArg& m) {
  check(c, w, m);
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

// The update of an optimizer: "sgd" or "adam", and the fields of its struct in common/update.h in their order.
using UpdateArg = std::pair<std::string, std::vector<float>>;
using MomentsArg = std::array<uintptr_t, 3>;  // addresses, 0 where there is none

Update update(const UpdateArg& arg) {
  const auto& [name, a] = arg;
  const size_t fields = name == "sgd" ? 7 : name == "adam" ? 10 : 0;
  if (fields == 0) throw py::value_error("update: expected sgd or adam, got " + name);
  if (a.size() != fields) {
    throw py::value_error("update: expected " + std::to_string(fields) + " numbers for " + name + ", got " +
                          std::to_string(a.size()));
  }
  Update u;
  if (name == "sgd") {
    u.sgd = {a[0], a[1], a[2], a[3], a[4], a[5] != 0, a[6] != 0};
  } else {
    u.kind = Update::Kind::adam;
    u.adam = {a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]};
  }
  return u;
}

void check_backward_weight(const Conv& c, const TensorArg& dy, const TensorArg& x, const WeightArg& w, const MaskArg& m,
                           int32_t weight_grad) {
  check("dy", std::get<0>(dy), outputs(c));
  check("x", std::get<0>(x), images(c));
  check(c, w, m);
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

// address of the scores, sizes, strides, of, number kept, addresses of the cut, of the hint or 0, of where the packed
// mask and signs go or 0
using RankingArg =
    std::tuple<uintptr_t, Strides, Strides, int32_t, int64_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

std::vector<cpu::Ranking> rankings_of(const std::vector<RankingArg>& layers) {
  std::vector<cpu::Ranking> rankings;
  rankings.reserve(layers.size());
  for (const auto& [scores, size, stride, of, kept, cut, hint, mask, signs] : layers) {
    check("scores", scores, size[0] * size[1] * size[2] * size[3]);
    cpu::Ranking r = {reinterpret_cast<const float*>(scores), {}, {}, static_cast<Of>(of), kept,
                      reinterpret_cast<Cut*>(cut), reinterpret_cast<const Cut*>(hint),
                      reinterpret_cast<uint8_t*>(mask), reinterpret_cast<uint8_t*>(signs)};
    std::copy(size.begin(), size.end(), r.size);
    std::copy(stride.begin(), stride.end(), r.stride);
    rankings.push_back(r);
  }
  return rankings;
}

void select(const std::vector<RankingArg>& layers, int threads) {
  const std::vector<cpu::Ranking> rankings = rankings_of(layers);
  py::gil_scoped_release release;
  cpu::select(rankings, threads);
}

// address and number of float32 scores
using RangeArg = std::pair<uintptr_t, int64_t>;

uint32_t read(const std::vector<RangeArg>& args, int threads) {
  std::vector<cpu::ScoreRange> ranges;
  for (const auto& [scores, count] : args) ranges.push_back({reinterpret_cast<const float*>(scores), count});
  py::gil_scoped_release release;
  return cpu::read(ranges, threads);
}

uint64_t fingerprint(uintptr_t scores, const Strides& size, const Strides& stride) {
  check("scores", scores, size[0] * size[1] * size[2] * size[3]);
  return cpu::fingerprint(reinterpret_cast<const uint32_t*>(scores), size.data(), stride.data());
}

// addresses of value and gradient, moments, number of elements, and the update
using ParameterArg = std::tuple<uintptr_t, uintptr_t, MomentsArg, int64_t, UpdateArg>;

// Parameters that are ranked come first, in the order of the rankings.
void step(const std::vector<ParameterArg>& parameters, const std::vector<RankingArg>& layers, int threads) {
  std::vector<cpu::Parameter> updated;
  updated.reserve(parameters.size());
  for (const auto& [value, grad, moments, count, arg] : parameters) {
    check("params", value, count);
    check("grad", grad, count);
    cpu::Elements elements = {reinterpret_cast<float*>(value), reinterpret_cast<const float*>(grad), {}};
    for (size_t i = 0; i < moments.size(); ++i) elements.moments[i] = reinterpret_cast<float*>(moments[i]);
    updated.push_back({elements, count, update(arg)});
  }
  const std::vector<cpu::Ranking> rankings = rankings_of(layers);
  py::gil_scoped_release release;
  cpu::step(updated, rankings, threads);
}

// The seed is read from its address: the caller's tensor never becomes a number of Python.
void draw(uintptr_t scores, const Strides& size, const Strides& stride, uintptr_t seed, uintptr_t bits, int threads) {
  check("scores", scores, size[0] * size[1] * size[2] * size[3]);
  check("seed", seed, 1);
  int64_t sizes[4], strides[4];
  std::copy(size.begin(), size.end(), sizes);
  std::copy(stride.begin(), stride.end(), strides);
  py::gil_scoped_release release;
  cpu::draw(reinterpret_cast<const float*>(scores), sizes, strides, *reinterpret_cast<const uint64_t*>(seed),
            reinterpret_cast<uint8_t*>(bits), threads);
}

void mask_bits(uintptr_t scores, const Strides& size, const Strides& stride, int32_t of, uintptr_t cut, uintptr_t bits,
               int threads) {
  check("scores", scores, size[0] * size[1] * size[2] * size[3]);
  check("cut", cut, 1);
  int64_t sizes[4], strides[4];
  std::copy(size.begin(), size.end(), sizes);
  std::copy(stride.begin(), stride.end(), strides);
  py::gil_scoped_release release;
  cpu::mask_bits(reinterpret_cast<const float*>(scores), sizes, strides, static_cast<Of>(of),
                 *reinterpret_cast<const Cut*>(cut), reinterpret_cast<uint8_t*>(bits), threads);
}

// group: the number of scores in one, of those kept, and how far apart they lie.
void group_bits(uintptr_t scores, const Strides& size, const Strides& stride, int32_t of,
                const std::array<int64_t, 3>& group, uintptr_t bits, int threads) {
  const int64_t count = size[0] * size[1] * size[2] * size[3];
  check("scores", scores, count);
  const cpu::Groups groups = {group[0], group[1], group[2]};
  if (groups.size < 1 || groups.size > cpu::kLargestGroup || groups.kept < 1 || groups.kept > groups.size ||
      groups.apart < 1 || count % (groups.size * groups.apart) != 0) {
    throw py::value_error("group: expected one of 1 to 64 scores, some of them kept, that divides the layer");
  }
  int64_t sizes[4], strides[4];
  std::copy(size.begin(), size.end(), sizes);
  std::copy(stride.begin(), stride.end(), strides);
  py::gil_scoped_release release;
  cpu::group_bits(reinterpret_cast<const float*>(scores), sizes, strides, static_cast<Of>(of), groups,
                  reinterpret_cast<uint8_t*>(bits), threads);
}

using BlockDims = std::array<int64_t, cpu::kBlockDims>;

cpu::Blocks blocks(const BlockDims& count, const BlockDims& size) {
  cpu::Blocks b;
  for (int d = 0; d < cpu::kBlockDims; ++d) {
    if (count[d] < 0 || size[d] < 1) throw py::value_error("block: expected a size of at least 1 in each dimension");
    b.count[d] = count[d];
    b.size[d] = size[d];
  }
  return b;
}

void block_sums(uintptr_t scores, const Strides& size, const Strides& stride, int32_t of, const BlockDims& count,
                const BlockDims& block, uintptr_t sums, int threads) {
  const cpu::Blocks in = blocks(count, block);
  if (size[0] * size[1] * size[2] * size[3] != in.elements()) {
    throw py::value_error("block: expected blocks of as many elements as there are scores");
  }
  check("scores", scores, in.elements());
  check("sums", sums, in.blocks());
  int64_t sizes[4], strides[4];
  std::copy(size.begin(), size.end(), sizes);
  std::copy(stride.begin(), stride.end(), strides);
  py::gil_scoped_release release;
  cpu::block_sums(reinterpret_cast<const float*>(scores), sizes, strides, static_cast<Of>(of), in,
                  reinterpret_cast<float*>(sums), threads);
}

void block_bits(uintptr_t sums, uintptr_t cut, const BlockDims& count, const BlockDims& block, uintptr_t bits,
                int threads) {
  const cpu::Blocks in = blocks(count, block);
  check("sums", sums, in.blocks());
  check("cut", cut, 1);
  py::gil_scoped_release release;
  cpu::block_bits(reinterpret_cast<const float*>(sums), *reinterpret_cast<const Cut*>(cut), in,
                  reinterpret_cast<uint8_t*>(bits), threads);
}

#if defined(EDGEPOP_CUDA)
// Addresses of the first scores and of the table of layers, layers, chunks, addresses of the cuts, of the candidates and
// of the scratch.
using SelectionArg = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t>;
// Addresses of the gradient, the moments and the hint or 0; the set of coefficients.
using CudaParameterArg = std::tuple<uintptr_t, MomentsArg, uintptr_t, uint32_t>;
// What coefficients follow from on the device: of each parameter the addresses of its count and learning rate, or 0; of
// each set the learning rate, both betas and AdamW's decay; the address of room for the coefficients.
using FollowingArg = std::tuple<std::vector<std::array<uintptr_t, 2>>, std::vector<std::array<double, 4>>, uintptr_t>;

cuda::Selection selection(const SelectionArg& arg) {
  const auto& [scores, layers, layer_count, chunk_count, cuts, candidates, scratch] = arg;
  return {reinterpret_cast<uint32_t*>(scores),     reinterpret_cast<const cuda::Layer*>(layers), layer_count, chunk_count,
          reinterpret_cast<Cut*>(cuts), reinterpret_cast<uint64_t*>(candidates), reinterpret_cast<uint32_t*>(scratch)};
}

// stream: a cudaStream_t.
void select_on_cuda(const SelectionArg& arg, uintptr_t hints, uintptr_t stream) {
  py::gil_scoped_release release;
  cuda::select(selection(arg), reinterpret_cast<const Cut*>(hints), reinterpret_cast<void*>(stream));
}

void step_on_cuda(const SelectionArg& arg, const std::vector<CudaParameterArg>& parameter_args,
                  const std::vector<UpdateArg>& set_args, const FollowingArg& following_arg, uintptr_t stream) {
  std::vector<cuda::Parameter> parameters;
  for (const auto& [grad, moments, hint, set] : parameter_args) {
    cuda::Parameter p = {reinterpret_cast<const float*>(grad), {}, reinterpret_cast<const Cut*>(hint), set};
    for (int m = 0; m < 3; ++m) p.moments[m] = reinterpret_cast<float*>(moments[m]);
    parameters.push_back(p);
  }
  std::vector<Sgd> sgd;
  std::vector<Adam> adam;
  for (const UpdateArg& set : set_args) {
    const Update u = update(set);
    if (u.kind == Update::Kind::sgd) sgd.push_back(u.sgd);
    if (u.kind == Update::Kind::adam) adam.push_back(u.adam);
  }
  if (!sgd.empty() && !adam.empty()) throw py::value_error("update: expected one optimizer in a launch, got sgd and adam");
  const auto& [sources, rates, derived] = following_arg;
  cuda::Following following = {{}, {}, reinterpret_cast<void*>(derived)};
  for (const auto& [count, lr] : sources) {
    following.sources.push_back({reinterpret_cast<float*>(count), reinterpret_cast<const float*>(lr)});
  }
  for (const auto& [lr, beta1, beta2, decay] : rates) following.rates.push_back({lr, beta1, beta2, decay});
  py::gil_scoped_release release;
  const cuda::Sets sets = adam.empty() ? cuda::Sets(sgd) : cuda::Sets(adam);
  cuda::step(selection(arg), parameters, sets, following, reinterpret_cast<void*>(stream));
}

void mask_bits_on_cuda(uintptr_t scores, const Strides& size, const Strides& stride, int32_t of, uintptr_t cut,
                       uintptr_t bits, uintptr_t stream) {
  cuda::MaskBits mask = {reinterpret_cast<const float*>(scores), {}, {}, static_cast<Of>(of),
                         reinterpret_cast<const Cut*>(cut), reinterpret_cast<uint32_t*>(bits)};
  std::copy(size.begin(), size.end(), mask.size);
  std::copy(stride.begin(), stride.end(), mask.stride);
  py::gil_scoped_release release;
  cuda::mask_bits(mask, reinterpret_cast<void*>(stream));
}
#endif

}  // namespace
}  // namespace edgepop

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native kernels of edgepop_kernels. Private: use edgepop_kernels.masked_linear and its siblings.";
#if defined(__clang__)
  m.attr("compiler") = __VERSION__;
#else
  m.attr("compiler") = "GCC " __VERSION__;
#endif
  m.attr("threads") = edgepop::cpu::kThreads;
  m.def("isa", [] { return edgepop::cpu::kernels().name; });
  m.def("isas", &edgepop::cpu::usable, "The instruction sets that this machine can run, the widest first.");
  m.def("use_isa", &edgepop::cpu::use, "Has later calls use the named instruction set; returns the one before.");
  m.def("isa_passed_over", &edgepop::cpu::passed_over);
  m.def("read", &edgepop::read, "The bits that any of the scores has: the read that benchmarks measure selection by.");
  m.def("fingerprint", &edgepop::fingerprint, "A number that writes to most of the scores change.");
  m.def("select", &edgepop::select);
  m.def("step", &edgepop::step);
  m.def("draw", &edgepop::draw);
  m.def("mask_bits", &edgepop::mask_bits);
  m.def("group_bits", &edgepop::group_bits);
  m.def("block_sums", &edgepop::block_sums);
  m.def("block_bits", &edgepop::block_bits);
  m.def("conv_forward", &edgepop::conv_forward);
  m.def("conv_backward_input", &edgepop::conv_backward_input);
  m.def("conv_backward_weight", &edgepop::conv_backward_weight);
  m.def("conv_update_scores", &edgepop::conv_update_scores);
#if defined(EDGEPOP_CUDA)
  py::module_ on_cuda = m.def_submodule("cuda", "What was compiled by nvcc; absent where it was not found.");
  on_cuda.attr("compiled") = edgepop::cuda::compiled();
  on_cuda.attr("select_chunk") = edgepop::cuda::kSelectChunk;
  on_cuda.attr("step_chunk") = edgepop::cuda::kStepChunk;
  on_cuda.attr("most_parameters") = edgepop::cuda::kMostParameters;
  on_cuda.attr("most_sets") = edgepop::cuda::kMostSets;
  on_cuda.def("scratch_words", &edgepop::cuda::scratch_words);
  on_cuda.def("select", &edgepop::select_on_cuda);
  on_cuda.def("step", &edgepop::step_on_cuda);
  on_cuda.def("mask_bits", &edgepop::mask_bits_on_cuda);
#endif
}
