#include "cpu/optim/step.h"

#include <algorithm>

#include "cpu/dispatch/isa.h"

namespace edgepop::cpu {
namespace {

constexpr int64_t kChunk = 16384;              // elements: a unit of work
constexpr int64_t kElementsPerThread = 16384;  // fewer are updated sooner than a second thread starts

struct Piece {
  const Parameter* parameter;
  int64_t begin, end;
};

Elements from(const Elements& e, int64_t begin) {
  const auto at = [&](float* moment) { return moment == nullptr ? nullptr : moment + begin; };
  return {e.value + begin, e.grad + begin, {at(e.moments[0]), at(e.moments[1]), at(e.moments[2])}};
}

void update_all(const UpdateKernels& our, const Parameter* first, const Parameter* last, int threads) {
  std::vector<Piece> pieces;
  int64_t count = 0;
  for (const Parameter* p = first; p != last; ++p) {
    count += p->count;
    for (int64_t begin = 0; begin < p->count; begin += kChunk) {
      pieces.push_back({p, begin, std::min(begin + kChunk, p->count)});
    }
  }
  threads = static_cast<int>(std::min<int64_t>(threads, 1 + count / kElementsPerThread));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& [p, begin, end] = pieces[i];
    our.step(p->update, from(p->elements, begin), end - begin);
  }
}

}  // namespace

void step(const std::vector<Parameter>& parameters, const std::vector<Ranking>& rankings, int threads) {
  const UpdateKernels& our = *kernels().update;  // may throw, which inside a parallel region would end the process
  const Parameter* const ranked = parameters.data();
  update_all(our, ranked + rankings.size(), ranked + parameters.size(), threads);
  select(rankings, threads, [&](size_t i, int64_t begin, int64_t n, Bracket bracket, int32_t* inside, const Marks& marks) {
    return our.step_scan(ranked[i].update, from(ranked[i].elements, begin), n, rankings[i].of, bracket, inside, marks);
  });
}

}  // namespace edgepop::cpu
