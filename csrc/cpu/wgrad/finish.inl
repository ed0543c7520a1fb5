// A tile of dW_eff as lines of edges that lie side by side in every tensor, spent as it leaves the accumulators.
#pragma once

#include "cpu/wgrad/edges.inl"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// Lines of lanes times taps, in the order of a contiguous weight, for tensors that do not have it.
template <class Visit>
static void for_each_edge(const Finish& f, const Grid& grid, int64_t lanes, const Visit& visit) {
  int64_t i = 0;
  for (int64_t l = 0; l < lanes; ++l) {
    for (int64_t u = 0; u < f.kernel_h; ++u) {
      for (int64_t v = 0; v < f.kernel_w; ++v, ++i) visit(i, l * grid.lane + u * grid.h + v * grid.w);
    }
  }
}

static inline bool lies_in_order(const Finish& f, const Grid& grid, int64_t lanes) {
  return (f.kernel_w == 1 || grid.w == 1) && (f.kernel_h == 1 || grid.h == f.kernel_w) &&
         (lanes == 1 || grid.lane == f.taps());
}

template <class T>
static T* in_order(const Finish& f, const Grid& grid, int64_t at, int64_t lanes, T* bounce) {
  if (grid.data == nullptr) return nullptr;
  T* const from = static_cast<T*>(grid.data) + at;
  if (lies_in_order(f, grid, lanes)) return from;
  for_each_edge(f, grid, lanes, [&](int64_t i, int64_t offset) { bounce[i] = from[offset]; });
  return bounce;
}

template <class T>
static T* to_order(const Finish& f, const Grid& grid, int64_t at, int64_t lanes, T* bounce) {
  if (grid.data == nullptr) return nullptr;
  return lies_in_order(f, grid, lanes) ? static_cast<T*>(grid.data) + at : bounce;
}

template <class T>
static void from_order(const Finish& f, const Grid& grid, int64_t at, int64_t lanes, const T* bounce) {
  if (grid.data == nullptr || lies_in_order(f, grid, lanes)) return;
  T* const to = static_cast<T*>(grid.data) + at;
  for_each_edge(f, grid, lanes, [&](int64_t i, int64_t offset) { to[offset] = bounce[i]; });
}

// joint[l * taps + t] = acc[t * stride + l].
static void interleave_taps(const float* acc, int64_t stride, int64_t taps, int64_t lanes, float* joint) {
  for (int64_t t = 0; t < taps; t += kLanes) {
    const int64_t together = min(kLanes, taps - t);
    for (int64_t l = 0; l < lanes; l += kLanes) {
      Vec square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) square[i] = i < together ? load(acc + (t + i) * stride + l) : zero();
      transpose(square);
      for (int64_t i = 0; i < min(kLanes, lanes - l); ++i) store(joint + (l + i) * taps + t, square[i], together);
    }
  }
}

// Lines of `scratch` that finish_tile needs, each of kTileLanes * taps floats. No tile has more rows: kTileRows or
// kTiledRows, or the inputs of a group of at most half a vector's channels.
constexpr int64_t kFinishLines = kDotBf16 ? kTiledRows : 8;
static_assert(kTileRows <= kFinishLines && kLanes / 2 <= kFinishLines, "a line for every row");

// acc[tap][rows of the kernel][kTileLanes]; `height` is the second extent.
template <class T>
static void finish_tile(const Finish& f, const WeightTile& tile, int64_t height, float* acc, float* scratch) {
  const auto at = [&](const Grid& grid, int64_t row) {
    return tile.group * grid.group + (tile.row + row) * grid.row + tile.lane * grid.lane;
  };
  const auto along_lanes = [&](const Grid& grid) { return grid.data == nullptr || grid.lane == 1; };
  const int64_t taps = f.taps(), line = kTileLanes * taps;
  const bool updates = f.update.scores != nullptr;  // then dS does not leave the scratch

  if (along_lanes(f.weight) && along_lanes(f.scores) && along_lanes(f.ds) && along_lanes(f.dw)) {
    for (int64_t t = 0; t < taps; ++t) {
      const auto offset = [&](const Grid& grid) {
        return at(grid, 0) + t / f.kernel_w * grid.h + t % f.kernel_w * grid.w;
      };
      const auto lines = [&](const Grid& grid, auto type) {
        using Element = decltype(type);
        if (grid.data == nullptr) return Lines<Element>{nullptr, 0};
        return Lines<Element>{static_cast<Element*>(grid.data) + offset(grid), grid.row};
      };
      const auto weight = [&] {
        if constexpr (kIsSigns<T>) {
          return WeightLines<T>{f.weight_signs, broadcast(f.magnitude)};
        } else {
          const Lines<T> all = lines(f.weight, T{});
          return WeightLines<T>{{all.first, all.step}};
        }
      }();
      finish_edges<T>(f, {tile.rows, tile.lanes,
                          {acc + t * height * kTileLanes, kTileLanes},
                          weight,
                          lines(f.scores, 0.0f),
                          updates ? Lines<float>{scratch, kTileLanes} : lines(f.ds, 0.0f),
                          lines(f.dw, T{}),
                          {lines(f.moments[0], 0.0f), lines(f.moments[1], 0.0f), lines(f.moments[2], 0.0f)},
                          offset(f.index), f.index.row, f.index.lane});
    }
    return;
  }

  float* const joint = scratch;
  float* const weights = scratch + line;
  float* const scores = scratch + 2 * line;
  float* const ds = scratch + 3 * line;
  T* const dw = reinterpret_cast<T*>(scratch + 4 * line);
  for (int64_t row = 0; row < tile.rows; ++row) {
    interleave_taps(acc + row * kTileLanes, height * kTileLanes, taps, tile.lanes, joint);
    const auto weight = [&] {
      if constexpr (kIsSigns<T>) {
        return WeightLines<T>{f.weight_signs, broadcast(f.magnitude)};
      } else {
        T* const bounce = reinterpret_cast<T*>(weights);
        return WeightLines<T>{{in_order(f, f.weight, at(f.weight, row), tile.lanes, bounce), 0}};
      }
    }();
    float* const score_line = in_order(f, f.scores, at(f.scores, row), tile.lanes, scores);
    float* const ds_line = updates ? ds : to_order(f, f.ds, at(f.ds, row), tile.lanes, ds);
    T* const dw_line = to_order(f, f.dw, at(f.dw, row), tile.lanes, dw);
    float* moment_lines[3];
    for (int m = 0; m < 3; ++m) {
      moment_lines[m] = in_order(f, f.moments[m], at(f.moments[m], row), tile.lanes, scratch + (5 + m) * line);
    }
    // One lane at a time where the lanes of a line do not follow each other in the flat order.
    const bool flat = f.index.lane == taps;
    const int64_t pieces = flat ? 1 : tile.lanes, count = flat ? tile.lanes * taps : taps;
    for (int64_t p = 0; p < pieces; ++p) {
      const auto piece = [&](auto* all) { return one_line(all == nullptr ? nullptr : all + p * count); };
      finish_edges<T>(f, {1, count, piece(joint), weight.from(p * count), piece(score_line), piece(ds_line),
                          piece(dw_line), {piece(moment_lines[0]), piece(moment_lines[1]), piece(moment_lines[2])},
                          at(f.index, row) + p * f.index.lane, 0, 1});
    }
    from_order(f, f.ds, at(f.ds, row), tile.lanes, ds);
    from_order(f, f.dw, at(f.dw, row), tile.lanes, dw);
    if (!updates) continue;
    from_order(f, f.scores, at(f.scores, row), tile.lanes, scores);
    for (int m = 0; m < 3; ++m) {
      from_order(f, f.moments[m], at(f.moments[m], row), tile.lanes, scratch + (5 + m) * line);
    }
  }
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
