#include "cpu/optim/step.h"
#include "cpu/select/blocks.h"
#include "cpu/select/draw.h"
#include "cpu/select/fingerprint.h"
#include "cpu/select/group_bits.h"
#include "cpu/select/mask_bits.h"
#include "cpu/select/read.h"
#include "cpu/select/select.h"
#include "module/arguments.h"
#include "module/parts.h"

namespace edgepop::python {
namespace {

// address of the scores, sizes, strides, of, number kept, addresses of the cut, of the hint or 0, of where the packed
// mask and signs go or 0
using RankingArg =
    std::tuple<uintptr_t, Strides, Strides, int32_t, int64_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

std::vector<cpu::Ranking> rankings_of(const std::vector<RankingArg>& layers) {
  std::vector<cpu::Ranking> rankings;
  rankings.reserve(layers.size());
  for (const auto& [address, size, stride, of, kept, cut, hint, mask, signs] : layers) {
    const Scores scores(address, size, stride);
    cpu::Ranking r = {scores.data, {}, {}, static_cast<Of>(of), kept, reinterpret_cast<Cut*>(cut),
                      reinterpret_cast<const Cut*>(hint), reinterpret_cast<uint8_t*>(mask),
                      reinterpret_cast<uint8_t*>(signs)};
    std::copy(scores.size, scores.size + 4, r.size);
    std::copy(scores.stride, scores.stride + 4, r.stride);
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

uint64_t fingerprint(uintptr_t address, const Strides& size, const Strides& stride) {
  const Scores scores(address, size, stride);
  return cpu::fingerprint(reinterpret_cast<const uint32_t*>(address), scores.size, scores.stride);
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
void draw(uintptr_t address, const Strides& size, const Strides& stride, uintptr_t seed, uintptr_t bits, int threads) {
  const Scores scores(address, size, stride);
  check("seed", seed, 1);
  py::gil_scoped_release release;
  cpu::draw(scores.data, scores.size, scores.stride, *reinterpret_cast<const uint64_t*>(seed),
            reinterpret_cast<uint8_t*>(bits), threads);
}

void mask_bits(uintptr_t address, const Strides& size, const Strides& stride, int32_t of, uintptr_t cut, uintptr_t bits,
               int threads) {
  const Scores scores(address, size, stride);
  check("cut", cut, 1);
  py::gil_scoped_release release;
  cpu::mask_bits(scores.data, scores.size, scores.stride, static_cast<Of>(of),
                 *reinterpret_cast<const Cut*>(cut), reinterpret_cast<uint8_t*>(bits), threads);
}

// group: the number of scores in one, of those kept, and how far apart they lie.
void group_bits(uintptr_t address, const Strides& size, const Strides& stride, int32_t of,
                const std::array<int64_t, 3>& group, uintptr_t bits, int threads) {
  const Scores scores(address, size, stride);
  const cpu::Groups groups = {group[0], group[1], group[2]};
  if (groups.size < 1 || groups.size > cpu::kLargestGroup || groups.kept < 1 || groups.kept > groups.size ||
      groups.apart < 1 || scores.count() % (groups.size * groups.apart) != 0) {
    throw py::value_error("group: expected one of 1 to 64 scores, some of them kept, that divides the layer");
  }
  py::gil_scoped_release release;
  cpu::group_bits(scores.data, scores.size, scores.stride, static_cast<Of>(of), groups,
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

void block_sums(uintptr_t address, const Strides& size, const Strides& stride, int32_t of, const BlockDims& count,
                const BlockDims& block, uintptr_t sums, int threads) {
  const cpu::Blocks in = blocks(count, block);
  const Scores scores(address, size, stride);
  if (scores.count() != in.elements()) {
    throw py::value_error("block: expected blocks of as many elements as there are scores");
  }
  check("sums", sums, in.blocks());
  py::gil_scoped_release release;
  cpu::block_sums(scores.data, scores.size, scores.stride, static_cast<Of>(of), in,
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

}  // namespace

void define_scores(py::module_& m) {
  m.def("read", &read, "The bits that any of the scores has: the read that benchmarks measure selection by.");
  m.def("fingerprint", &fingerprint, "A number that writes to most of the scores change.");
  m.def("select", &select);
  m.def("step", &step);
  m.def("draw", &draw);
  m.def("mask_bits", &mask_bits);
  m.def("group_bits", &group_bits);
  m.def("block_sums", &block_sums);
  m.def("block_bits", &block_bits);
}

}  // namespace edgepop::python
