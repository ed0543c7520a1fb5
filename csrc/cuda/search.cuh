// Exact selection of the cuts of all layers: radix search for the k-th largest composite (layer.h), many blocks a layer.
//
// A pass reads a layer's scores once. Of the composites in the range under search it makes a histogram by their leading
// digit, and appends them to the layer's candidates where those fit; the block that hands in a layer's last chunk
// settles it: the histogram says which digit the answer has, and the candidates with that digit, a few, are ranked
// against each other. Where they did not fit, that digit is the next pass's range. A layer starts
//
//   around its hint, an earlier cut   2^16 keys: 0.4 % of the score's value to either side. One pass, unless the cut
//                                     has left them; then from everything
//   from everything                   11 bits of the key a pass. Two passes, three where over 1/16 of a large layer
//                                     share those bits, and when all scores are equal as many as it takes to find the
//                                     last tie by its index, five for 2^21 scores, each spread over all blocks
//
// Composites are distinct, so the answer is one, in whatever order the blocks run and append.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/codes.h"
#include "cuda/collective.cuh"
#include "cuda/layer.h"

namespace edgepop::cuda {

constexpr int kHintBits = 16;
constexpr int kMostPasses = 24;  // a hint's, one for each digit (4 bits at least, of 63), one to collect

// kThreads and kVectors (reads in flight of a thread) shape the reading, kDigitBits and kListed the search; the tests
// run it with small ones too, so that small layers take every way through it.
template <int kThreads_, int kVectors_, int kDigitBits_, int kListed_>
struct Shape {
  static constexpr int kThreads = kThreads_;
  static constexpr int kVectors = kVectors_;
  static constexpr int kDigitBits = kDigitBits_;
  static constexpr int kBins = 1 << kDigitBits;
  static constexpr int kListed = kListed_;  // composites that are ranked against each other
  static constexpr int kWarpTile = kWarp * kVectors * 4;
  static constexpr int kChunk = kThreads * kVectors * 4;  // scores a block reads at a time
};

// The search in one layer, between passes and among blocks. Zero at the start.
struct Progress {
  uint64_t lowest;  // composites in [lowest, lowest + 2^bits) are searched
  uint32_t bits;
  uint32_t rank;  // of the answer among them, 1 the highest
  uint32_t collects;
  uint32_t settled;
  // Of the pass under way:
  uint32_t above;     // scores beyond the range
  uint32_t appended;  // candidates, also those without room
  uint32_t chunks;    // handed in
  uint32_t padding;
};

struct Work {
  uint32_t* scores;  // where the layers' offsets count from, aligned to 16 bytes
  const Layer* layers;
  uint32_t layer_count;
  uint32_t chunk_count;
  Cut* cuts;
  uint64_t* candidates;
  // Zero at the start:
  uint32_t* arrived;     // of the grid's barrier
  uint32_t* open_after;  // [kMostPasses]: layers that a pass has not settled
  Progress* progress;    // [layer_count]
  uint32_t* histograms;  // [layer_count, kBins]; zero between passes
};

// What a pass searches for in a layer.
struct Range {
  uint64_t lowest;
  uint32_t bits;
  uint32_t rank;   // 0: not known before the scores above the range are counted
  bool collects;

  template <class Shape>
  EDGEPOP_HOST_DEVICE uint32_t shift() const {
    return bits > Shape::kDigitBits ? bits - Shape::kDigitBits : 0;
  }
  EDGEPOP_HOST_DEVICE bool holds(uint64_t composite) const { return (composite - lowest) >> bits == 0; }
};

template <class Shape>
struct Shared {
  uint64_t listed[Shape::kListed];
  uint32_t histogram[Shape::kBins];  // zero outside of a layer
  uint32_t warps[Shape::kThreads / kWarp];
  Range range;  // of the layer in hand: in registers it would be every thread's
  uint32_t above, count, last;
  uint32_t digit, higher, equal;
};

EDGEPOP_HOST_DEVICE inline Range everything(const Layer& layer) {
  const uint32_t bits = static_cast<uint32_t>(layer.key_bits() + layer.index_bits);
  return {0, bits, static_cast<uint32_t>(layer.kept), layer.count <= layer.capacity};
}

EDGEPOP_HOST_DEVICE inline Range first_range(const Layer& layer, const Cut* hint) {
  // Nothing is looked for: no score has a key so high, and none is above it.
  if (layer.kept == 0) {
    return {uint64_t{0xffffffffu} << layer.index_bits, static_cast<uint32_t>(layer.index_bits), 0, false};
  }
  // A small layer is collected whole: nothing can be missed.
  if (hint == nullptr || layer.count <= layer.capacity) return everything(layer);
  const int64_t highest = (int64_t{1} << layer.key_bits()) - 1;
  if (hint->key < 0 || hint->key > highest) return everything(layer);
  int64_t key = hint->key - (1 << (kHintBits - 1));
  if (key < 0) key = 0;
  if (key > highest - (1 << kHintBits)) key = highest - (1 << kHintBits);
  const uint32_t bits = static_cast<uint32_t>(kHintBits + layer.index_bits);
  return {static_cast<uint64_t>(key) << layer.index_bits, bits, 0, true};
}

// How a pass reads the scores of the layer l from a position on; `load` begins what `take` ends, so that the loads of
// several fours are under way at once. hint: an earlier cut of the layer, stale or garbage as it may be, or null.
struct Reading {
  const Cut* hints;

  using Held = Four;
  EDGEPOP_DEVICE const Cut* hint(uint32_t l) const { return hints == nullptr ? nullptr : hints + l; }
  EDGEPOP_DEVICE Held load(const uint32_t* scores, uint32_t, uint32_t position) const {
    return *reinterpret_cast<const Four*>(scores + position);
  }
  EDGEPOP_DEVICE Four take(const Held& held, uint32_t*, uint32_t, uint32_t) const { return held; }
  EDGEPOP_DEVICE uint32_t one(uint32_t* scores, uint32_t, uint32_t position) const { return scores[position]; }
};

template <class Shape_, class Block>
class Search {
 public:
  using S = Shape_;

  EDGEPOP_DEVICE Search(Block& block, const Work& work, Shared<S>& shared)
      : block_(block), work_(work), shared_(shared) {}

  // All of it, by blocks that all run at once. first: reads the scores of the first pass, and may change them.
  template <class Read>
  EDGEPOP_DEVICE void run(const Read& first) {
    clear_histogram();
    if (block_.thread() == 0) shared_.above = 0;
    block_.sync();
    uint32_t pass = 0;
    if constexpr (!std::is_same_v<Read, Reading>) {
      walk(pass, first);
      if (!still_open(pass++)) return;
    }
    // A layer still open keeps every block here: its next pass is spread over all of them.
    do walk(pass, reading_of(first));
    while (still_open(pass++));
  }

  // The cuts of layers that keep nothing.
  EDGEPOP_DEVICE void keep_nothing() {
    if (block_.index() != 0) return;
    for (uint32_t l = block_.thread(); l < work_.layer_count; l += S::kThreads) {
      if (work_.layers[l].kept == 0) work_.cuts[l] = {int64_t{1} << 32, -1};
    }
  }

 private:
  EDGEPOP_DEVICE static const Reading& reading_of(const Reading& reading) { return reading; }
  template <class Read>
  EDGEPOP_DEVICE static Reading reading_of(const Read&) {
    return {nullptr};
  }

  EDGEPOP_DEVICE bool still_open(uint32_t pass) {
    sync_grid(block_, work_.arrived);
    return block_.load(work_.open_after + pass) != 0;  // of this pass alone: the next one counts elsewhere
  }

  // This block's share of the chunks, neighbours, so that it hands in few layers.
  template <class Read>
  EDGEPOP_DEVICE void walk(uint32_t pass, const Read& read) {
    const uint64_t all = work_.chunk_count;
    uint32_t chunk = static_cast<uint32_t>(all * block_.index() / block_.blocks());
    const uint32_t end = static_cast<uint32_t>(all * (block_.index() + 1) / block_.blocks());
    for (uint32_t l = layer_of(chunk); chunk < end; ++l) {
      const Layer& layer = work_.layers[l];
      const uint32_t first = static_cast<uint32_t>(layer.first_chunk);
      const uint32_t after = static_cast<uint32_t>(work_.layers[l + 1].first_chunk);
      const uint32_t stop = after < end ? after : end;
      const bool ranked = layer.kept != 0;
      if (chunk < stop && (pass == 0 || (ranked && !block_.load(&work_.progress[l].settled)))) {
        block_.sync();
        if (block_.thread() == 0) shared_.range = pass == 0 ? first_range(layer, read.hint(l)) : resumed(l);
        block_.sync();
        tally(layer, l, chunk - first, stop - first, read);
        if (ranked && hand_in(l, stop - chunk, after - first)) settle(pass, layer, l, shared_.range);
      }
      chunk = chunk < stop ? stop : chunk;
    }
  }

  // The last layer that does not begin after this chunk.
  EDGEPOP_DEVICE uint32_t layer_of(uint32_t chunk) const {
    uint32_t low = 0, high = work_.layer_count;
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      if (work_.layers[middle].first_chunk <= chunk) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }

  EDGEPOP_DEVICE Range resumed(uint32_t l) const {
    const Progress* p = work_.progress + l;
    return {block_.load(&p->lowest), block_.load(&p->bits), block_.load(&p->rank), block_.load(&p->collects) != 0};
  }

  // Counts and collects the chunks [chunk, stop) of a layer, each warp its own part of each.
  template <class Read>
  EDGEPOP_DEVICE void tally(const Layer& layer, uint32_t l, uint32_t chunk, uint32_t stop, const Read& read) {
    const Range& range = shared_.range;
    // Both ends as codes: of most scores two comparisons settle that they are outside. NaNs' codes are loose.
    const Of of = layer.raw ? Of::raw : Of::abs;
    const uint64_t last = range.lowest + (uint64_t{1} << range.bits) - 1;
    const int32_t highest = nearest_code(of, static_cast<int64_t>(last >> layer.index_bits));
    int32_t lowest = nearest_code(of, static_cast<int64_t>(range.lowest >> layer.index_bits));
    if (lowest == lowest_code(of)) lowest = INT32_MIN;
    uint32_t* const scores = work_.scores + layer.offset;
    const uint32_t count = static_cast<uint32_t>(layer.count);
    const uint32_t fours = count / 4 * 4;
    const uint32_t lane = block_.thread() % kWarp, warp = block_.thread() / kWarp;
    const bool ends = stop * S::kChunk >= count && warp == 0 && fours < count;  // this warp reads the last 1 to 3
    uint32_t above = 0;
    for (; chunk < stop + ends; ++chunk) {
      uint32_t position = chunk * S::kChunk + warp * S::kWarpTile + lane * 4;
      typename Read::Held held[S::kVectors];
      Four found[S::kVectors];
      uint32_t inside = 0;
      EDGEPOP_UNROLL
      for (int v = 0; v < S::kVectors; ++v) {
        const uint32_t at = position + v * kWarp * 4;
        if (at < fours && chunk < stop) {
          held[v] = read.load(scores, l, at);
          inside |= 15u << v * 4;
        }
      }
      EDGEPOP_UNROLL
      for (int v = 0; v < S::kVectors; ++v) {
        const bool there = (inside >> v * 4 & 1) != 0;
        found[v] = there ? read.take(held[v], scores, l, position + v * kWarp * 4) : Four{{kNan, kNan, kNan, kNan}};
      }
      if (chunk == stop) {
        position = fours + lane;
        inside = position < count;
        if (inside) found[0].at[0] = read.one(scores, l, position);
      }
      const uint32_t members = inside & (of == Of::raw ? compare<Of::raw>(found, lowest, highest, &above)
                                                       : compare<Of::abs>(found, lowest, highest, &above));
      if (block_.any(members != 0)) collect(layer, l, position, members);
    }
    uint32_t total;
    warp_offset(block_, above, &total);
    if (lane == 0 && total != 0) block_.add_shared(&shared_.above, total);
  }

  // Which codes are between both ends, as a bit v * 4 + c for each; counts those above.
  template <Of of>
  EDGEPOP_DEVICE static uint32_t compare(const Four (&found)[S::kVectors], int32_t lowest, int32_t highest,
                                         uint32_t* above) {
    uint32_t members = 0;
    EDGEPOP_UNROLL
    for (int v = 0; v < S::kVectors; ++v) {
      EDGEPOP_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int32_t code = loose_code(of, found[v].at[c]);
        *above += code > highest;
        members |= static_cast<uint32_t>(code >= lowest && code <= highest) << (v * 4 + c);
      }
    }
    return members;
  }

  // members: bit v * 4 + c for the score at position + v * 128 + c, whose code is in the range; few, mostly.
  EDGEPOP_DEVICE void collect(const Layer& layer, uint32_t l, uint32_t position, uint32_t members) {
    const Range& range = shared_.range;
    for (uint32_t rest = members; rest != 0; rest &= rest - 1) {
      const uint64_t composite = composite_at(layer, position, rest);
      if (range.holds(composite)) {
        block_.add_shared(&shared_.histogram[(composite - range.lowest) >> range.shift<S>()], 1);
      } else {
        members &= ~(rest & (0 - rest));
      }
    }
    if (!range.collects) return;
    uint32_t total;
    uint32_t slot = warp_offset(block_, Block::popcount(members), &total);
    uint32_t base = 0;
    if (block_.thread() % kWarp == 0) base = block_.add(&work_.progress[l].appended, total);
    slot += block_.shuffle(base, 0);
    uint64_t* const candidates = work_.candidates + layer.first_candidate;
    for (; members != 0; members &= members - 1, ++slot) {
      if (slot < static_cast<uint32_t>(layer.capacity)) candidates[slot] = composite_at(layer, position, members);
    }
  }

  EDGEPOP_DEVICE uint64_t composite_at(const Layer& layer, uint32_t position, uint32_t members) const {
    const uint32_t bit = Block::lowest_bit(members);
    const uint32_t at = position + bit / 4 * (kWarp * 4) + bit % 4;
    return layer.composite(work_.scores[layer.offset + at], at);
  }

  // Adds what this block found in so many chunks of a layer to the whole; true in the block that hands in the last.
  EDGEPOP_DEVICE bool hand_in(uint32_t l, uint32_t chunks, uint32_t of) {
    Progress* const p = work_.progress + l;
    block_.sync();
    for (int bin = block_.thread(); bin < S::kBins; bin += S::kThreads) {
      const uint32_t count = shared_.histogram[bin];
      if (count != 0) block_.add(work_.histograms + l * S::kBins + bin, count);
      shared_.histogram[bin] = 0;
    }
    if (block_.thread() == 0) {
      if (shared_.above != 0) block_.add(&p->above, shared_.above);
      shared_.above = 0;
    }
    block_.fence();
    block_.sync();
    if (block_.thread() == 0) shared_.last = block_.add(&p->chunks, chunks) + chunks == of;
    block_.sync();
    block_.fence();
    return shared_.last;
  }

  // By the block that handed in a layer's last chunk: the cut, or what the next pass searches.
  EDGEPOP_DEVICE void settle(uint32_t pass, const Layer& layer, uint32_t l, Range range) {
    Progress* const p = work_.progress + l;
    uint32_t* const histogram = work_.histograms + l * S::kBins;
    for (int bin = block_.thread(); bin < S::kBins; bin += S::kThreads) {
      shared_.histogram[bin] = block_.load(histogram + bin);
      histogram[bin] = 0;
    }
    // The cut of the hint has moved beyond the range where its rank, of the first pass only, comes out as none's.
    if (range.rank == 0) range.rank = static_cast<uint32_t>(layer.kept) - block_.load(&p->above);
    const uint32_t appended = block_.load(&p->appended);
    block_.sync();
    const uint32_t members = pick(range.rank);
    const bool hit = range.rank >= 1 && range.rank <= members;
    const bool fits = range.collects && members <= static_cast<uint32_t>(layer.capacity);
    const bool settled = hit && fits;
    if (settled) {
      narrow(&range);
      finish(layer, l, range, appended);
    } else if (hit) {
      narrow(&range);
      range.collects = shared_.equal <= static_cast<uint32_t>(layer.capacity);
    } else {
      range = everything(layer);
    }
    clear_histogram();
    if (block_.thread() == 0) {
      p->lowest = range.lowest;
      p->bits = range.bits;
      p->rank = range.rank;
      p->collects = range.collects;
      p->settled = settled;
      p->above = p->appended = p->chunks = 0;
      if (!settled) block_.add(work_.open_after + pass, 1);
    }
    block_.sync();
  }

  // The bin with the rank-th highest, how many are in bins above it and in it, to shared memory; returns the sum of all
  // bins. No bin is found for a rank that none has.
  EDGEPOP_DEVICE uint32_t pick(uint32_t rank) {
    constexpr int kOwn = (S::kBins + S::kThreads - 1) / S::kThreads;
    const int highest = S::kBins - 1 - block_.thread() * kOwn;
    uint32_t sum = 0, total;
    for (int bin = highest; bin > highest - kOwn && bin >= 0; --bin) sum += shared_.histogram[bin];
    uint32_t higher = block_offset(block_, sum, shared_.warps, &total);
    if (higher < rank && rank - higher <= sum) {
      int bin = highest;
      while (rank - higher > shared_.histogram[bin]) higher += shared_.histogram[bin--];
      shared_.digit = static_cast<uint32_t>(bin);
      shared_.higher = higher;
      shared_.equal = shared_.histogram[bin];
    }
    block_.sync();
    return total;
  }

  EDGEPOP_DEVICE void narrow(Range* range) const {
    const uint32_t shift = range->shift<S>();
    range->lowest += static_cast<uint64_t>(shared_.digit) << shift;
    range->bits = shift;
    range->rank -= shared_.higher;
  }

  // The rank-th highest of the candidates in the range; shared_.equal says how many those are.
  EDGEPOP_DEVICE void finish(const Layer& layer, uint32_t l, Range range, uint32_t appended) {
    const uint64_t* const candidates = work_.candidates + layer.first_candidate;
    while (shared_.equal > S::kListed) {  // one digit's ties, or a bracket full of them
      clear_histogram();
      block_.sync();
      for (uint32_t i = block_.thread(); i < appended; i += S::kThreads) {
        const uint64_t composite = block_.load(candidates + i);
        if (range.holds(composite)) {
          block_.add_shared(&shared_.histogram[(composite - range.lowest) >> range.shift<S>()], 1);
        }
      }
      block_.sync();
      pick(range.rank);
      narrow(&range);
    }
    if (block_.thread() == 0) shared_.count = 0;
    block_.sync();
    for (uint32_t i = block_.thread(); i < appended; i += S::kThreads) {
      const uint64_t composite = block_.load(candidates + i);
      if (range.holds(composite)) shared_.listed[block_.add_shared(&shared_.count, 1)] = composite;
    }
    block_.sync();
    for (uint32_t i = block_.thread(); i < shared_.count; i += S::kThreads) {
      const uint64_t own = shared_.listed[i];
      uint32_t rank = 1;
      for (uint32_t j = 0; j < shared_.count; ++j) rank += shared_.listed[j] > own;
      if (rank == range.rank) work_.cuts[l] = layer.cut_at(own);
    }
  }

  EDGEPOP_DEVICE void clear_histogram() {
    for (int bin = block_.thread(); bin < S::kBins; bin += S::kThreads) shared_.histogram[bin] = 0;
  }

  static constexpr uint32_t kNan = 0x7fffffffu;  // no key is below its

  Block& block_;
  const Work& work_;
  Shared<S>& shared_;
};

}  // namespace edgepop::cuda
