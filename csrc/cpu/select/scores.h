// A layer's scores as one logical sequence, whatever their layout.
#pragma once

#include <algorithm>
#include <cstdint>

namespace edgepop::cpu {

class Scores {
 public:
  Scores(const float* data, const int64_t (&size)[4], const int64_t (&stride)[4]);

  int64_t count() const { return count_; }

  // Whether the scores fill one range of memory, in some order.
  bool dense() const { return dense_; }

  // Ranges of positions that begin at a multiple of this and end at one (or at the end) fill the same range of memory
  // in some order. 1: in logical order. 0: no such ranges, memory and logical order differ from the first dimension on.
  int64_t slice() const { return slice_; }

  // n scores as a set: where dense those at [begin, begin + n) in memory, else those at these positions, gathered.
  const float* range(int64_t begin, int64_t n, float* buffer) const {
    return dense_ ? data_ + begin : in_order(begin, n, buffer);
  }

  // Fetches the scores that range(begin, n) will read, where that reads memory as it lies.
  void prefetch(int64_t begin, int64_t n) const {
    if (!dense_) return;
    for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(data_ + begin + i);
    __builtin_prefetch(data_ + begin + n - 1);
  }

  // Logical position of the score at `offset` in memory, where dense.
  int64_t position(int64_t offset) const;

  // The n scores from `begin` on, in logical order.
  const float* in_order(int64_t begin, int64_t n, float* buffer) const {
    if (slice_ == 1) return data_ + begin;
    gather(begin, n, buffer);
    return buffer;
  }

 private:
  void gather(int64_t begin, int64_t n, float* out) const;

  const float* data_;
  int64_t count_ = 1;
  int64_t slice_ = 0;
  bool dense_ = false;
  // Dimensions of more than one element, those that continue each other in memory merged; never none.
  int dims_ = 0;
  int64_t size_[4], stride_[4];
};

constexpr int64_t kScoresChunk = 4096;  // scores a thread takes at a time: 16 KB where they have to be gathered

// take(values, begin, n) for all scores in logical order, in chunks that begin at multiples of kScoresChunk, by as many
// of `threads` as have `per_thread` chunks to do. It must not throw: in a parallel region that ends the process.
template <class Take>
void in_chunks(const Scores& scores, int64_t per_thread, int threads, const Take& take) {
  const int64_t chunks = (scores.count() + kScoresChunk - 1) / kScoresChunk;
  threads = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(chunks / per_thread, 1)));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float gathered[kScoresChunk];
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t begin = chunk * kScoresChunk, n = std::min(kScoresChunk, scores.count() - begin);
      take(scores.in_order(begin, n, gathered), begin, n);
    }
  }
}

}  // namespace edgepop::cpu
