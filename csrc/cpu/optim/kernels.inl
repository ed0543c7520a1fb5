// The kernels of optim/kernels.h for one instruction set.
#pragma once

#include "cpu/optim/kernels.h"
#include "cpu/optim/steps.inl"
#include "cpu/select/scan.inl"

namespace edgepop::cpu::EDGEPOP_ISA::optim {
namespace {

template <class Step>
struct Updating {
  static constexpr int64_t kStreams = 2;  // of each array: four are 5 % slower than two
  Step step;
  void operator()(int64_t i, int64_t count) const { update_range(step, i, count); }
};

template <class Step>
void update_all(const Step& step, int64_t n) {
  const int64_t blocks = n / kBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t i = select::visited<Updating<Step>::kStreams>(b, blocks);
    select::prefetch_block(step.e.value + i);
    update_range(step, i, kBlock);
  }
  update_range(step, blocks * kBlock, n % kBlock);
}

template <class Step>
Tally update_scan(const Step& step, int64_t n, Of of, Bracket bracket, int32_t* inside, const Marks& marks) {
  return select::scan_after(Updating<Step>{step}, step.e.value, n, of, bracket, inside, marks);
}

void step(const Update& u, const Elements& e, int64_t n) {
  visit(u, [&](const auto& s) { update_all(step_of(s, e), n); });
}

Tally step_scan(const Update& u, const Elements& e, int64_t n, Of of, Bracket bracket, int32_t* inside,
                const Marks& marks) {
  return visit(u, [&](const auto& s) { return update_scan(step_of(s, e), n, of, bracket, inside, marks); });
}

}  // namespace

}  // namespace edgepop::cpu::EDGEPOP_ISA::optim
