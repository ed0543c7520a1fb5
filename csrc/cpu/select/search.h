// The search for one layer's cut: which bracket to scan next, and what a scan has taught.
//
// Floyd and Rivest's SELECT (CACM 18(3), 1975) on ordered codes: a sample gives a bracket around the wanted rank, one
// scan of the layer counts what is above it and stores the few codes inside it, and the answer is among those. An
// earlier cut of the same scores serves in the sample's place: a training step moves a cut by 0.07 % of the ranks
// (99th percentile, layers of 70K scores and more). A scan that misses has still narrowed the range.
#pragma once

#include <cstdint>

#include "cpu/select/select.h"
#include "cpu/select/kernels.h"
#include "cpu/select/scores.h"

namespace edgepop::cpu {

// Codes that `Search::bracket` may write to its scratch.
constexpr int64_t kLargestSample = 65536;

// Sums of the tallies of a whole layer.
struct Census {
  int64_t above, at_hi, inside, at_lo;
};

class Search {
 public:
  Search(const Ranking& ranking, const SelectKernels& kernels);

  const Scores& scores() const { return scores_; }
  Of of() const { return ranking_.of; }
  Cut* cut() const { return ranking_.cut; }

  // Codes that one scan may store; a bracket that holds more has only been counted.
  int64_t capacity() const { return capacity_; }

  // The next bracket to scan. scratch: kLargestSample + kStoreSlack codes.
  Bracket bracket(int32_t* scratch);

  // Takes in a scan of that bracket; `inside` holds census.inside codes, unless those exceed the capacity.
  // True: the cut's code is known.
  bool learn(Bracket bracket, const Census& census, const int32_t* inside);

  // Valid once learn has returned true: of the scores with this code the first `ties` are kept.
  int32_t code() const { return code_; }
  int64_t ties() const { return ties_; }

 private:
  bool found(int32_t code, int64_t ties);
  bool around_hint(int32_t* codes, Bracket* bracket) const;
  Bracket around_rank(int32_t* codes);
  void sample(int64_t size, int32_t* codes) const;

  Ranking ranking_;
  const SelectKernels* kernels_;
  Scores scores_;
  int64_t capacity_;

  // The cut's code lies in range_, as do population_ scores; above_ scores lie higher.
  Bracket range_;
  int64_t above_ = 0;
  int64_t population_;
  int scans_ = 0;
  double deviations_ = 3;  // half-width of the next sample's bracket, in standard deviations of the sampled rank

  int32_t code_ = 0;
  int64_t ties_ = 0;
};

}  // namespace edgepop::cpu
