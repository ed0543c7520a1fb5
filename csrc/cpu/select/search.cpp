#include "cpu/select/search.h"

#include <algorithm>
#include <cmath>

#include "common/codes.h"

namespace edgepop::cpu {
namespace {

// Up to this size storing every code (4 bytes each, in the first-level cache) beats sampling.
constexpr int64_t kSmall = 4096;
// Consecutive scores per place sampled, four cache lines: every place is a page, whose address is dearer to find than
// its data. 16 a place cost 5 % of the selection of ResNet-50's layers.
constexpr int64_t kRun = 64;
// A hint's bracket reaches to this many sampled neighbours, of at most 2048: 0.3 % of a large layer.
constexpr int64_t kNeighbours = 6;

int64_t sample_size(int64_t count, int64_t divisor, int64_t least, int64_t most) {
  return std::clamp(count / divisor, std::min(least, count / 4), most) / kRun * kRun;
}

// A fixed pseudo-random function (the finalizer of SplitMix64), so that no period in the scores meets a period here.
uint64_t scramble(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

Search::Search(const Ranking& ranking, const SelectKernels& kernels)
    : ranking_(ranking),
      kernels_(&kernels),
      scores_(ranking.scores, ranking.size, ranking.stride),
      range_{lowest_code(ranking.of), kHighestCode},
      population_(scores_.count()) {
  // A sampled bracket, three deviations to either side, holds 7 % of 200K scores, 2 % of 2.4M, and less of more.
  capacity_ = std::max(std::min<int64_t>(population_, 16384), population_ / 8);
}

Bracket Search::bracket(int32_t* scratch) {
  if (population_ <= (scans_ == 0 ? kSmall : capacity_)) return range_;
  Bracket bracket;
  if (scans_ == 0 && around_hint(scratch, &bracket)) return bracket;
  if (scans_ < 4) return around_rank(scratch);
  // Samples keep failing: halve the range of codes instead, which ends after 32 scans whatever the scores.
  const int32_t middle = static_cast<int32_t>((static_cast<int64_t>(range_.lo) + range_.hi) >> 1);
  return {middle, middle};
}

bool Search::learn(Bracket bracket, const Census& census, const int32_t* inside) {
  ++scans_;
  const int64_t rank = ranking_.kept;
  const int64_t from_hi = census.above + census.at_hi;
  const int64_t above_lo = from_hi + census.inside;
  const int64_t from_lo = above_lo + census.at_lo;
  if (rank <= census.above) {
    range_.lo = bracket.hi + 1;
    population_ = census.above - above_;
    return false;
  }
  if (rank <= from_hi) return found(bracket.hi, rank - census.above);
  if (rank <= above_lo) {
    range_ = {bracket.lo + 1, bracket.hi - 1};
    above_ = from_hi;
    population_ = census.inside;
    if (census.inside > capacity_) return false;
    const Kth kth = kernels_->kth(inside, census.inside, rank - from_hi, range_);
    return found(kth.code, rank - from_hi - kth.above);
  }
  if (rank <= from_lo) return found(bracket.lo, rank - above_lo);
  range_.hi = bracket.lo - 1;
  population_ += above_ - from_lo;
  above_ = from_lo;
  return false;
}

bool Search::found(int32_t code, int64_t ties) {
  code_ = code;
  ties_ = ties;
  return true;
}

// The kNeighbours sampled codes nearest to the hint, unless the sample shows that the hint cannot be right.
bool Search::around_hint(int32_t* codes, Bracket* bracket) const {
  int32_t hint;
  if (ranking_.hint == nullptr || !code_of_key(ranking_.of, ranking_.hint->key, &hint)) return false;
  const int64_t size = sample_size(population_, 32, 512, 2048);
  sample(size, codes);
  int64_t above = 0, equal = 0;
  for (int64_t i = 0; i < size; ++i) {
    above += codes[i] > hint;
    equal += codes[i] == hint;
    const uint32_t up = static_cast<uint32_t>(codes[i]) - static_cast<uint32_t>(hint);
    const uint32_t distance = codes[i] > hint ? up : 0u - up;
    codes[i] = static_cast<int32_t>(distance <= INT32_MAX ? distance : INT32_MAX);
  }
  const double size_f = static_cast<double>(size);
  const double expected = static_cast<double>(ranking_.kept) / static_cast<double>(population_) * size_f;
  const double tolerance = 4 * std::sqrt(size_f);  // at least 8 standard deviations of a sampled rank
  if (expected < above - tolerance || expected > above + equal + tolerance) return false;
  int64_t reach = 0;
  if (equal < size / 64) {
    // Storing the hint's own ties is still cheaper than missing a cut that moved to a neighbour.
    const int64_t nearest = std::min(equal + kNeighbours, size);
    reach = kernels_->kth(codes, size, size - nearest + 1, {0, INT32_MAX}).code;
  }
  bracket->lo = static_cast<int32_t>(std::max<int64_t>(hint - reach, range_.lo));
  bracket->hi = static_cast<int32_t>(std::min<int64_t>(hint + reach, range_.hi));
  return true;
}

// The sampled codes `deviations_` to either side of the wanted rank.
Bracket Search::around_rank(int32_t* codes) {
  const int64_t size = sample_size(scores_.count(), 128, 2048, kLargestSample);
  sample(size, codes);
  int64_t within = size;
  if (population_ < scores_.count()) {
    within = std::remove_if(codes, codes + size, [&](int32_t c) { return c < range_.lo || c > range_.hi; }) - codes;
  }
  const double fraction = static_cast<double>(ranking_.kept - above_) / static_cast<double>(population_);
  const double centre = fraction * static_cast<double>(within);
  const double deviation = std::sqrt(centre * (1 - fraction));
  const int64_t reach = static_cast<int64_t>(deviations_ * (deviation + 1)) + 1;
  deviations_ *= 4;
  const int64_t highest = static_cast<int64_t>(centre) - reach;
  const int64_t lowest = static_cast<int64_t>(centre) + 1 + reach;
  Bracket bracket = range_;
  if (highest >= 1) bracket.hi = kernels_->kth(codes, within, highest, range_).code;
  if (lowest <= within) bracket.lo = kernels_->kth(codes, within, lowest, {range_.lo, bracket.hi}).code;
  return bracket;
}

// Codes of short runs, one at a scrambled place in each of equal parts of the layer.
void Search::sample(int64_t size, int32_t* codes) const {
  const int64_t runs = size / kRun;
  const auto place_of = [&](int64_t run) {
    const int64_t begin = scores_.count() * run / runs, end = scores_.count() * (run + 1) / runs;
    const uint64_t places = static_cast<uint64_t>(end - begin - kRun + 1);
    return begin + static_cast<int64_t>(scramble(static_cast<uint64_t>(run * 4 + scans_)) % places);
  };
  constexpr int64_t kRunsAhead = 4;
  int64_t places[kRunsAhead];
  for (int64_t run = -kRunsAhead; run < runs; ++run) {
    int64_t* const place = places + (run + kRunsAhead) % kRunsAhead;
    if (run >= 0) {
      float gathered[kRun];
      kernels_->codes(scores_.range(*place, kRun, gathered), kRun, ranking_.of, codes + run * kRun);
    }
    if (run + kRunsAhead < runs) {
      *place = place_of(run + kRunsAhead);
      scores_.prefetch(*place, kRun);
    }
  }
}

}  // namespace edgepop::cpu
