// The CPU kernels without Python, for machines that are emulated: every instruction set that can run, against sums in
// double written down as the formulas say. `make arm` compiles it for 64-bit ARM and runs it under qemu.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/dispatch/isa.h"
#include "cpu/optim/step.h"
#include "cpu/select/blocks.h"
#include "cpu/select/draw.h"
#include "cpu/select/group_bits.h"
#include "cpu/select/mask_bits.h"
#include "cpu/select/select.h"

using namespace edgepop;

namespace {

std::mt19937 random_bits(0);
int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAILED on %s: %s\n", cpu::kernels().name, what.c_str());
  ++failures;
}

int64_t any(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }

std::vector<float> normal(int64_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = distribution(random_bits);
  return values;
}

// Scores of a kind that is hard to rank.
std::vector<float> hostile(int64_t count, int kind) {
  std::vector<float> s = normal(count);
  for (size_t i = 0; i < s.size(); ++i) {
    if (kind == 1) s[i] = std::round(2 * s[i]) / 2;  // ties, and zeros of either sign
    if (kind == 2 && any(0, 9) == 0) s[i] = any(0, 1) ? NAN : INFINITY;
    if (kind == 3) s[i] *= 1e-39f;  // denormals
  }
  return s;
}

uint32_t key(Of of, float s) { return of == Of::abs ? abs_key(float_bits(s)) : raw_key(float_bits(s)); }
bool bit(const std::vector<uint8_t>& bits, int64_t i) { return bits[static_cast<size_t>(i / 8)] >> (i % 8) & 1; }
std::vector<uint8_t> room(int64_t count) { return std::vector<uint8_t>(static_cast<size_t>(packed_bytes(count))); }

struct Scores {
  std::vector<float> values;  // in memory
  int64_t size[4], stride[4];
  std::vector<float> logical;
};

Scores scores_of(int64_t o, int64_t c, int64_t h, int64_t w, int kind, bool channels_last) {
  Scores s = {hostile(o * c * h * w, kind), {o, c, h, w}, {c * h * w, h * w, w, 1}, {}};
  if (channels_last) {
    const int64_t strides[4] = {c * h * w, 1, w * c, c};
    std::copy(strides, strides + 4, s.stride);
  }
  for (int64_t i = 0; i < o * c * h * w; ++i) {
    const int64_t at[4] = {i / (c * h * w), i / (h * w) % c, i / w % h, i % w};
    s.logical.push_back(s.values[static_cast<size_t>(at[0] * s.stride[0] + at[1] * s.stride[1] + at[2] * s.stride[2] +
                                                     at[3] * s.stride[3])]);
  }
  return s;
}

// The mask that keeps `kept` of them, by sorting.
std::vector<bool> sorted_mask(const std::vector<float>& s, Of of, int64_t kept) {
  std::vector<size_t> order(s.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key(of, s[a]) > key(of, s[b]); });
  std::vector<bool> mask(s.size());
  for (int64_t i = 0; i < kept; ++i) mask[order[static_cast<size_t>(i)]] = true;
  return mask;
}

void check_mask(const std::vector<uint8_t>& bits, const std::vector<bool>& mask, const std::string& what) {
  for (size_t i = 0; i < mask.size(); ++i) {
    if (bit(bits, static_cast<int64_t>(i)) != mask[i]) return expect(false, what);
  }
}

void check_selection(int threads) {
  for (int kind = 0; kind < 4; ++kind) {
    for (const bool channels_last : {false, true}) {
      const int64_t sizes[][4] = {{1, 1, 1, 1}, {3, 17, 1, 1}, {7, 5, 3, 3}, {67, 63, 3, 3}, {1000, 100, 1, 1}};
      for (const auto& [o, c, h, w] : sizes) {
        const Scores s = scores_of(o, c, h, w, kind, channels_last);
        const int64_t count = o * c * h * w;
        for (const Of of : {Of::abs, Of::raw}) {
          const int64_t kept = any(0, count);
          const std::string what = "selection of kind " + std::to_string(kind) + ", " + std::to_string(count);
          Cut cut = {}, hint = {};
          std::vector<uint8_t> bits = room(count), planes[2] = {room(count), room(count)};
          cpu::Ranking ranking = {s.values.data(), {o, c, h, w}, {}, of, kept, &cut, nullptr};
          std::copy(s.stride, s.stride + 4, ranking.stride);
          const std::vector<bool> mask = sorted_mask(s.logical, of, kept);
          for (const bool warm : {false, true}) {
            if (!channels_last) ranking.mask = planes[0].data();
            if (!channels_last && of == Of::abs) ranking.signs = planes[1].data();
            cpu::select({ranking}, threads);
            cpu::mask_bits(s.values.data(), ranking.size, ranking.stride, of, cut, bits.data(), threads);
            check_mask(bits, mask, what);
            if (ranking.mask != nullptr) check_mask(planes[0], mask, what + ": plane");
            if (ranking.signs != nullptr) {
              std::vector<bool> signs;
              bool signless = kept == 0;  // then nobody reads them
              for (float v : s.logical) signs.push_back(std::signbit(v)), signless |= v == 0 || std::isnan(v);
              if (kept > 0) check_mask(planes[1], signs, what + ": signs");
              expect(planes[1].back() == signless, what + ": whether all have signs");
            }
            hint = cut;
            ranking.hint = warm ? nullptr : &hint;
          }
        }
      }
    }
  }
}

// The best of each group, of those that a sort of each leaves.
void check_groups(int threads) {
  for (const bool channels_last : {false, true}) {
    for (const cpu::Groups groups : {cpu::Groups{4, 2, 9}, cpu::Groups{16, 3, 9}, cpu::Groups{3, 1, 48 * 9}}) {
      const Scores s = scores_of(27, 48, 3, 3, 2, channels_last);
      const int64_t count = 27 * 48 * 9;
      std::vector<uint8_t> bits = room(count);
      std::vector<bool> mask(count);
      for (int64_t first = 0; first < count; ++first) {
        if (first / groups.apart % groups.size != 0) continue;
        for (int64_t i = 0; i < groups.size; ++i) {
          int64_t beaten = 0;
          const auto code = [&](int64_t j) { return key(Of::abs, s.logical[first + j * groups.apart]); };
          for (int64_t j = 0; j < groups.size; ++j) beaten += code(j) > code(i) || (code(j) == code(i) && j < i);
          mask[first + i * groups.apart] = beaten < groups.kept;
        }
      }
      const int64_t size[4] = {27, 48, 3, 3};
      int64_t stride[4];
      std::copy(s.stride, s.stride + 4, stride);
      cpu::group_bits(s.values.data(), size, stride, Of::abs, groups, bits.data(), threads);
      check_mask(bits, mask, "the best of groups of " + std::to_string(groups.size));
    }
  }
}

// The sum of a block of s that begins at `first`, along its dimensions 0 to d: of the terms of each the even ones and the
// odd ones alone, added last.
float sum_of_block(const Scores& s, const cpu::Blocks& blocks, int d, int64_t first, int64_t from = 0, int64_t by = 1) {
  if (d < 0) return std::fabs(s.logical[static_cast<size_t>(first)]);
  int64_t apart = 1;
  for (int i = d + 1; i < cpu::kBlockDims; ++i) apart *= blocks.count[i] * blocks.size[i];
  if (from + by >= blocks.size[d]) return sum_of_block(s, blocks, d - 1, first + from * apart);
  return sum_of_block(s, blocks, d, first, from, 2 * by) + sum_of_block(s, blocks, d, first, from + by, 2 * by);
}

// The sums of blocks, and the mask of those at or above the largest of the first two.
void check_blocks(int threads) {
  for (const bool channels_last : {false, true}) {
    for (const cpu::Blocks& blocks : {cpu::Blocks{{27, 12, 3, 3, 1}, {1, 4, 1, 1, 1}}, cpu::Blocks{{9, 16, 3, 3, 1}, {3, 3, 1, 1, 1}},
                                      cpu::Blocks{{27, 1, 1, 1, 1}, {1, 48, 3, 3, 1}}, cpu::Blocks{{1, 48, 1, 1, 1}, {27, 1, 3, 3, 1}},
                                      cpu::Blocks{{27, 48, 1, 1, 1}, {1, 1, 3, 3, 1}}}) {
      const Scores s = scores_of(27, 48, 3, 3, 0, channels_last);
      const int64_t count = 27 * 48 * 9, size[4] = {27, 48, 3, 3};
      int64_t stride[4];
      std::copy(s.stride, s.stride + 4, stride);
      std::vector<float> sums(static_cast<size_t>(blocks.blocks()));
      cpu::block_sums(s.values.data(), size, stride, Of::abs, blocks, sums.data(), threads);
      const Cut cut = {key(Of::raw, std::max(sums[0], sums[1])), blocks.blocks()};
      std::vector<uint8_t> bits = room(count);
      cpu::block_bits(sums.data(), cut, blocks, bits.data(), threads);
      std::vector<bool> mask(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) {
        int64_t block = 0, begin = 0, rest = i, blocks_in = 1, apart = 1;
        for (int d = cpu::kBlockDims - 1; d >= 0; --d) {
          const int64_t n = blocks.count[d] * blocks.size[d], at = rest % n;
          block += at / blocks.size[d] * blocks_in;
          begin += at / blocks.size[d] * blocks.size[d] * apart;
          rest /= n;
          blocks_in *= blocks.count[d];
          apart *= n;
        }
        const float sum = sums[static_cast<size_t>(block)];
        if (i == begin) {
          const float expected = sum_of_block(s, blocks, cpu::kBlockDims - 1, begin);
          expect(sum == expected || (std::isnan(sum) && std::isnan(expected)), "the sums of blocks");
        }
        mask[static_cast<size_t>(i)] = key(Of::raw, sum) >= cut.key;
      }
      check_mask(bits, mask, "the mask of blocks");
    }
  }
}

void check_draw(int threads) {
  const Scores s = scores_of(37, 11, 3, 1, 0, false);
  std::vector<uint8_t> bits = room(37 * 33), again = room(37 * 33);
  cpu::draw(s.values.data(), s.size, s.stride, 5, bits.data(), threads);
  const std::string before = cpu::use("portable");
  cpu::draw(s.values.data(), s.size, s.stride, 5, again.data(), 1);
  cpu::use(before);
  expect(bits == again, "a draw is the portable one");
}

// Values in one of the three types; `exact` are what the type holds.
struct Typed {
  DType dtype;
  std::vector<uint8_t> memory;
  std::vector<double> exact;
};

float half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const float m = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return h >> 15 ? -m : m;
}
float value(const uint8_t* p, DType dtype) {
  if (dtype == DType::f32) {
    float f;
    std::memcpy(&f, p, 4);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, p, 2);
  if (dtype == DType::f16) return half_value(h);
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

Typed typed(const std::vector<float>& values, DType dtype) {
  const size_t bytes = dtype == DType::f32 ? 4 : 2;
  Typed t = {dtype, std::vector<uint8_t>(values.size() * bytes + 64), {}};
  for (size_t i = 0; i < values.size(); ++i) {
    uint8_t* p = t.memory.data() + i * bytes;
    if (dtype == DType::f32) {
      std::memcpy(p, &values[i], 4);
    } else {  // truncated: what is multiplied is what the type holds
      uint32_t bits = float_bits(values[i]);
      uint16_t h = static_cast<uint16_t>(bits >> 16);
      if (dtype == DType::f16) {
        const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
        h = exponent <= 0 ? 0 : static_cast<uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 1023));
      }
      std::memcpy(p, &h, 2);
    }
    t.exact.push_back(value(p, dtype));
  }
  return t;
}

double distance(const std::vector<double>& exact, const uint8_t* found, DType dtype) {
  double apart = 0, all = 1e-30;
  const size_t bytes = dtype == DType::f32 ? 4 : 2;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double d = value(found + i * bytes, dtype) - exact[i];
    apart += d * d;
    all += exact[i] * exact[i];
  }
  return std::sqrt(apart / all);
}

// Rounding of a result and, times some, of a sum: unit roundoff 2^-24, 2^-8, 2^-11.
double bound(DType dtype) { return dtype == DType::f32 ? 2e-6 : dtype == DType::bf16 ? 6e-3 : 8e-4; }

void check_conv(int threads) {
  const DType dtype = static_cast<DType>(any(0, 2));
  const bool depthwise = any(0, 4) == 0, linear = any(0, 3) == 0;
  Conv c = {};
  c.groups = depthwise ? any(2, 20) : linear ? 1 : any(1, 2);
  c.batch = any(1, 3);
  const int64_t in = depthwise ? 1 : any(1, 40), out = depthwise ? any(1, 2) : any(1, 70);
  c.in_channels = in * c.groups;
  c.out_channels = out * c.groups;
  c.kernel_h = linear ? 1 : any(1, 3);
  c.kernel_w = linear ? 1 : any(1, 3);
  c.stride_h = linear ? 1 : any(1, 2);
  c.stride_w = linear ? 1 : any(1, 2);
  c.dilation_h = any(1, 2);
  c.dilation_w = any(1, 2);
  c.pad_h = linear ? 0 : any(0, 2);
  c.pad_w = linear ? 0 : any(0, 2);
  c.out_h = linear ? 1 : any(1, 6);
  c.out_w = linear ? any(1, 40) : any(1, 9);
  if (linear) c.batch = 1;
  c.in_h = linear ? 1 : std::max<int64_t>(1, (c.out_h - 1) * c.stride_h + (c.kernel_h - 1) * c.dilation_h + 1 - 2 * c.pad_h);
  c.in_w = linear ? c.out_w : std::max<int64_t>(1, (c.out_w - 1) * c.stride_w + (c.kernel_w - 1) * c.dilation_w + 1 - 2 * c.pad_w);
  if (!linear) {  // as torch has it: trailing pads equal the leading ones
    c.out_h = (c.in_h + 2 * c.pad_h - (c.kernel_h - 1) * c.dilation_h - 1) / c.stride_h + 1;
    c.out_w = (c.in_w + 2 * c.pad_w - (c.kernel_w - 1) * c.dilation_w - 1) / c.stride_w + 1;
    if (c.out_h < 1 || c.out_w < 1) return;
  }
  const int64_t weights = c.out_channels * in * c.kernel_h * c.kernel_w;
  const bool last = any(0, 1) == 1;  // channels_last
  const auto tensor = [&](Typed& t, int64_t channels, int64_t h, int64_t w) {
    const int64_t rows[4] = {channels * h * w, h * w, w, 1}, inside[4] = {channels * h * w, 1, w * channels, channels};
    Tensor made = {t.memory.data(), t.dtype, {}};
    std::copy(last ? inside : rows, (last ? inside : rows) + 4, made.stride);
    return made;
  };
  Typed x = typed(normal(c.batch * c.in_channels * c.in_h * c.in_w), dtype);
  Typed dy = typed(normal(c.batch * c.out_channels * c.out_h * c.out_w), dtype);
  Typed w = typed(normal(weights), any(0, 1) ? DType::f32 : dtype);
  const std::vector<float> scores = hostile(weights, 1), bias = normal(c.out_channels);
  const int64_t kept = any(0, weights), flat[4] = {in * c.kernel_h * c.kernel_w, c.kernel_h * c.kernel_w, c.kernel_w, 1};
  Cut cut = {};
  cpu::Ranking ranking = {scores.data(), {c.out_channels, in, c.kernel_h, c.kernel_w}, {}, Of::abs, kept, &cut, nullptr};
  std::copy(flat, flat + 4, ranking.stride);
  cpu::select({ranking}, threads);
  const std::vector<bool> mask = sorted_mask(scores, Of::abs, kept);
  std::vector<uint8_t> bits = room(weights);
  cpu::mask_bits(scores.data(), ranking.size, ranking.stride, Of::abs, cut, bits.data(), threads);

  Weight weight;
  static_cast<Tensor&>(weight) = {w.memory.data(), w.dtype, {flat[0], flat[1], flat[2], flat[3]}};
  Mask m = {Of::abs, scores.data(), {flat[0], flat[1], flat[2], flat[3]}, &cut, nullptr};
  if (any(0, 1)) m = {Of::bits, bits.data(), {0, 0, 0, 0}, nullptr, nullptr};

  Typed y = typed(std::vector<float>(dy.exact.size(), 0.0f), dtype), dx = typed(std::vector<float>(x.exact.size(), 0.0f), dtype);
  std::vector<double> exact_y(dy.exact.size()), exact_dx(x.exact.size()), exact_ds(static_cast<size_t>(weights));
  const Tensor tx = tensor(x, c.in_channels, c.in_h, c.in_w), ty = tensor(y, c.out_channels, c.out_h, c.out_w);
  const Tensor tdy = tensor(dy, c.out_channels, c.out_h, c.out_w), tdx = tensor(dx, c.in_channels, c.in_h, c.in_w);
  const auto place = [](const Tensor& t, int64_t n, int64_t ch, int64_t i, int64_t j) {
    return static_cast<size_t>(n * t.stride[0] + ch * t.stride[1] + i * t.stride[2] + j * t.stride[3]);
  };
  // The weight takes the activations' precision before a product, as under autocast.
  const Typed rounded = dtype == w.dtype ? w : [&] {
    std::vector<float> values;
    for (double v : w.exact) {
      float f = static_cast<float>(v);
      uint32_t b = float_bits(f);
      if (dtype == DType::bf16) b += 0x7fff + (b >> 16 & 1);
      if (dtype == DType::f16) b += 0xfff + (b >> 13 & 1);
      std::memcpy(&f, &b, 4);
      values.push_back(f);
    }
    return typed(values, dtype);
  }();
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t o = 0; o < c.out_channels; ++o)
      for (int64_t i = 0; i < c.out_h; ++i)
        for (int64_t j = 0; j < c.out_w; ++j) {
          double sum = bias[static_cast<size_t>(o)];
          const double g = dy.exact[place(tdy, n, o, i, j)];
          for (int64_t k = 0; k < in; ++k)
            for (int64_t u = 0; u < c.kernel_h; ++u)
              for (int64_t v = 0; v < c.kernel_w; ++v) {
                const int64_t row = i * c.stride_h + u * c.dilation_h - c.pad_h, column = j * c.stride_w + v * c.dilation_w - c.pad_w;
                if (row < 0 || row >= c.in_h || column < 0 || column >= c.in_w) continue;
                const size_t e = static_cast<size_t>(((o * in + k) * c.kernel_h + u) * c.kernel_w + v);
                const size_t at = place(tx, n, o / out * in + k, row, column);
                if (mask[e]) sum += x.exact[at] * rounded.exact[e], exact_dx[at] += g * rounded.exact[e];
                const double s = scores[e];
                exact_ds[e] += g * x.exact[at] * w.exact[e] * (s > 0 ? 1 : s < 0 ? -1 : 0);
              }
          exact_y[place(ty, n, o, i, j)] = sum;
        }
  const auto& kernels = cpu::kernels();
  kernels.forward->conv_forward(c, tx, weight, m, bias.data(), ty, threads);
  kernels.forward->conv_backward_input(c, tdy, weight, m, tdx, threads);
  std::vector<float> ds(static_cast<size_t>(weights));
  const Mask by_scores = {Of::abs, scores.data(), {flat[0], flat[1], flat[2], flat[3]}, &cut, nullptr};
  const Tensor tds = {ds.data(), DType::f32, {flat[0], flat[1], flat[2], flat[3]}};
  kernels.wgrad->conv_backward_weight(c, tdy, tx, weight, by_scores, ScoreMap::abs, tds, {}, WeightGrad::none, {}, threads);
  const std::string what = (depthwise ? "depthwise" : linear ? "linear" : "convolution") + std::string(" of type ") +
                           std::to_string(static_cast<int>(dtype));
  expect(distance(exact_y, y.memory.data(), dtype) < bound(dtype), what + ": forward");
  expect(distance(exact_dx, dx.memory.data(), dtype) < bound(dtype), what + ": dx");
  expect(distance(exact_ds, reinterpret_cast<const uint8_t*>(ds.data()), DType::f32) < (dtype == DType::f32 ? 2e-6 : 1e-5), what + ": dS");
}

void check_step(int threads) {
  const int64_t count = any(1, 5000);
  std::vector<float> p = normal(count), g = normal(count), b = normal(count);
  std::vector<double> exact;
  for (size_t i = 0; i < p.size(); ++i) {
    const double grad = g[i] + 1e-3 * p[i], buffer = 0.9 * b[i] + 0.5 * grad;
    exact.push_back(p[i] - 0.1 * buffer);
  }
  Update update;
  update.sgd = {0.1f, 0.9f, 0.5f, 1e-3f, 1.0f, false, false};
  Cut cut = {};
  cpu::Ranking ranking = {p.data(), {1, 1, 1, count}, {count, count, count, 1}, Of::abs, any(1, count), &cut, nullptr};
  cpu::step({{{p.data(), g.data(), {b.data(), nullptr, nullptr}}, count, update}}, {ranking}, threads);
  expect(distance(exact, reinterpret_cast<const uint8_t*>(p.data()), DType::f32) < 1e-6, "a step of SGD");
  std::vector<uint8_t> bits = room(count);
  cpu::mask_bits(p.data(), ranking.size, ranking.stride, Of::abs, cut, bits.data(), threads);
  check_mask(bits, sorted_mask(p, Of::abs, ranking.kept), "the cut of a step");
}

}  // namespace

int main() {
  for (const std::string& isa : cpu::usable()) {
    cpu::use(isa);
    for (const int threads : {1, 3}) {
      check_selection(threads);
      check_draw(threads);
      check_groups(threads);
      check_blocks(threads);
      for (int i = 0; i < 150; ++i) check_conv(threads);
      for (int i = 0; i < 20; ++i) check_step(threads);
    }
    std::printf("%s: done\n", isa.c_str());
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
