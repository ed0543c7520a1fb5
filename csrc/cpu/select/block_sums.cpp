#include <algorithm>
#include <vector>

#include "cpu/dispatch/isa.h"
#include "cpu/dispatch/threads.h"
#include "cpu/select/blocks.h"
#include "cpu/select/scores.h"

namespace edgepop::cpu {
namespace {

constexpr int64_t kSlice = 2048;  // elements of a row at a time: 8 KB, and some slices of them fit the first cache

// The sum of a block's rows, one slice of them at a time.
class Rows {
 public:
  // height: of a block; memory: room(height, n) floats.
  Rows(const SelectKernels& our, const Scores& scores, Of of, int64_t height, int64_t row, int64_t n, float* memory)
      : our_(our), scores_(scores), of_(of), height_(height), row_(row), first_(memory), second_(memory + n),
        sums_(memory + 2 * n), n_(n) {}

  static int64_t room(int64_t height, int64_t n) {
    int64_t slices = 3;
    while (height > 1) height = (height + 1) / 2, ++slices;
    return slices * n;
  }

  // Of the n elements from `begin` on in the first row of a block.
  float* sum(int64_t begin, int64_t n) const {
    add(begin, 0, 1, n, sums_);
    return sums_;
  }

 private:
  // y: the sum of rows at, at + step, at + 2 step and so on. Halves are added onto each other until one row is left: its
  // last two terms are the sums of the even and of the odd rows, and so on down. Behind y there is room for the others.
  void add(int64_t begin, int64_t at, int64_t step, int64_t n, float* y) const {
    if (at + 2 * step >= height_) {
      const float* const a = scores_.in_order(begin + at * row_, n, first_);
      if (at + step >= height_) return our_.magnitudes(a, n, of_, y);
      return our_.add_magnitudes(a, scores_.in_order(begin + (at + step) * row_, n, second_), n, of_, y);
    }
    add(begin, at, 2 * step, n, y);
    add(begin, at + step, 2 * step, n, y + n_);
    our_.add_onto(y + n_, n, y);
  }

  const SelectKernels& our_;
  const Scores& scores_;
  const Of of_;
  const int64_t height_, row_;
  float* const first_;
  float* const second_;
  float* const sums_;
  const int64_t n_;
};

}  // namespace

void block_sums(const float* scores, const int64_t (&size)[4], const int64_t (&stride)[4], Of of, const Blocks& blocks,
                float* sums, int threads) {
  if (blocks.elements() == 0) return;
  const SelectKernels& our = *kernels().select;
  const Scores sequence(scores, size, stride);
  // A slice is some blocks of the second dimension, with all that lies at them.
  const int64_t across = blocks.size[1] * blocks.place(), count = blocks.count[1];
  const int64_t wide = std::clamp<int64_t>(kSlice / across, 1, count), slices = (count + wide - 1) / wide;
  const int64_t n = wide * across, sums_at = blocks.count[2] * blocks.count[3] * blocks.count[4];
  const int64_t room = Rows::room(blocks.size[0], n) + n;
  threads = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(blocks.elements() / (4 * kScoresChunk), 1)));
  std::vector<float> memory(threads * room);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float* const own = memory.data() + (threads > 1 ? thread_number() : 0) * room;
    const Rows rows(our, sequence, of, blocks.size[0], blocks.row(), n, own + n);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < blocks.count[0] * slices; ++task) {
      const int64_t band = task / slices, first = task % slices * wide, width = std::min(wide, count - first);
      float* from = rows.sum(band * blocks.size[0] * blocks.row() + first * across, width * across);
      float* into = own;
      int64_t outer = width, inner = blocks.place();
      for (int d = 1; d < kBlockDims; ++d) {
        if (d > 1) {
          outer *= blocks.count[d];
          inner /= blocks.count[d] * blocks.size[d];
        }
        if (blocks.size[d] == 1) continue;
        our.fold(from, outer, blocks.size[d], inner, into);
        std::swap(from, into);
      }
      std::copy_n(from, width * sums_at, sums + (band * count + first) * sums_at);
    }
  }
}

}  // namespace edgepop::cpu
