// conv_backward_weight:
//
//   dW_eff[o, c, u, v] = sum over n, i, j of dy[n, o, i, j] * x[n, c, i*sh + u*dh - ph, j*sw + v*dw - pw],
//
// never written to memory whole; what leaves is dS, or the scores that an optimizer's step made with it, and dW
// (finish.inl).
//
// A matrix product whose reduction runs over pixels: rows x lanes tiles per tap, where rows are broadcast and lanes are
// vectors. A task is a rectangle of tiles with all their taps and a share of the blocks of pixels (walk.inl): it
// packs its channels of x and dy block by block, and keeps its sums in scratch of its own.
// Every sum's order follows from the geometry: results are the same bits for any number of threads.
#pragma once

#include <type_traits>

#include "cpu/dispatch/isa.h"
#include "cpu/dispatch/pages.h"
#include "cpu/dispatch/scratch.h"
#include "cpu/dispatch/sets.h"
#include "cpu/dispatch/threads.h"
#include "cpu/wgrad/task.inl"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// A dS of at least this size is stored past the caches: whoever reads it next finds little of it there in any case, and
// its lines need not be fetched to be overwritten (a fifth of the time of 4096 x 4096 with 32 pixels).
constexpr int64_t kStreamBytes = 8 << 20;

using FinishTile = void (*)(const Finish&, const WeightTile&, int64_t, float*, float*);

static FinishTile tile_finisher(const Finish& f) {
  if (f.weight_signs != nullptr) return finish_tile<Signs>;
  switch (f.weight_dtype) {
    case DType::f32: return finish_tile<float>;
    case DType::bf16: return finish_tile<bf16>;
    default: return finish_tile<f16>;
  }
}

template <class Math>
static void run(const Job& job, int threads) {
  const int64_t per_thread = Scratch<Math>(job, nullptr).bytes, plane_floats = job.plane_tiles() * job.tile_floats;
  const int64_t partial_bytes = job.shares > 1 ? job.shares * plane_floats * 4 : 0;
  char* const memory = scratch(static_cast<size_t>(per_thread * threads + partial_bytes));
  float* const partial_sums = reinterpret_cast<float*>(memory + per_thread * threads);
  const FinishTile finish_one = tile_finisher(job.finish);

#pragma omp parallel num_threads(threads)
  {
    const Scratch<Math> mine(job, memory + thread_number() * per_thread);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < job.tasks(); ++task) {
      int64_t rest = task;
      const auto next = [&](int64_t extent) {
        const int64_t at = rest % extent;
        rest /= extent;
        return at;
      };
      const int64_t a = next(job.tasks_across()) * job.task_lanes, d = next(job.tasks_down()) * job.task_rows;
      const int64_t group = next(job.groups), share = rest;
      const Range across = {a, min(a + job.task_lanes, job.lane_tiles)};
      const Range down = {d, min(d + job.task_rows, job.row_tiles)};
      const Range blocks = {share * job.walk.blocks / job.shares, (share + 1) * job.walk.blocks / job.shares};
      if (job.shares > 1) {
        const int64_t down_step = job.lane_tiles * job.tile_floats;
        float* const first = partial_sums + share * plane_floats +
                             (group * job.row_tiles + d) * down_step + a * job.tile_floats;
        sum_blocks<Math>(job, blocks, group, down, across, {first, down_step, job.tile_floats}, mine,
                         [](const WeightTile&, float*) {});
      } else {
        // A single block's tiles are finished one by one and can share one place, but for those that are summed together.
        const int64_t step = job.walk.blocks <= 1 && job.tiled == nullptr ? 0 : job.tile_floats;
        sum_blocks<Math>(job, blocks, group, down, across, {mine.sums, step * job.task_lanes, step}, mine,
                         [&](const WeightTile& tile, float* sums) {
                           finish_one(job.finish, tile, job.tile_rows, sums, mine.lines);
                         });
      }
    }
    if (job.shares > 1) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t index = 0; index < job.plane_tiles(); ++index) {
        for (int64_t i = 0; i < job.tile_floats; i += kLanes) {
          Vec sum = load(partial_sums + index * job.tile_floats + i);
          for (int64_t share = 1; share < job.shares; ++share) {
            sum = sum + load(partial_sums + share * plane_floats + index * job.tile_floats + i);
          }
          store(mine.sums + i, sum);
        }
        const int64_t across = index % job.lane_tiles, down = index / job.lane_tiles % job.row_tiles;
        const WeightTile tile = job.tile(index / job.lane_tiles / job.row_tiles, down, across);
        finish_one(job.finish, tile, job.tile_rows, mine.sums, mine.lines);
      }
    }
    finish_streams();
  }
}

// A 1x1 kernel without padding reads one input per output, so it can be told as stride 1; and one image's rows or
// columns can then be told as images, which lets a linear layer's rows form long runs and pairs.
static void simplify(Conv& g, Tensor& dy, Tensor& x) {
  if (g.in_channels == 1) x.stride[1] = 1;  // a single channel has no neighbour
  if (g.out_channels == 1) dy.stride[1] = 1;
  if (g.kernel_h != 1 || g.kernel_w != 1 || g.pad_h != 0 || g.pad_w != 0) return;
  x.stride[2] *= g.stride_h;
  x.stride[3] *= g.stride_w;
  g.in_h = g.out_h;
  g.in_w = g.out_w;
  g.stride_h = g.stride_w = 1;
  for (int axis = 2; axis < 4 && g.batch == 1; ++axis) {
    int64_t& extent = axis == 2 ? g.out_h : g.out_w;
    g.batch = extent;
    extent = 1;
    (axis == 2 ? g.in_h : g.in_w) = 1;
    x.stride[0] = x.stride[axis];
    dy.stride[0] = dy.stride[axis];
  }
}

// A set that multiplies bfloat16 pairs sums those alone.
using Math = std::conditional_t<kDotBf16, PairMath, FloatMath>;

static void conv_backward_weight(const Conv& conv, const Tensor& dy_given, const Tensor& x_given, const Weight& w,
                                 const Mask& mask, ScoreMap map, const Tensor& ds, const ScoreUpdate& update,
                                 WeightGrad weight_grad, const Tensor& dw, int threads) {
  constexpr int64_t kImages = Math::kImages;
  if constexpr (kDotBf16) {
    if (x_given.dtype != DType::bf16 || dy_given.dtype != DType::bf16) {
      return avx512::kWgrad.conv_backward_weight(conv, dy_given, x_given, w, mask, map, ds, update, weight_grad, dw,
                                                 threads);
    }
  }
  Job job;
  job.conv = conv;
  Tensor dy = dy_given, x = x_given;
  simplify(job.conv, dy, x);
  const Conv& g = job.conv;
  const int64_t in = g.in_channels / g.groups, out = g.out_channels / g.groups, taps = g.kernel_h * g.kernel_w;
  if (in == 0 || out == 0 || taps == 0) return;

  const bool depthwise = in == 1 && g.groups > 1, fills_vectors = in < kLanes && kLanes % in == 0;
  job.channelwise = depthwise || (g.groups > 1 && in == out && fills_vectors);
  const bool few = !job.channelwise && in < kTileRows;
  job.in_place = job.channelwise && x.dtype == DType::f32 && dy.dtype == DType::f32 && x.stride[1] == 1 &&
                 dy.stride[1] == 1 && out == in;
  job.walk = walk(g, kImages, few || job.in_place);
  job.kernel_rows = few && has_kernel_rows(job.walk) &&
                    kernel_rows_cost(job.walk, in, out) <= taps * min(plane_cost(in, out), plane_cost(out, in));
  if (few && !job.kernel_rows) job.walk = walk(g, kImages, false);
  job.planes = job.kernel_rows && in > 1 && x.stride[1] != 1 && x.stride[3] == 1 && g.kernel_w >= kTileRows;
  job.swapped = job.kernel_rows || (!job.channelwise && 8 * plane_cost(in, out) < 7 * plane_cost(out, in));
  job.groups = job.channelwise ? 1 : g.groups;
  job.rows = job.swapped || (job.channelwise && !depthwise) ? in : out;
  job.lanes = depthwise ? g.groups : job.channelwise ? g.out_channels : job.swapped ? out : in;
  const auto grid = [&](const void* data, const int64_t (&stride)[4]) {
    const int64_t o = stride[0], c = stride[1];
    Grid r = {const_cast<void*>(data), out * o, o, c, stride[2], stride[3]};
    if (job.swapped) r = {r.data, out * o, c, o, stride[2], stride[3]};
    if (job.channelwise) r = {r.data, 0, c, o, stride[2], stride[3]};
    if (depthwise) r = {r.data, 0, o, out * o, stride[2], stride[3]};
    return r;
  };
  const bool wants_dw = weight_grad != WeightGrad::none && dw.data != nullptr;
  const bool updates = update.scores != nullptr, wants_ds = updates || ds.data != nullptr;
  const bool keeps_dw = wants_dw && weight_grad == WeightGrad::kept;
  const int64_t count = g.out_channels * in * taps;
  const bool by_signs = mask.signs != nullptr && map == ScoreMap::abs && wants_ds && !updates && !keeps_dw &&
                        mask.signs[packed_bytes(count) - 1] == 0;
  const bool reads_scores =
      mask.of != Of::bits && !by_signs && (updates || (wants_ds && map != ScoreMap::identity) || keeps_dw);
  const int64_t flat[4] = {in * taps, taps, g.kernel_w, 1};
  Finish& f = job.finish;
  f.kernel_h = g.kernel_h;
  f.kernel_w = g.kernel_w;
  f.weight_dtype = w.dtype;
  f.weight_signs = w.signs;
  f.magnitude = w.signs == nullptr ? 0.0f : magnitude_of(w);
  f.map = map;
  f.weight_grad = weight_grad;
  f.of = mask.of;
  f.bits = static_cast<const uint8_t*>(mask.data);
  f.signs = by_signs ? mask.signs : nullptr;
  f.last = -1;
  f.up_to = f.after = {0, 0};
  if (keeps_dw && mask.of != Of::bits) {
    f.last = mask.cut->index;
    f.up_to = up_to(mask.of, *mask.cut);
    f.after = after(mask.of, *mask.cut);
  }
  f.index = grid(nullptr, flat);
  f.weight = grid(wants_ds ? w.data : nullptr, w.signs == nullptr ? w.stride : flat);
  f.scores = grid(reads_scores ? mask.data : nullptr, mask.stride);
  f.ds = grid(ds.data, ds.stride);
  f.update = update;
  for (int m = 0; m < 3; ++m) f.moments[m] = grid(update.moments[m], mask.stride);
  f.dw = grid(wants_dw ? dw.data : nullptr, dw.stride);
  const bool in_lines = f.ds.lane == 1 || lies_in_order(f, f.ds, job.lanes);
  f.stream = ds.data != nullptr && in_lines && count * 4 >= kStreamBytes;

  if (f.stream) advise_large_pages(ds.data, static_cast<size_t>(count * 4));

  const auto operand = [&](const Tensor& t, const WalkAxis& rows, const WalkAxis& columns) {
    return Operand{t.data, t.dtype, t.stride[0], t.stride[1], t.stride[2], t.stride[3], g.batch, rows, columns};
  };
  job.lane_side = operand(x, job.walk.h, job.kernel_rows ? pixels(job.walk.w) : job.walk.w);
  job.row_side = operand(dy, positions(job.walk.h), positions(job.walk.w));
  if (depthwise) job.row_side.c *= out;
  if (job.swapped) {
    const Operand side = job.lane_side;
    job.lane_side = job.row_side;
    job.row_side = side;
  }
  const bool tiled = kDotBf16 && !job.channelwise && !job.kernel_rows && has_tiled_blocks(job.walk);
  job.tiled = tiled ? kernels().multiply_tiled : nullptr;
  job.tile_rows = job.channelwise || job.kernel_rows ? in : job.tiled != nullptr ? kTiledRows : kTileRows;
  job.row_tiles = ceil_div(job.rows, job.tile_rows);
  job.lane_tiles = ceil_div(job.lanes, kTileLanes);
  job.tile_floats = taps * job.tile_rows * kTileLanes;
  choose_task(job, threads);
  threads = static_cast<int>(min(threads, max(job.tasks(), 1)));

  run<Math>(job, threads);
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
