#include "cpu/select/mask_bits.h"

#include <algorithm>
#include <cstring>

#include "common/tensor.h"
#include "cpu/dispatch/isa.h"
#include "cpu/select/scores.h"

namespace edgepop::cpu {

void mask_bits(const float* scores, const int64_t (&size)[4], const int64_t (&stride)[4], Of of, const Cut& cut,
               uint8_t* bits, int threads) {
  constexpr int64_t kChunk = 4096;  // scores a thread takes at a time: 16 KB where they have to be gathered
  const SelectKernels& our = *kernels().select;  // may throw, which inside the parallel region would end the process
  const Scores sequence(scores, size, stride);
  const int64_t chunks = (sequence.count() + kChunk - 1) / kChunk;
  threads = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(chunks / 16, 1)));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float gathered[kChunk];
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t begin = chunk * kChunk, n = std::min(kChunk, sequence.count() - begin);
      const Cut here = {cut.key, cut.index - begin};
      our.mask_bits(sequence.in_order(begin, n, gathered), n, of, here, bits + begin / 8);
    }
  }
  std::memset(bits + packed_bytes(sequence.count()) - 8, 0, 8);
}

}  // namespace edgepop::cpu
