// The weight gradient of groups of one channel, or of few that fill a vector together: a lane per output channel,
//
//   dW_eff[q, k, u, v] = sum over positions of dy[q] * x[q / D * D + k at tap (u, v)],   D channels per group.
//
// A vector of positions' channels is loaded once for several taps of a kernel row, and reordered within its groups.
#pragma once

#include "cpu/wgrad/pack.inl"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

constexpr int kJointTaps = 3;

// Positions that `taps` taps of kernel row u, from v on, have in common, counted from the block's first.
struct JointTaps {
  int64_t u, v, taps;
  Range down, across;
  bool first;  // of these taps' positions in a block
};

// Calls run(JointTaps) for all taps of a block: what the taps of a kernel row share, then what each of them sees beyond
// that at the border.
template <class Run>
static void for_each_joint_run(const Walk& walk, const Block& block, const Run& run) {
  const WalkAxis &h = walk.h, &w = walk.w;
  for (int64_t u = 0; u < h.taps; ++u) {
    const Range down = h.valid(u, block.row, block.rows);
    for (int64_t v = 0; v < w.taps; v += kJointTaps) {
      const int64_t taps = min(kJointTaps, w.taps - v);
      Range shared = w.valid(v, block.column, block.columns);
      for (int64_t t = 1; t < taps; ++t) {
        const Range valid = w.valid(v + t, block.column, block.columns);
        shared = {max(shared.begin, valid.begin), min(shared.end, valid.end)};
      }
      shared.end = max(shared.begin, shared.end);
      run(JointTaps{u, v, taps, down, shared, true});
      for (int64_t t = 0; t < taps; ++t) {
        const Range valid = w.valid(v + t, block.column, block.columns);
        const Range left = {valid.begin, min(valid.end, shared.begin)};
        const Range right = {max(valid.begin, shared.end), valid.end};
        if (left.begin < left.end) run(JointTaps{u, v + t, 1, down, left, false});
        if (right.begin < right.end) run(JointTaps{u, v + t, 1, down, right, false});
      }
    }
  }
}

// Where one vector of channels finds the positions of a block, and each tap its inputs: packed, or in the tensors.
template <class Unit>
struct Channels {
  const Unit *dy, *x;  // of the block's first position, and of its first tap
  int64_t dy_line, dy_step, x_line, x_step;  // units to the next line, and to the next position
  int64_t count;  // channels there are
  int64_t dy_ahead, x_ahead;  // to what is read next, and fetched meanwhile
};

// The same for the taps of a run.
template <class Unit>
struct ChannelRuns {
  const Unit* dy;
  const Unit* x[kJointTaps];
  int64_t taps, lines, positions;
  bool fetch;
};

// acc[(t * D + k) * kTileLanes] (+)= the sum over the runs, for one vector of channels: panels are one vector wide.
// Few sums are kept several times over, for positions that follow each other, to hide the multiply-add's latency.
template <class Math, int T, int D, bool whole, bool fetch = false>
static void multiply_channels(const Channels<typename Math::Unit>& at, const ChannelRuns<typename Math::Unit>& runs,
                              float* acc, bool add) {
  constexpr int kFolds = T * D <= 3 ? 4 : T * D <= 6 ? 2 : 1;
  Vec sum[kFolds][T][D];
  IntVec order[D];
#pragma GCC unroll 8
  for (int k = 0; k < D; ++k) order[k] = lane_of_group(D, k);
#pragma GCC unroll 4
  for (int f = 0; f < kFolds; ++f) {
#pragma GCC unroll 3
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
      for (int k = 0; k < D; ++k) sum[f][t][k] = zero();
    }
  }
  const auto load_some = [&](const typename Math::Unit* p) __attribute__((always_inline)) {
    return whole ? Math::load_lanes(p) : Math::load_lanes(p, at.count);
  };
  const auto add_position = [&](const typename Math::Unit* a, const typename Math::Unit* const (&b)[T], int64_t i,
                                Vec(&into)[T][D]) __attribute__((always_inline)) {
    const typename Math::Lanes dy = load_some(a + i * at.dy_step);
    if (fetch) {
      __builtin_prefetch(a + i * at.dy_step + at.dy_ahead, 0, 2);
      __builtin_prefetch(b[0] + i * at.x_step + at.x_ahead, 0, 2);
    }
#pragma GCC unroll 3
    for (int t = 0; t < T; ++t) {
      const typename Math::Lanes x = load_some(b[t] + i * at.x_step);
#pragma GCC unroll 8
      for (int k = 0; k < D; ++k) {
        into[t][k] = Math::multiply_add(D == 1 ? x : Math::reorder(x, order[k]), dy, into[t][k]);
      }
    }
  };
  for (int64_t line = 0; line < runs.lines; ++line) {
    const typename Math::Unit* const a = runs.dy + line * at.dy_line;
    const typename Math::Unit* b[T];
    for (int t = 0; t < T; ++t) b[t] = runs.x[t] + line * at.x_line;
    int64_t i = 0;
    for (; i + kFolds <= runs.positions; i += kFolds) {
#pragma GCC unroll 4
      for (int f = 0; f < kFolds; ++f) add_position(a, b, i + f, sum[f]);
    }
    for (; i < runs.positions; ++i) add_position(a, b, i, sum[0]);
  }
#pragma GCC unroll 3
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int k = 0; k < D; ++k) {
      Vec total = sum[0][t][k];
#pragma GCC unroll 4
      for (int f = 1; f < kFolds; ++f) total = total + sum[f][t][k];
      float* const to = acc + (t * D + k) * kTileLanes;
      store(to, add ? load(to) + total : total);
    }
  }
}

template <class Math, int D, bool whole = true>
static void multiply_taps(const Channels<typename Math::Unit>& at, const ChannelRuns<typename Math::Unit>& runs,
                          float* acc, bool add) {
  static_assert(kJointTaps == 3, "one case per number of taps");
  if constexpr (whole && Math::kImages == 1) {
    if (at.count < kLanes) return multiply_taps<Math, D, false>(at, runs, acc, add);
  }
  if (runs.taps == 1) return multiply_channels<Math, 1, D, whole>(at, runs, acc, add);
  if (runs.taps == 2) return multiply_channels<Math, 2, D, whole>(at, runs, acc, add);
  const auto three = runs.fetch ? multiply_channels<Math, 3, D, whole, true> : multiply_channels<Math, 3, D, whole>;
  three(at, runs, acc, add);
}

template <class Math>
using ChannelKernel = void (*)(const Channels<typename Math::Unit>&, const ChannelRuns<typename Math::Unit>&, float*,
                               bool);

// For groups of `width` channels, a power of two below kLanes.
template <class Math, int D = kLanes / 2>
static ChannelKernel<Math> channel_kernel(int64_t width) {
  if constexpr (D > 1) {
    if (width < D) return channel_kernel<Math, D / 2>(width);
  }
  return multiply_taps<Math, D>;
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
