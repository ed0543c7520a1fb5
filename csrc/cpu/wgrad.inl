// conv_backward_weight:
//
//   dW_eff[o, c, u, v] = sum over n, i, j of dy[n, o, i, j] * x[n, c, i*sh + u*dh - ph, j*sw + v*dw - pw],
//
// never written to memory whole; what leaves is dS and dW (wgrad_finish.inl).
//
// A matrix product whose reduction runs over pixels: rows x lanes tiles per tap, where rows are broadcast and lanes are
// vectors. A task is a rectangle of tiles with all their taps and a share of the blocks of pixels (wgrad_plan.h): it
// packs its channels of x and dy block by block, and keeps its sums in scratch of its own.
// Every sum's order follows from the geometry: results are the same bits for any number of threads.
#include <omp.h>

#include <new>

#include "wgrad_finish.inl"

namespace edgepop::cpu::EDGEPOP_ISA {

// Sums of one task, and the panels of a block on either side of it. More than the second-level cache holds of all
// three is no loss: each is passed over in order, once per block.
constexpr int64_t kTaskBytes = 768 * 1024;
constexpr int64_t kPanelBytes = 512 * 1024;
// A plane of weights of at most this size (64 x 64 x 3 x 3) is one task and too few for many threads: the blocks of
// pixels are cut into shares then, each with sums of its own.
constexpr int64_t kSharedPlaneBytes = 192 * 1024;
constexpr int64_t kShares = 8;

struct Memory {
  explicit Memory(int64_t bytes) : data(static_cast<char*>(::operator new(bytes, std::align_val_t{64}))) {}
  ~Memory() { ::operator delete(data, std::align_val_t{64}); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* const data;
};

struct Job {
  Conv conv;
  Walk walk;
  Finish finish;
  Operand row_side, lane_side;  // one of them x, the other dy
  bool swapped;                 // rows are input channels, lanes output channels
  bool depthwise;               // lanes are groups; a row is one output channel of each
  int64_t groups, rows, lanes;  // rows and lanes per group
  int64_t tile_rows, row_tiles, lane_tiles, tile_floats;
  int64_t task_rows, task_lanes;  // tiles per task
  int64_t shares;                 // of the blocks of pixels

  int64_t taps() const { return finish.taps(); }
  int64_t plane_tiles() const { return groups * row_tiles * lane_tiles; }
  int64_t tasks_down() const { return ceil_div(row_tiles, task_rows); }
  int64_t tasks_across() const { return ceil_div(lane_tiles, task_lanes); }
  int64_t tasks() const { return shares * groups * tasks_down() * tasks_across(); }

  Tile tile(int64_t group, int64_t down, int64_t across) const {
    const int64_t row = down * tile_rows, lane = across * kTileLanes;
    return {group, row, smaller(tile_rows, rows - row), lane, smaller(kTileLanes, lanes - lane)};
  }

  // Where a tile's channels start in its operands.
  int64_t lane_offset(const Tile& t) const { return (t.group * lanes + t.lane) * lane_side.c; }
  int64_t row_offset(const Tile& t) const {
    if (depthwise) return t.lane * row_side.c + t.row * (row_side.c / rows);
    return (t.group * rows + t.row) * row_side.c;
  }
};

// Half cycles per position of a rows x lanes plane, on a core with two multiply-adds of latency four and two loads a
// cycle.
static int64_t plane_cost(int64_t rows, int64_t lanes) {
  int64_t cost = 0;
  for (int64_t lane = 0; lane < lanes; lane += kTileLanes) {
    const int64_t v = ceil_div(smaller(kTileLanes, lanes - lane), kLanes), rest = rows % kTileRows;
    const auto tile = [&](int64_t r) { return larger(larger(r * v, r + v), 8); };
    cost += rows / kTileRows * tile(kTileRows) + (rest == 0 ? 0 : tile(rest));
  }
  return cost;
}

// Units of one tile's panel of either side, and a vector more: a narrow panel's last store spills that far, and panels
// must not lie a multiple of 4 KB apart.
static int64_t panel_units(const Job& job, const Operand& side) {
  const int64_t channels = &side == &job.lane_side || job.depthwise ? kTileLanes : kTileRows;
  return side.rows.slots * side.columns.slots * job.walk.unit_block * channels + kLanes;
}

// Tiles per task, long in the direction of lanes: weights, scores and gradients are then met in rows of a page or more,
// 2.5 times as fast as in squares of the same number of tiles (4096 x 4096, 32 pixels). No sum depends on the choice.
static void choose_task(Job& job, int threads) {
  const auto fit = [](int64_t bytes, int64_t units) { return larger(1, bytes / (units * 4)); };
  const int64_t tiles = fit(kTaskBytes, job.tile_floats);
  const int64_t panels = smaller(tiles, fit(kPanelBytes, panel_units(job, job.lane_side)));
  job.task_lanes = job.depthwise ? 1 : even_block(job.lane_tiles, panels);
  job.task_rows = smaller(tiles / job.task_lanes, fit(kPanelBytes, panel_units(job, job.row_side)));
  job.task_rows = even_block(job.row_tiles, larger(1, job.task_rows));
  const bool shared = job.plane_tiles() * job.tile_floats * 4 <= kSharedPlaneBytes;
  job.shares = shared ? larger(1, smaller(kShares, job.walk.blocks)) : 1;
  while (job.task_rows > 1 && job.tasks() < 4 * threads && job.tasks() % threads != 0) {
    job.task_rows = ceil_div(job.task_rows, 2);
  }
  while (job.task_lanes > 1 && job.tasks() < threads) job.task_lanes = ceil_div(job.task_lanes, 2);
}

template <class Math>
using Pack = void (*)(const Operand&, const Block&, int64_t, const Panels<typename Math::Unit>&);

static inline Pack<FloatMath> packer(FloatMath, DType dtype) {
  switch (dtype) {
    case DType::f32: return pack_panels<FloatUnits<float>>;
    case DType::bf16: return pack_panels<FloatUnits<bf16>>;
    default: return pack_panels<FloatUnits<f16>>;
  }
}
#if defined(__AVX512BF16__)
static inline Pack<PairMath> packer(PairMath, DType) { return pack_panels<PairUnits>; }
#endif

// What one thread works in.
template <class Math>
struct Scratch {
  typename Math::Unit *rows, *lanes;
  float *sums, *lines;
  Runs* runs;
  int64_t row_panel, lane_panel;  // units per panel
  int64_t bytes;

  Scratch(const Job& job, char* base) {
    const auto take = [&](int64_t size) {
      char* const at = base + bytes;
      bytes += ceil_div(size, 64) * 64;
      return at;
    };
    row_panel = panel_units(job, job.row_side);
    lane_panel = panel_units(job, job.lane_side);
    bytes = 0;
    lanes = reinterpret_cast<typename Math::Unit*>(take(job.task_lanes * lane_panel * 4));
    rows = reinterpret_cast<typename Math::Unit*>(take(job.task_rows * row_panel * 4));
    sums = reinterpret_cast<float*>(take(job.task_rows * job.task_lanes * job.tile_floats * 4));
    lines = reinterpret_cast<float*>(take(kFinishLines * kTileLanes * job.taps() * 4));
    runs = reinterpret_cast<Runs*>(take(job.taps() * static_cast<int64_t>(sizeof(Runs))));
  }
};

// Where each tap's runs start in the panels of one block.
static void find_runs(const Job& job, const Block& block, Runs* runs) {
  const Axis &h = job.walk.h, &w = job.walk.w;
  for (int64_t t = 0; t < job.taps(); ++t) {
    const int64_t u = t / job.conv.kernel_w, v = t % job.conv.kernel_w;
    const Range down = h.valid(u, block.row, block.rows), across = w.valid(v, block.column, block.columns);
    const int64_t x_at = ((h.slot(u) + down.begin) * w.slots + w.slot(v) + across.begin) * block.units;
    const int64_t dy_at = (down.begin * w.block + across.begin) * block.units;
    const int64_t x_step = w.slots * block.units, dy_step = w.block * block.units;
    Runs r = {down.end - down.begin, (across.end - across.begin) * block.units, dy_at, dy_step, x_at, x_step};
    if (job.swapped) r = {r.lines, r.count, x_at, x_step, dy_at, dy_step};
    if (r.count == r.rows_step && r.count == r.lanes_step) {
      r.count *= r.lines;
      r.lines = smaller(r.lines, 1);
    }
    runs[t] = r;
  }
}

// The sums of tile (down, across) of a task.
struct Sums {
  float* first;
  int64_t down_step, across_step;

  float* at(int64_t down, int64_t across) const { return first + down * down_step + across * across_step; }
};

// One share of the blocks for one rectangle of tiles. finished(tile, sums) is called once the tile's last block is in,
// while its sums are still in the first-level cache.
template <class Math, class Finished>
static void sum_blocks(const Job& job, Range blocks, int64_t group, Range down, Range across, const Sums& sums,
                       const Scratch<Math>& scratch, const Finished& finished) {
  const Pack<Math> pack_row_side = packer(Math{}, job.row_side.dtype);
  const Pack<Math> pack_lane_side = packer(Math{}, job.lane_side.dtype);
  if (blocks.begin == blocks.end) {  // an empty batch or image
    for (int64_t a = across.begin; a < across.end; ++a) {
      for (int64_t d = down.begin; d < down.end; ++d) {
        float* const sum = sums.at(d - down.begin, a - across.begin);
        for (int64_t i = 0; i < job.tile_floats; ++i) sum[i] = 0.0f;
        finished(job.tile(group, d, a), sum);
      }
    }
  }
  for (int64_t index = blocks.begin; index < blocks.end; ++index) {
    const Block block = block_at(job.walk, index);
    find_runs(job, block, scratch.runs);
    const Tile corner = job.tile(group, down.begin, across.begin);
    const int64_t lanes = smaller(job.lanes - corner.lane, (across.end - across.begin) * kTileLanes);
    const int64_t tail = ceil_div(lanes % kTileLanes, kLanes) * kLanes;
    pack_lane_side(job.lane_side, block, job.lane_offset(corner),
                   {scratch.lanes, scratch.lane_panel, lanes, kTileLanes, tail});
    if (job.depthwise) {
      for (int64_t d = down.begin; d < down.end; ++d) {
        pack_row_side(job.row_side, block, job.row_offset(job.tile(group, d, across.begin)),
                      {scratch.rows + (d - down.begin) * scratch.row_panel, 0, lanes, kTileLanes, tail});
      }
    } else {
      const int64_t rows = smaller(job.rows - corner.row, (down.end - down.begin) * kTileRows);
      pack_row_side(job.row_side, block, job.row_offset(corner),
                    {scratch.rows, scratch.row_panel, rows, kTileRows, rows % kTileRows});
    }
    for (int64_t d = down.begin; d < down.end; ++d) {
      for (int64_t a = across.begin; a < across.end; ++a) {
        const Tile tile = job.tile(group, d, a);
        const auto multiply = tile_kernel<Math>(tile.rows, ceil_div(tile.lanes, kLanes), job.depthwise);
        float* const sum = sums.at(d - down.begin, a - across.begin);
        for (int64_t t = 0; t < job.taps(); ++t) {
          multiply(scratch.runs[t], scratch.rows + (d - down.begin) * scratch.row_panel,
                   scratch.lanes + (a - across.begin) * scratch.lane_panel, sum + t * job.tile_rows * kTileLanes,
                   index > blocks.begin);
        }
        if (index + 1 == blocks.end) finished(tile, sum);
      }
    }
  }
}

using FinishTile = void (*)(const Finish&, const Tile&, int64_t, float*, float*);

static FinishTile tile_finisher(DType weight) {
  switch (weight) {
    case DType::f32: return finish_tile<float>;
    case DType::bf16: return finish_tile<bf16>;
    default: return finish_tile<f16>;
  }
}

template <class Math>
static void run(const Job& job, int threads) {
  const int64_t per_thread = Scratch<Math>(job, nullptr).bytes, plane_floats = job.plane_tiles() * job.tile_floats;
  const Memory scratch(per_thread * threads);
  const Memory partial(job.shares > 1 ? job.shares * plane_floats * 4 : 1);
  float* const partial_sums = reinterpret_cast<float*>(partial.data);
  const FinishTile finish_one = tile_finisher(job.finish.weight_dtype);

#pragma omp parallel num_threads(threads)
  {
    const Scratch<Math> mine(job, scratch.data + omp_get_thread_num() * per_thread);
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
      const Range across = {a, smaller(a + job.task_lanes, job.lane_tiles)};
      const Range down = {d, smaller(d + job.task_rows, job.row_tiles)};
      const Range blocks = {share * job.walk.blocks / job.shares, (share + 1) * job.walk.blocks / job.shares};
      if (job.shares > 1) {
        const int64_t down_step = job.lane_tiles * job.tile_floats;
        float* const first = partial_sums + share * plane_floats +
                             (group * job.row_tiles + d) * down_step + a * job.tile_floats;
        sum_blocks<Math>(job, blocks, group, down, across, {first, down_step, job.tile_floats}, mine,
                         [](const Tile&, float*) {});
      } else {
        // A single block's tiles are finished one by one and can share one place.
        const int64_t step = job.walk.blocks <= 1 ? 0 : job.tile_floats;
        sum_blocks<Math>(job, blocks, group, down, across, {mine.sums, step * job.task_lanes, step}, mine,
                         [&](const Tile& tile, float* sums) {
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
        const Tile tile = job.tile(index / job.lane_tiles / job.row_tiles, down, across);
        finish_one(job.finish, tile, job.tile_rows, mine.sums, mine.lines);
      }
    }
  }
}

// A 1x1 kernel without padding reads one input per output, so it can be told as stride 1; and one image's rows or
// columns can then be told as images, which lets a linear layer's rows form long runs and pairs.
static void simplify(Conv& g, Tensor& dy, Tensor& x) {
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

static void conv_backward_weight(const Conv& conv, const Tensor& dy_given, const Tensor& x_given, const Tensor& w,
                                 const Mask& mask, ScoreMap map, const Tensor& ds, WeightGrad weight_grad,
                                 const Tensor& dw, int threads) {
  Job job;
  job.conv = conv;
  Tensor dy = dy_given, x = x_given;
  simplify(job.conv, dy, x);
  const Conv& g = job.conv;
  const int64_t in = g.in_channels / g.groups, out = g.out_channels / g.groups, taps = g.kernel_h * g.kernel_w;
  if (in == 0 || out == 0 || taps == 0) return;

  job.depthwise = in == 1 && g.groups > 1;
  job.swapped = !job.depthwise && 8 * plane_cost(in, out) < 7 * plane_cost(out, in);
  job.groups = job.depthwise ? 1 : g.groups;
  job.rows = job.swapped ? in : out;
  job.lanes = job.depthwise ? g.groups : job.swapped ? out : in;
  const auto grid = [&](const void* data, const int64_t (&stride)[4]) {
    const int64_t o = stride[0], c = stride[1];
    Grid r = {const_cast<void*>(data), out * o, o, c, stride[2], stride[3]};
    if (job.swapped) r = {r.data, out * o, c, o, stride[2], stride[3]};
    if (job.depthwise) r = {r.data, 0, o, out * o, stride[2], stride[3]};
    return r;
  };
  const bool wants_dw = weight_grad != WeightGrad::none && dw.data != nullptr;
  const bool reads_scores = mask.of != Of::bits && ((ds.data != nullptr && map != ScoreMap::identity) ||
                                                    (wants_dw && weight_grad == WeightGrad::kept));
  const int64_t flat[4] = {in * taps, taps, g.kernel_w, 1};
  Finish& f = job.finish;
  f.kernel_h = g.kernel_h;
  f.kernel_w = g.kernel_w;
  f.weight_dtype = w.dtype;
  f.map = map;
  f.weight_grad = weight_grad;
  f.of = mask.of;
  f.bits = static_cast<const uint8_t*>(mask.data);
  f.last = -1;
  f.up_to = f.after = {0, 0};
  if (wants_dw && weight_grad == WeightGrad::kept && mask.of != Of::bits) {
    f.last = mask.cut->index;
    f.up_to = up_to(mask.of, *mask.cut);
    f.after = after(mask.of, *mask.cut);
  }
  f.index = grid(nullptr, flat);
  f.weight = grid(ds.data == nullptr ? nullptr : w.data, w.stride);
  f.scores = grid(reads_scores ? mask.data : nullptr, mask.stride);
  f.ds = grid(ds.data, ds.stride);
  f.dw = grid(wants_dw ? dw.data : nullptr, dw.stride);

  const bool pairs = kDotBf16 && x.dtype == DType::bf16 && dy.dtype == DType::bf16;
  job.walk = walk(g, pairs ? 2 : 1);
  const auto operand = [&](const Tensor& t, const Axis& rows, const Axis& columns) {
    return Operand{t.data, t.dtype, t.stride[0], t.stride[1], t.stride[2], t.stride[3], g.batch, rows, columns};
  };
  job.lane_side = operand(x, job.walk.h, job.walk.w);
  job.row_side = operand(dy, positions(job.walk.h), positions(job.walk.w));
  if (job.depthwise) job.row_side.c *= out;
  if (job.swapped) {
    const Operand side = job.lane_side;
    job.lane_side = job.row_side;
    job.row_side = side;
  }
  job.tile_rows = job.depthwise ? 1 : kTileRows;
  job.row_tiles = ceil_div(job.rows, job.tile_rows);
  job.lane_tiles = ceil_div(job.lanes, kTileLanes);
  job.tile_floats = taps * job.tile_rows * kTileLanes;
  choose_task(job, threads);
  threads = static_cast<int>(smaller(threads, larger(job.tasks(), 1)));

#if defined(__AVX512BF16__)
  if (pairs) return run<PairMath>(job, threads);
#endif
  run<FloatMath>(job, threads);
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
