#include "cpu/select/group_bits.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "common/tensor.h"
#include "cpu/dispatch/isa.h"
#include "cpu/dispatch/threads.h"
#include "cpu/select/scores.h"

namespace edgepop::cpu {
namespace {

// Of 64 scores at a time, which of them have one d places later, or earlier, in their group: words[(d - 1) * period + w],
// for the words of the first `count` scores, after which they repeat.
struct Members {
  Members(const Groups& groups, int64_t count)
      : period(count / 64), later((groups.size - 1) * period), earlier(later.size()) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t member = i / groups.apart % groups.size;
      for (int64_t d = 1; d < groups.size; ++d) {
        const int64_t word = (d - 1) * period + i / 64;
        later[word] |= uint64_t{member + d < groups.size} << i % 64;
        earlier[word] |= uint64_t{member >= d} << i % 64;
      }
    }
  }

  int64_t period;
  std::vector<uint64_t> later, earlier;
};

}  // namespace

void group_bits(const float* scores, const int64_t (&size)[4], const int64_t (&stride)[4], Of of, const Groups& groups,
                uint8_t* bits, int threads) {
  const SelectKernels& our = *kernels().select;
  const Scores sequence(scores, size, stride);
  const int64_t count = sequence.count(), whole = std::lcm(groups.size * groups.apart, int64_t{64});
  const int64_t chunk = whole * std::max<int64_t>(kScoresChunk / whole, 1), chunks = (count + chunk - 1) / chunk;
  const Members members(groups, whole);
  const GroupWords words = {groups.size, groups.kept, groups.apart, members.later.data(), members.earlier.data(),
                            members.period};
  // Scores beside a chunk are in no group of its own: they are read, and not looked at.
  const int64_t beside = (groups.size - 1) * groups.apart, room = beside + chunk + beside;
  threads = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(count / (4 * kScoresChunk), 1)));
  std::vector<int32_t> codes(threads * room);
  std::vector<float> gathered(sequence.slice() == 1 ? 0 : threads * chunk);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t mine = threads > 1 ? thread_number() : 0;
    int32_t* const own = codes.data() + mine * room + beside;
#pragma omp for schedule(static)
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t begin = c * chunk, n = std::min(chunk, count - begin);
      our.codes(sequence.in_order(begin, n, gathered.data() + (gathered.empty() ? 0 : mine * chunk)), n, of, own);
      our.group_bits(own, (n + 63) / 64, words, bits + begin / 8);
    }
  }
  if (count % 64 != 0) {
    uint64_t last;
    uint8_t* const at = bits + count / 64 * 8;
    std::memcpy(&last, at, 8);
    last &= (uint64_t{1} << count % 64) - 1;
    std::memcpy(at, &last, 8);
  }
  std::memset(bits + packed_bytes(count) - 8, 0, 8);
}

}  // namespace edgepop::cpu
