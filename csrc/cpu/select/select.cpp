#include "cpu/select/select.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "common/codes.h"
#include "common/tensor.h"
#include "cpu/dispatch/isa.h"
#include "cpu/dispatch/threads.h"
#include "cpu/select/search.h"

namespace edgepop::cpu {
namespace {

constexpr int64_t kChunk = 16384;  // scores: 64 KB, a unit of work and of the search for a tie
constexpr int64_t kGather = 2048;  // scores: 8 KB on the stack, where the layout makes a copy necessary
constexpr int64_t kLargestChunk = 65536;
constexpr int64_t kFewTies = 4096;           // positions: 32 KB on the stack
constexpr int64_t kScoresPerThread = 65536;  // fewer are read sooner than a second thread starts
constexpr int64_t kRewrittenPerThread = 16384;

// A range of a layer's scores, and what the latest scan found in it. The range is one of logical positions, unless the
// scores are dense without slices: then it is one of memory.
struct Chunk {
  int64_t layer;
  int64_t begin, end;
  Tally tally;
  int64_t first_inside;  // where its codes lie among the layer's, if they fitted
};

struct Layer {
  Search search;
  int64_t first_chunk = 0, last_chunk = 0;
  int32_t* inside = nullptr;  // the codes of all chunks, in the order in which these were finished
  int32_t* positions = nullptr;  // of these codes, counted in their chunks; with marks only
  Bracket bracket = {0, 0};
  bool settled = false;
  Marks marks = {};  // of the whole layer
  alignas(64) int64_t inside_count = 0;  // all threads add to it; what they read has cache lines of its own
};

int64_t total(const std::vector<Ranking>& rankings) {
  int64_t count = 0;
  for (const Ranking& r : rankings) count += r.size[0] * r.size[1] * r.size[2] * r.size[3];
  return count;
}

// Marks from the score at `begin` on, a multiple of 64.
Marks from(const Marks& marks, int64_t begin, int32_t* positions) {
  const auto at = [&](uint8_t* bits) { return bits == nullptr ? nullptr : bits + begin / 8; };
  return {at(marks.kept), positions, at(marks.negative), marks.signless};
}

// Where the scans of a layer write, the ends of mask and signs cleared: no scan writes behind the last score's byte.
Marks marks_of(const Ranking& ranking, const Scores& scores) {
  if (!scores.dense() || scores.slice() != 1) {
    throw std::invalid_argument("scores: a mask is written beside the cut where they are contiguous");
  }
  const int64_t bytes = packed_bytes(scores.count());
  std::memset(ranking.mask + bytes - 16, 0, 16);
  if (ranking.signs != nullptr) std::memset(ranking.signs + bytes - 16, 0, 16);
  return {ranking.mask, nullptr, ranking.signs, ranking.signs == nullptr ? nullptr : ranking.signs + bytes - 1};
}

void keep_nothing(const Ranking& r) {
  const int64_t bytes = packed_bytes(r.size[0] * r.size[1] * r.size[2] * r.size[3]);
  std::memset(r.mask, 0, static_cast<size_t>(bytes));
  if (r.signs != nullptr) std::memset(r.signs, 0, static_cast<size_t>(bytes));
  if (r.signs != nullptr) r.signs[bytes - 1] = 1;
}

int64_t chunk_size(int64_t slice) { return slice == 0 ? kChunk : std::max<int64_t>(1, kChunk / slice) * slice; }

class Selection {
 public:
  Selection(const std::vector<Ranking>& rankings, const RewriteScan* first_scan);
  void run(int threads);

 private:
  void scan(Chunk* chunk, int32_t* staged, int32_t* staged_positions);
  void settle(Layer* layer, int32_t* scratch);
  void decide(const Chunk& chunk) const;
  int64_t ties_in(const Layer& layer, const Chunk& chunk) const;
  int64_t last_kept(const Layer& layer) const;
  int64_t last_kept_of_unordered(const Layer& layer) const;
  int64_t find(const Layer& layer, const Chunk& chunk, int64_t tie) const;
  void drop_settled();

  const SelectKernels& kernels_ = *kernels().select;
  const RewriteScan* first_scan_;  // null after the first round
  std::vector<Layer> layers_;
  std::vector<Chunk> chunks_;
  std::vector<Layer*> open_layers_;  // not settled when the round began
  std::vector<Chunk*> open_chunks_;
  size_t unsettled_ = 0;
  const bool marked_;  // whether any layer has marks
  std::unique_ptr<int32_t[]> inside_, positions_;
};

Selection::Selection(const std::vector<Ranking>& rankings, const RewriteScan* first_scan)
    : first_scan_(first_scan),
      marked_(std::any_of(rankings.begin(), rankings.end(), [](const Ranking& r) { return r.mask != nullptr; })) {
  layers_.reserve(rankings.size());
  open_layers_.reserve(rankings.size());
  int64_t capacity = 0;
  for (const Ranking& ranking : rankings) {
    if (ranking.kept == 0) {
      *ranking.cut = {int64_t{1} << 32, -1};
      if (ranking.mask != nullptr) keep_nothing(ranking);
      continue;
    }
    Layer layer = {Search(ranking, kernels_)};
    if (ranking.mask != nullptr) layer.marks = marks_of(ranking, layer.search.scores());
    const Scores& scores = layer.search.scores();
    const int64_t step = chunk_size(scores.slice());
    layer.first_chunk = static_cast<int64_t>(chunks_.size());
    for (int64_t begin = 0; begin < scores.count(); begin += step) {
      const int64_t end = std::min(begin + step, scores.count());
      chunks_.push_back({static_cast<int64_t>(layers_.size()), begin, end, {0, 0, 0, 0}, 0});
    }
    layer.last_chunk = static_cast<int64_t>(chunks_.size());
    capacity += layer.search.capacity();
    layers_.push_back(layer);
  }
  inside_.reset(new int32_t[static_cast<size_t>(capacity)]);
  positions_.reset(new int32_t[static_cast<size_t>(marked_ ? capacity : 0)]);
  int64_t next = 0;
  for (Layer& layer : layers_) {
    layer.inside = inside_.get() + next;
    if (marked_) layer.positions = positions_.get() + next;
    next += layer.search.capacity();
    open_layers_.push_back(&layer);
  }
  open_chunks_.reserve(chunks_.size());
  for (Chunk& chunk : chunks_) open_chunks_.push_back(&chunk);
  unsettled_ = layers_.size();
}

void Selection::run(int threads) {
  const int64_t scratch = std::max(kLargestSample + kStoreSlack, scan_room(kLargestChunk));
  const std::unique_ptr<int32_t[]> scratches(new int32_t[static_cast<size_t>(threads * scratch * (marked_ ? 2 : 1))]);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    int32_t* const own = scratches.get() + thread_number() * scratch;
    int32_t* const positions = marked_ ? own + threads * scratch : nullptr;
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < open_layers_.size(); ++i) open_layers_[i]->bracket = open_layers_[i]->search.bracket(own);
    for (;;) {
      // Static: a thread meets the same scores in every call, in its own cache. The last eighth goes to who is first
      // done, so that nobody waits for a thread that was held up.
      const size_t count = open_chunks_.size(), fixed = count - count / 8;
#pragma omp for schedule(static) nowait
      for (size_t i = 0; i < fixed; ++i) scan(open_chunks_[i], own, positions);
#pragma omp for schedule(dynamic)
      for (size_t i = fixed; i < count; ++i) scan(open_chunks_[i], own, positions);
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < open_layers_.size(); ++i) settle(open_layers_[i], own);
      if (unsettled_ == 0) break;
#pragma omp single
      drop_settled();
    }
    if (marked_) {
#pragma omp for schedule(static)
      for (size_t i = 0; i < chunks_.size(); ++i) decide(chunks_[i]);
    }
  }
}

// The bits of the scores inside the last bracket. A cut at one of its ends, as many equal scores make it, is none of
// theirs: then the mask is made anew.
void Selection::decide(const Chunk& chunk) const {
  const Layer& layer = layers_[static_cast<size_t>(chunk.layer)];
  if (layer.marks.kept == nullptr) return;
  const Search& search = layer.search;
  uint8_t* const kept = layer.marks.kept + chunk.begin / 8;
  const Cut here = {search.cut()->key, search.cut()->index - chunk.begin};
  const int32_t code = search.code();
  if (code == layer.bracket.lo || code == layer.bracket.hi) {
    const int64_t n = chunk.end - chunk.begin;
    kernels().select->mask_bits(search.scores().range(chunk.begin, n, nullptr), n, search.of(), here, kept);
    return;
  }
  for (int64_t i = chunk.first_inside; i < chunk.first_inside + chunk.tally.inside; ++i) {
    const int32_t c = layer.inside[i], at = layer.positions[i];
    if (c > code || (c == code && at <= here.index)) kept[at / 8] |= static_cast<uint8_t>(1 << at % 8);
  }
}

void Selection::drop_settled() {
  first_scan_ = nullptr;
  const auto layer_end = std::remove_if(open_layers_.begin(), open_layers_.end(), [](Layer* l) { return l->settled; });
  open_layers_.erase(layer_end, open_layers_.end());
  const auto chunk_end = std::remove_if(open_chunks_.begin(), open_chunks_.end(),
                                        [this](Chunk* c) { return layers_[static_cast<size_t>(c->layer)].settled; });
  open_chunks_.erase(chunk_end, open_chunks_.end());
}

void Selection::scan(Chunk* chunk, int32_t* staged, int32_t* staged_positions) {
  Layer& layer = layers_[static_cast<size_t>(chunk->layer)];
  const Scores& scores = layer.search.scores();
  float gathered[kGather];
  const int64_t step = scores.dense() ? chunk->end - chunk->begin : kGather;
  Tally sum = {0, 0, 0, 0};
  for (int64_t begin = chunk->begin; begin < chunk->end; begin += step) {
    const int64_t n = std::min(step, chunk->end - begin);
    int32_t* const inside = staged + sum.inside;
    const Marks marks = from(layer.marks, begin, staged_positions);
    const Tally tally =
        first_scan_ != nullptr
            ? (*first_scan_)(static_cast<size_t>(chunk->layer), begin, n, layer.bracket, inside, marks)
            : kernels_.scan(scores.range(begin, n, gathered), n, layer.search.of(), layer.bracket, inside, marks);
    sum.above += tally.above;
    sum.at_hi += tally.at_hi;
    sum.inside += tally.inside;
    sum.at_lo += tally.at_lo;
  }
  chunk->tally = sum;
  if (sum.inside == 0) return;
#pragma omp atomic capture
  {
    chunk->first_inside = layer.inside_count;
    layer.inside_count += sum.inside;
  }
  if (chunk->first_inside + sum.inside <= layer.search.capacity()) {
    std::copy_n(staged, sum.inside, layer.inside + chunk->first_inside);
    if (layer.marks.kept != nullptr) {
      std::copy_n(staged_positions, sum.inside, layer.positions + chunk->first_inside);
    }
  }
}

void Selection::settle(Layer* layer, int32_t* scratch) {
  Census census = {0, 0, 0, 0};
  for (int64_t c = layer->first_chunk; c < layer->last_chunk; ++c) {
    const Tally& tally = chunks_[static_cast<size_t>(c)].tally;
    census.above += tally.above;
    census.at_hi += tally.at_hi;
    census.inside += tally.inside;
    census.at_lo += tally.at_lo;
  }
  Search& search = layer->search;
  layer->settled = search.learn(layer->bracket, census, layer->inside);
  if (layer->settled) {
    *search.cut() = {key_of_code(search.of(), search.code()), last_kept(*layer)};
#pragma omp atomic
    --unsettled_;
  } else {
    layer->bracket = search.bracket(scratch);
    layer->inside_count = 0;
  }
}

int64_t Selection::ties_in(const Layer& layer, const Chunk& chunk) const {
  const int32_t code = layer.search.code();
  if (code == layer.bracket.hi) return chunk.tally.at_hi;
  if (code == layer.bracket.lo) return chunk.tally.at_lo;
  const int32_t* inside = layer.inside + chunk.first_inside;
  return std::count(inside, inside + chunk.tally.inside, code);
}

// Logical index of the last tie that is kept. Chunks are in logical order, whatever the order inside them.
int64_t Selection::last_kept(const Layer& layer) const {
  const Scores& scores = layer.search.scores();
  if (scores.dense() && scores.slice() == 0) return last_kept_of_unordered(layer);
  int64_t tie = layer.search.ties();
  for (int64_t c = layer.first_chunk;; ++c) {
    const Chunk& chunk = chunks_[static_cast<size_t>(c)];
    const int64_t here = ties_in(layer, chunk);
    if (tie <= here) return find(layer, chunk, tie);
    tie -= here;
  }
}

// The same where chunks are ranges of memory: few ties are collected, many are met on a walk in logical order.
int64_t Selection::last_kept_of_unordered(const Layer& layer) const {
  const Search& search = layer.search;
  int64_t positions[kFewTies] = {}, ties = 0;
  for (int64_t c = layer.first_chunk; c < layer.last_chunk; ++c) {
    const Chunk& chunk = chunks_[static_cast<size_t>(c)];
    const int64_t here = ties_in(layer, chunk);
    if (ties + here > kFewTies) return find(layer, {0, 0, search.scores().count(), {0, 0, 0, 0}, 0}, search.ties());
    int64_t offset = chunk.begin;
    for (int64_t t = 0; t < here; ++t, ++offset) {
      int64_t next = 1;
      const float* scores = search.scores().range(offset, chunk.end - offset, nullptr);
      offset += kernels_.find(scores, chunk.end - offset, search.of(), search.code(), &next);
      positions[ties++] = search.scores().position(offset);
    }
  }
  int64_t* last = positions + search.ties() - 1;
  std::nth_element(positions, last, positions + ties);
  return *last;
}

int64_t Selection::find(const Layer& layer, const Chunk& chunk, int64_t tie) const {
  const Search& search = layer.search;
  float gathered[kGather];
  for (int64_t begin = chunk.begin;; begin += kGather) {
    const int64_t n = std::min(kGather, chunk.end - begin);
    const float* scores = search.scores().in_order(begin, n, gathered);
    const int64_t at = kernels_.find(scores, n, search.of(), search.code(), &tie);
    if (at >= 0) return begin + at;
  }
}

}  // namespace

void select(const std::vector<Ranking>& rankings, int threads) {
  const int64_t busy = 1 + total(rankings) / kScoresPerThread;
  Selection(rankings, nullptr).run(static_cast<int>(std::min<int64_t>(threads, busy)));
}

void select(const std::vector<Ranking>& rankings, int threads, const RewriteScan& rewrite_scan) {
  const int64_t busy = 1 + total(rankings) / kRewrittenPerThread;
  Selection(rankings, &rewrite_scan).run(static_cast<int>(std::min<int64_t>(threads, busy)));
}

}  // namespace edgepop::cpu
