// Reads W and applies the mask: the one place where a product does.
#pragma once

#include "cpu/forward/problem.inl"
#include "cpu/simd/packed_bits.h"

namespace edgepop::cpu::EDGEPOP_ISA::forward {

// Where an element lies in the weight, in the scores and in the logical order.
struct Place {
  int64_t weight, score, index;
};
static inline Place operator+(Place a, Place b) {
  return {a.weight + b.weight, a.score + b.score, a.index + b.index};
}
static inline Place operator*(int64_t n, Place a) { return {n * a.weight, n * a.score, n * a.index}; }

// Reads elements of W and applies the mask to them. Of a weight of signs below.
template <class T, Of of>
struct Reader {
  const T* weight;
  const float* scores;
  const uint8_t* bits;
  IntervalVec up_to, after;
  Interval scalar_up_to, scalar_after;
  int64_t cut_index;
  Place column, k, u, v;  // steps

  explicit Reader(const MaskedWeight& b)
      : weight(static_cast<const T*>(b.weight)),
        scores(static_cast<const float*>(b.scores)),
        bits(static_cast<const uint8_t*>(b.scores)),
        up_to(broadcast(b.up_to)),
        after(broadcast(b.after)),
        scalar_up_to(b.up_to),
        scalar_after(b.after),
        cut_index(b.cut_index),
        column{b.weight_steps.column, b.score_steps.column, b.index_steps.column},
        k{b.weight_steps.k, b.score_steps.k, b.index_steps.k},
        u{b.weight_steps.u, b.score_steps.u, b.index_steps.u},
        v{b.weight_steps.v, b.score_steps.v, b.index_steps.v} {}

  float one(Place p) const {
    bool kept;
    if (of == Of::bits) {
      kept = bit_at(bits, p.index);
    } else {
      const uint32_t score = float_bits(scores[p.score]);
      const uint32_t image = of == Of::abs ? edgepop::magnitude(score) : edgepop::monotone(score);
      const Interval& interval = p.index <= cut_index ? scalar_up_to : scalar_after;
      kept = image - interval.lo <= interval.span;
    }
    return kept ? to_float(weight[p.weight]) : 0.0f;
  }

  // Fetches what lies at p into the second-level cache. Runs of a weight are too short, and too many are read side by
  // side, for the hardware to see them coming.
  void prefetch(Place p) const {
    __builtin_prefetch(weight + p.weight, 0, 2);
    if (of != Of::bits) __builtin_prefetch(scores + p.score, 0, 2);
  }

  // What decides over all elements with indices [first, last]; null where the cut's index lies between them.
  const IntervalVec* interval(int64_t first, int64_t last) const {
    return first > cut_index ? &after : last <= cut_index ? &up_to : nullptr;
  }

  // A vector of each of `rows` rows, one channel behind the other, over all of which `kept` decides, or bits that follow
  // each other in a row.
  void decided(Place p, const IntervalVec* kept, int64_t rows, float* to, int64_t to_step) const {
    const T* w = weight + p.weight;
    const float* s = scores + p.score;
    int64_t index = p.index;
    for (int64_t row = 0; row < rows; ++row, w += k.weight, to += to_step) {
      if constexpr (of == Of::bits) {
        store(to, keep_bits(load(w), load_bits_at(bits, index)));
        index += k.index;
      } else {
        store(to, keep<of>(load(w), load(s), *kept));
        s += k.score;
      }
    }
  }

  // n elements, each `step` behind the one before.
  Vec gather(Place p, Place step, int64_t n) const {
    float out[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) out[i] = one(p + i * step);
    return load(out);
  }

  // The same, where weights and scores are contiguous along `step`; the logical index need not be.
  Vec run(Place p, Place step, int64_t n) const {
    const Vec w = n == kLanes ? load(weight + p.weight) : load(weight + p.weight, n);
    if constexpr (of == Of::bits) {
      uint32_t kept = 0;
      if (step.index == 1) {
        kept = load_bits_at(bits, p.index);
      } else {
        for (int64_t i = 0, at = p.index; i < n; ++i, at += step.index) kept |= uint32_t{bit_at(bits, at)} << i;
      }
      return keep_bits(w, kept);
    } else {
      const Vec s = n == kLanes ? load(scores + p.score) : load(scores + p.score, n);
      if (p.index > cut_index) return keep<of>(w, s, after);
      if (p.index + (n - 1) * step.index <= cut_index) return keep<of>(w, s, up_to);
      return gather(p, step, n);  // the cut's index lies within: at most one run of a row
    }
  }
};

// A weight of one magnitude: two bits of each element are all that is read.
template <>
struct Reader<Signs, Of::bits> {
  const uint8_t *kept, *negative;
  float magnitude;
  Vec magnitudes;
  Place column, k, u, v;  // steps

  explicit Reader(const MaskedWeight& b)
      : kept(static_cast<const uint8_t*>(b.scores)),
        negative(b.signs),
        magnitude(b.magnitude),
        magnitudes(broadcast(b.magnitude)),
        column{0, 0, b.index_steps.column},
        k{0, 0, b.index_steps.k},
        u{0, 0, b.index_steps.u},
        v{0, 0, b.index_steps.v} {}

  // Nothing is fetched ahead: there are bits of 512 elements in a line of memory.
  void prefetch(Place) const {}

  float one(Place p) const {
    return !bit_at(kept, p.index) ? 0.0f : bit_at(negative, p.index) ? -magnitude : magnitude;
  }

  Vec gather(Place p, Place step, int64_t n) const {
    float out[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) out[i] = one(p + i * step);
    return load(out);
  }

  Vec run(Place p, Place step, int64_t n) const {
    if (step.index != 1) return gather(p, step, n);
    const uint32_t there = load_bits_at(kept, p.index) & low_bits(n);
    return keep_bits(negate_bits(magnitudes, load_bits_at(negative, p.index)), there);
  }
};

}  // namespace edgepop::cpu::EDGEPOP_ISA::forward
