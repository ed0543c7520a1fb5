#include "cpu/select/draw.h"

#include <algorithm>
#include <cstring>

#include "cpu/dispatch/isa.h"
#include "cpu/select/scores.h"

namespace edgepop::cpu {

void draw(const float* scores, const int64_t (&size)[4], const int64_t (&stride)[4], uint64_t seed, uint8_t* bits,
          int threads) {
  constexpr int64_t kChunk = 4096;  // scores a thread takes at a time: 16 KB where they have to be gathered
  const SelectKernels& our = *kernels().select;  // may throw, which inside the parallel region would end the process
  const Scores sequence(scores, size, stride);
  const int64_t chunks = (sequence.count() + kChunk - 1) / kChunk;
  threads = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(chunks / 4, 1)));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float gathered[kChunk];
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t begin = chunk * kChunk, n = std::min(kChunk, sequence.count() - begin);
      our.draw(sequence.in_order(begin, n, gathered), n, begin / 64, seed, bits);
    }
  }
  std::memset(bits + (sequence.count() + 63) / 64 * 8, 0, 8);
}

}  // namespace edgepop::cpu
