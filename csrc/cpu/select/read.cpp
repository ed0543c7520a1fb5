#include "cpu/select/read.h"

#include <algorithm>

#include "cpu/dispatch/isa.h"
#include "cpu/dispatch/threads.h"

namespace edgepop::cpu {
namespace {

constexpr int64_t kPiece = 65536;            // scores: 256 KB, a 32 KB stream each for the kernel's eight
constexpr int64_t kScoresPerThread = 65536;  // as selection has it

}  // namespace

uint32_t read(const std::vector<ScoreRange>& ranges, int threads) {
  int64_t count = 0;
  for (const ScoreRange& range : ranges) count += range.count;
  threads = static_cast<int>(std::min<int64_t>(threads, 1 + count / kScoresPerThread));
  const SelectKernels& our = *kernels().select;  // may throw, which inside the parallel region would end the process
  uint32_t all = 0;
#pragma omp parallel num_threads(threads) reduction(| : all) if (threads > 1)
  for (const ScoreRange& range : ranges) {
    const int64_t me = thread_number(), team = thread_count();
    const int64_t end = range.count * (me + 1) / team;
    for (int64_t begin = range.count * me / team; begin < end; begin += kPiece) {
      all |= our.read(range.scores + begin, std::min(kPiece, end - begin));
    }
  }
  return all;
}

}  // namespace edgepop::cpu
