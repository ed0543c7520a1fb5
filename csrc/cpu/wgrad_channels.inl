// The weight gradient of groups of one channel, or of few that fill a vector together: a lane per output channel,
//
//   dW_eff[q, k, u, v] = sum over positions of dy[q] * x[q / D * D + k at tap (u, v)],   D channels per group.
//
// A vector of positions' channels is loaded once for several taps of a kernel row, and reordered within its groups.
#include "wgrad_pack.inl"

namespace edgepop::cpu::EDGEPOP_ISA {

constexpr int kJointTaps = 3;

// A run of positions that `taps` taps from `tap` on have in common: the same dy, `lanes_at` of each in x.
struct JointRuns {
  int64_t tap, taps;
  int64_t lines, count;
  int64_t rows_at, rows_step, lanes_step;
  int64_t lanes_at[kJointTaps];
  bool first;  // of these taps' runs in a block
};

// Calls run(JointRuns) for all taps of a block: what the taps of a kernel row share, then what each of them sees beyond
// that at the border.
template <class Run>
static void for_each_joint_run(const Walk& walk, const Block& block, const Run& run) {
  const Axis &h = walk.h, &w = walk.w;
  for (int64_t u = 0; u < h.taps; ++u) {
    const Range down = h.valid(u, block.row, block.rows);
    for (int64_t v = 0; v < w.taps; v += kJointTaps) {
      const int64_t taps = smaller(kJointTaps, w.taps - v);
      const auto runs = [&](int64_t first, int64_t count, Range across, bool starts) {
        JointRuns r = {u * w.taps + first, count, down.end - down.begin, (across.end - across.begin) * block.units,
                       (down.begin * w.block + across.begin) * block.units, w.block * block.units,
                       w.slots * block.units, {}, starts};
        for (int64_t t = 0; t < count; ++t) {
          r.lanes_at[t] = ((h.slot(u) + down.begin) * w.slots + w.slot(first + t) + across.begin) * block.units;
        }
        run(r);
      };
      Range shared = w.valid(v, block.column, block.columns);
      for (int64_t t = 1; t < taps; ++t) {
        const Range valid = w.valid(v + t, block.column, block.columns);
        shared = {larger(shared.begin, valid.begin), smaller(shared.end, valid.end)};
      }
      shared.end = larger(shared.begin, shared.end);
      runs(v, taps, shared, true);
      for (int64_t t = 0; t < taps; ++t) {
        const Range valid = w.valid(v + t, block.column, block.columns);
        const Range left = {valid.begin, smaller(valid.end, shared.begin)};
        const Range right = {larger(valid.begin, shared.end), valid.end};
        if (left.begin < left.end) runs(v + t, 1, left, false);
        if (right.begin < right.end) runs(v + t, 1, right, false);
      }
    }
  }
}

// acc[(tap * D + k) * kTileLanes] (+)= the sum over the runs, for one vector of channels: panels are one vector wide.
// Few sums are kept several times over, for positions that follow each other, to hide the multiply-add's latency.
template <class Math, int T, int D>
static void multiply_channels(const JointRuns& runs, const typename Math::Unit* rows, const typename Math::Unit* lanes,
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
  const auto add_position = [&](const typename Math::Unit* a, const typename Math::Unit* const (&b)[T], int64_t at,
                                Vec(&into)[T][D]) __attribute__((always_inline)) {
    const typename Math::Lanes dy = Math::load_lanes(a + at * kLanes);
#pragma GCC unroll 3
    for (int t = 0; t < T; ++t) {
      const typename Math::Lanes x = Math::load_lanes(b[t] + at * kLanes);
#pragma GCC unroll 8
      for (int k = 0; k < D; ++k) {
        into[t][k] = Math::multiply_add(D == 1 ? x : Math::reorder(x, order[k]), dy, into[t][k]);
      }
    }
  };
  for (int64_t line = 0; line < runs.lines; ++line) {
    const typename Math::Unit* const a = rows + (runs.rows_at + line * runs.rows_step) * kLanes;
    const typename Math::Unit* b[T];
    for (int t = 0; t < T; ++t) b[t] = lanes + (runs.lanes_at[t] + line * runs.lanes_step) * kLanes;
    int64_t i = 0;
    for (; i + kFolds <= runs.count; i += kFolds) {
#pragma GCC unroll 4
      for (int f = 0; f < kFolds; ++f) add_position(a, b, i + f, sum[f]);
    }
    for (; i < runs.count; ++i) add_position(a, b, i, sum[0]);
  }
#pragma GCC unroll 3
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int k = 0; k < D; ++k) {
      Vec total = sum[0][t][k];
#pragma GCC unroll 4
      for (int f = 1; f < kFolds; ++f) total = total + sum[f][t][k];
      float* const at = acc + ((runs.tap + t) * D + k) * kTileLanes;
      store(at, add ? load(at) + total : total);
    }
  }
}

template <class Math, int D>
static void multiply_taps(const JointRuns& runs, const typename Math::Unit* rows, const typename Math::Unit* lanes,
                          float* acc, bool add) {
  static_assert(kJointTaps == 3, "one case per number of taps");
  if (runs.taps == 1) return multiply_channels<Math, 1, D>(runs, rows, lanes, acc, add);
  if (runs.taps == 2) return multiply_channels<Math, 2, D>(runs, rows, lanes, acc, add);
  multiply_channels<Math, 3, D>(runs, rows, lanes, acc, add);
}

template <class Math>
using ChannelKernel = void (*)(const JointRuns&, const typename Math::Unit*, const typename Math::Unit*, float*, bool);

// For groups of `width` channels, a power of two below kLanes.
template <class Math, int D = kLanes / 2>
static ChannelKernel<Math> channel_kernel(int64_t width) {
  if constexpr (D > 1) {
    if (width < D) return channel_kernel<Math, D / 2>(width);
  }
  return multiply_taps<Math, D>;
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
