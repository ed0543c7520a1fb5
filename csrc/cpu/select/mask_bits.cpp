#include "cpu/select/mask_bits.h"

#include <cstring>

#include "common/tensor.h"
#include "cpu/dispatch/isa.h"
#include "cpu/select/scores.h"

namespace edgepop::cpu {

void mask_bits(const float* scores, const int64_t (&size)[4], const int64_t (&stride)[4], Of of, const Cut& cut,
               uint8_t* bits, int threads) {
  const SelectKernels& our = *kernels().select;  // may throw, which in_chunks does not allow
  const Scores sequence(scores, size, stride);
  in_chunks(sequence, 16, threads, [&](const float* values, int64_t begin, int64_t n) {
    our.mask_bits(values, n, of, {cut.key, cut.index - begin}, bits + begin / 8);
  });
  std::memset(bits + packed_bytes(sequence.count()) - 8, 0, 8);
}

}  // namespace edgepop::cpu
