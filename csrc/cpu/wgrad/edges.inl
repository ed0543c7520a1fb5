// What becomes of lines of dW_eff: dS = dW_eff * W * map'(S) and dW; or, in place of dS, the step that an optimizer
// makes with it, while it is in the first-level cache.
#pragma once

#include "cpu/optim/steps.inl"
#include "cpu/simd/packed_bits.h"
#include "cpu/wgrad/channels.inl"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// A weight-shaped tensor as tiles see it: rows and lanes are output and input channels, or the other way round.
// Strides in elements; `data` is null where the tensor is not needed.
struct Grid {
  void* data;
  int64_t group, row, lane, h, w;
};

struct Finish {
  int64_t kernel_h, kernel_w;
  DType weight_dtype;
  const uint8_t* weight_signs;  // of a weight of one magnitude, or null
  float magnitude;
  ScoreMap map;
  WeightGrad weight_grad;
  Of of;
  const uint8_t* bits;     // of the mask, where `of` says so
  const uint8_t* signs;    // of the scores, none of them zero or NaN: then dS reads these in their place
  int64_t last;            // flat index of the last kept tie
  Interval up_to, after;   // kept scores, up to `last` and after it
  Grid index;              // strides of the flat index
  Grid weight, scores, ds, dw;
  ScoreUpdate update;
  Grid moments[3];
  bool stream;  // dS past the caches

  int64_t taps() const { return kernel_h * kernel_w; }
};

struct WeightTile {
  int64_t group, row, rows, lane, lanes;
};

// a where b is a number other than zero, with b's sign; +0 elsewhere: a * sign(b).
static inline Vec times_sign(Vec a, Vec b) {
  const Vec flipped = (Vec)((IntVec)a ^ ((IntVec)b & broadcast_bits(0x80000000u)));
  return keep_if_below(flipped, subtract(abs_image(bits_of(b)), broadcast_bits(1u)), broadcast_bits(kInfBits - 1u));
}

// sigmoid'(s) = e / (1 + e)^2 with e = exp(-|s|), which neither overflows nor cancels. exp by Cody-Waite reduction and
// the degree-6 Taylor polynomial on [-ln2/2, ln2/2]: relative error below 3e-7. NaN stays NaN.
static inline Vec sigmoid_slope(Vec s) {
  typedef uint32_t Words __attribute__((vector_size(sizeof(Vec))));
  const Vec magnitude = (Vec)abs_image(bits_of(s));
  const Vec x = magnitude > broadcast(87.0f) ? broadcast(-87.0f) : -magnitude;
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const Vec shifted = fma(x, broadcast(1.44269504f), magic);
  const Vec n = shifted - magic;
  const Vec r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
  Vec p = broadcast(1.0f / 720);
  const float coefficients[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (const float c : coefficients) p = fma(p, r, broadcast(c));
  const Words power = (((Words)shifted << 23) + (127u << 23));  // 2^n
  const Vec e = p * (Vec)power, one_plus = broadcast(1.0f) + e;
  return e / (one_plus * one_plus);
}

template <ScoreMap map>
static inline Vec times_slope(Vec a, Vec s) {
  if (map == ScoreMap::abs) return times_sign(a, s);
  if (map == ScoreMap::sigmoid) return a * sigmoid_slope(s);
  return a;
}

// Calls run(i, n) for the vectors of a line. A whole vector's n is a constant, so that its loads and stores are plain:
// with masked ones everywhere a whole call took a quarter longer (4096 x 4096, 32 pixels, Zen 5).
template <class Run>
static inline void for_each_vector(int64_t count, const Run& run) {
  int64_t i = 0;
  for (; i + kTileLanes <= count; i += kTileLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) run(i + v * kLanes, kLanes);
  }
  for (; i + kLanes <= count; i += kLanes) run(i, kLanes);
  if (i < count) run(i, count - i);
}

// Lines of one tensor, `step` elements apart. Null, and no step, where the tensor is not needed.
template <class T>
struct Lines {
  T* first;
  int64_t step;

  T* at(int64_t row) const { return first + row * step; }
};
template <class T>
static inline Lines<T> one_line(T* first) {
  return {first, 0};
}

// The weight of the edges of a line, which for a weight of signs follow each other in the flat order.
template <class T>
struct WeightLines {
  Lines<const T> lines;

  const T* at(int64_t row, int64_t) const { return lines.at(row); }
  WeightLines from(int64_t i) const { return {{lines.first == nullptr ? nullptr : lines.first + i, lines.step}}; }
};
struct SignLine {
  const uint8_t* bits;
  int64_t index;
  Vec magnitudes;
};
template <>
struct WeightLines<Signs> {
  const uint8_t* bits;
  Vec magnitudes;

  SignLine at(int64_t, int64_t index) const { return {bits, index, magnitudes}; }
  WeightLines from(int64_t) const { return *this; }
};
static inline SignLine operator+(const SignLine& a, int64_t i) { return {a.bits, a.index + i, a.magnitudes}; }
using EDGEPOP_ISA::load_some;
static inline Vec load_some(const SignLine& a, int64_t) {
  return negate_bits(a.magnitudes, load_bits_at(a.bits, a.index));
}

// a * weight, negated where a bit of `flips` is set: both signs are one.
template <class T>
static inline Vec flipped_product(Vec a, const T* weight, int64_t n, uint32_t flips) {
  return negate_bits(a * load_some(weight, n), flips);
}
static inline Vec flipped_product(Vec a, const SignLine& weight, int64_t, uint32_t flips) {
  return negate_bits(a * weight.magnitudes, flips ^ load_bits_at(weight.bits, weight.index));
}

// `rows` lines of `count` edges that lie side by side in every tensor. The flat indices of the first line start at
// `index` and lie `step` apart, those of the next lines `row_step` behind.
//
// All lines of a tile are told at once: one by one, each of four vectors, they left the memory idle between them, and
// the weight gradient of 4096 x 4096 and 32 pixels took a quarter longer, of 1024 x 1024 and 128 a sixth (Ice Lake).
template <class T>
struct Edges {
  int64_t rows, count;
  Lines<float> g;  // dW_eff
  WeightLines<T> weight;
  Lines<float> scores, ds;
  Lines<T> dw;
  Lines<float> moments[3];
  int64_t index, row_step, step;
};

template <ScoreMap map, class T>
static void write_ds(bool streams, const Edges<T>& e) {
  for (int64_t row = 0; row < e.rows; ++row) {
    const float *const g = e.g.at(row), *const scores = e.scores.at(row);
    const auto weight = e.weight.at(row, e.index + row * e.row_step);
    float* const ds = e.ds.at(row);
    const bool past = streams && reinterpret_cast<uintptr_t>(ds) % sizeof(Vec) == 0;
    for_each_vector(e.count, [&](int64_t i, int64_t n) {
      const Vec s = map == ScoreMap::identity ? zero() : load_some(scores + i, n);
      const Vec result = times_slope<map>(load_some(g + i, n) * load_some(weight + i, n), s);
      past && n == kLanes ? stream(ds + i, result) : store_some(ds + i, result, n);
    });
  }
}

// The same for abs by the scores' signs, packed in the flat order, in which the edges of a line follow each other.
template <class T>
static void write_signed_ds(const uint8_t* signs, bool streams, const Edges<T>& e) {
  for (int64_t row = 0; row < e.rows; ++row) {
    const float* const g = e.g.at(row);
    float* const ds = e.ds.at(row);
    const int64_t index = e.index + row * e.row_step;
    const auto weight = e.weight.at(row, index);
    const bool past = streams && reinterpret_cast<uintptr_t>(ds) % sizeof(Vec) == 0;
    for_each_vector(e.count, [&](int64_t i, int64_t n) {
      const Vec result = flipped_product(load_some(g + i, n), weight + i, n, load_bits_at(signs, index + i));
      past && n == kLanes ? stream(ds + i, result) : store_some(ds + i, result, n);
    });
  }
}

template <class T>
static void write_dw(int64_t count, const float* g, T* dw) {
  for_each_vector(count, [&](int64_t i, int64_t n) { store_some(dw + i, load_some(g + i, n), n); });
}

template <Of of, class T>
static void write_kept_dw(int64_t count, const float* g, const float* scores, Interval interval, T* dw) {
  const IntervalVec kept = broadcast(interval);
  for_each_vector(count, [&](int64_t i, int64_t n) {
    store_some(dw + i, keep<of>(load_some(g + i, n), load_some(scores + i, n), kept), n);
  });
}

template <class T>
static void finish_dw(const Finish& f, const Edges<T>& e) {
  for (int64_t row = 0; row < e.rows; ++row) {
    float* const g = e.g.at(row);
    T* const dw = e.dw.at(row);
    const int64_t index = e.index + row * e.row_step;
    if (f.weight_grad == WeightGrad::all) {
      write_dw(e.count, g, dw);
    } else if (f.of == Of::bits) {
      for (int64_t i = 0; i < e.count; ++i) {
        const int64_t bit = index + i * e.step;
        if ((f.bits[bit / 8] >> bit % 8 & 1) == 0) g[i] = 0.0f;
      }
      write_dw(e.count, g, dw);
    } else {
      const float* const scores = e.scores.at(row);
      const int64_t ties = f.last < index ? 0 : min(e.count, (f.last - index) / e.step + 1);
      const auto write = f.of == Of::abs ? write_kept_dw<Of::abs, T> : write_kept_dw<Of::raw, T>;
      write(ties, g, scores, f.up_to, dw);
      write(e.count - ties, g + ties, scores + ties, f.after, dw + ties);
    }
  }
}

// The steps of optim/steps.inl: dS and what they make of it have the bits of a step after the whole gradient.
template <class T>
static void update_scores(const ScoreUpdate& update, const Edges<T>& e) {
  for (int64_t row = 0; row < e.rows; ++row) {
    const Elements elements = {e.scores.at(row), e.ds.at(row),
                               {e.moments[0].at(row), e.moments[1].at(row), e.moments[2].at(row)}};
    visit(update.update, [&](const auto& s) { optim::update_range(optim::step_of(s, elements), 0, e.count); });
  }
}

template <class T>
static void finish_edges(const Finish& f, const Edges<T>& e) {
  if (f.signs != nullptr) {
    write_signed_ds(f.signs, f.stream, e);
  } else if (e.ds.first != nullptr) {
    switch (f.map) {
      case ScoreMap::abs: write_ds<ScoreMap::abs>(f.stream, e); break;
      case ScoreMap::identity: write_ds<ScoreMap::identity>(f.stream, e); break;
      case ScoreMap::sigmoid: write_ds<ScoreMap::sigmoid>(f.stream, e); break;
    }
  }
  if constexpr (!kIsSigns<T>) {
    if (e.dw.first != nullptr) finish_dw(f, e);
  }
  if (f.update.scores != nullptr) update_scores(f.update, e);  // last: dW is kept where the old scores were
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
