#if defined(EDGEPOP_CUDA)

#include "cuda/compiled.h"
#include "cuda/mask_bits.h"
#include "cuda/select.h"
#include "cuda/step.h"
#include "module/arguments.h"
#include "module/parts.h"

namespace edgepop::python {
namespace {

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
void select(const SelectionArg& arg, uintptr_t hints, uintptr_t stream) {
  py::gil_scoped_release release;
  cuda::select(selection(arg), reinterpret_cast<const Cut*>(hints), reinterpret_cast<void*>(stream));
}

void step(const SelectionArg& arg, const std::vector<CudaParameterArg>& parameter_args,
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

void mask_bits(uintptr_t address, const Strides& size, const Strides& stride, int32_t of, uintptr_t cut, uintptr_t bits,
               uintptr_t stream) {
  const Scores scores(address, size, stride);
  cuda::MaskBits mask = {scores.data, {}, {}, static_cast<Of>(of), reinterpret_cast<const Cut*>(cut),
                         reinterpret_cast<uint32_t*>(bits)};
  std::copy(scores.size, scores.size + 4, mask.size);
  std::copy(scores.stride, scores.stride + 4, mask.stride);
  py::gil_scoped_release release;
  cuda::mask_bits(mask, reinterpret_cast<void*>(stream));
}

}  // namespace

void define_cuda(py::module_& m) {
  py::module_ on_cuda = m.def_submodule("cuda", "What was compiled by nvcc; absent where it was not found.");
  on_cuda.attr("compiled") = cuda::compiled();
  on_cuda.attr("select_chunk") = cuda::kSelectChunk;
  on_cuda.attr("step_chunk") = cuda::kStepChunk;
  on_cuda.attr("most_parameters") = cuda::kMostParameters;
  on_cuda.attr("most_sets") = cuda::kMostSets;
  on_cuda.def("scratch_words", &cuda::scratch_words);
  on_cuda.def("select", &select);
  on_cuda.def("step", &step);
  on_cuda.def("mask_bits", &mask_bits);
}

}  // namespace edgepop::python

#endif
