#include "cpu/select/draw.h"

#include <cstring>

#include "cpu/dispatch/isa.h"
#include "cpu/select/scores.h"

namespace edgepop::cpu {

void draw(const float* scores, const int64_t (&size)[4], const int64_t (&stride)[4], uint64_t seed, uint8_t* bits,
          int threads) {
  const SelectKernels& our = *kernels().select;  // may throw, which in_chunks does not allow
  const Scores sequence(scores, size, stride);
  in_chunks(sequence, 4, threads, [&](const float* values, int64_t begin, int64_t n) {
    our.draw(values, n, begin / 64, seed, bits);
  });
  std::memset(bits + (sequence.count() + 63) / 64 * 8, 0, 8);
}

}  // namespace edgepop::cpu
