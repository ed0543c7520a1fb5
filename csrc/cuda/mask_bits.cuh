// Packing of a mask: a warp reads 32 neighbours in logical order, wherever they lie, and votes on a word.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "cuda/collective.cuh"
#include "cuda/mask_bits.h"

namespace edgepop::cuda {

// Words of a warp: as many reads of each lane are in flight, 64 KB for the 2048 threads of a multiprocessor.
constexpr int kWarpWords = 8;

// Where the scores are, dimensions that continue each other in memory merged: contiguous ones are a single dimension.
struct Places {
  uint32_t count;
  uint32_t dims;
  uint32_t size[4];
  int64_t stride[4];

  EDGEPOP_HOST_DEVICE int64_t at(uint32_t index) const {
    int64_t offset = 0;
    for (uint32_t d = dims - 1; d > 0; --d) {
      offset += index % size[d] * stride[d];
      index /= size[d];
    }
    return offset + index * stride[0];
  }
};

inline Places places_of(const MaskBits& mask) {
  Places p = {1, 0, {1, 1, 1, 1}, {1, 1, 1, 1}};
  for (int d = 0; d < 4; ++d) {
    p.count *= static_cast<uint32_t>(mask.size[d]);
    if (mask.size[d] == 1) continue;
    if (p.dims > 0 && p.stride[p.dims - 1] == mask.size[d] * mask.stride[d]) {
      --p.dims;
      p.size[p.dims] *= static_cast<uint32_t>(mask.size[d]);
    } else {
      p.size[p.dims] = static_cast<uint32_t>(mask.size[d]);
    }
    p.stride[p.dims++] = mask.stride[d];
  }
  p.dims = p.dims > 0 ? p.dims : 1;
  return p;
}

struct Packing {
  Places places;
  const uint32_t* scores;
  Of of;
  const Cut* cut;
  uint32_t words;
  uint32_t* bits;
};

inline Packing packing_of(const MaskBits& mask) {
  const Places places = places_of(mask);
  return {places,   reinterpret_cast<const uint32_t*>(mask.scores),
          mask.of,  mask.cut,
          static_cast<uint32_t>(mask_words(places.count)), mask.bits};
}

template <class Block>
EDGEPOP_DEVICE void pack(Block& block, const Packing& p) {
  const uint32_t lane = block.thread() % kWarp, warp = block.thread() / kWarp;
  const uint32_t first = (block.index() * (block.threads() / kWarp) + warp) * kWarpWords;
  const Cut cut = *p.cut;
  const Interval early = up_to(p.of, cut), late = after(p.of, cut);
  uint32_t score[kWarpWords];
  EDGEPOP_UNROLL
  for (int w = 0; w < kWarpWords; ++w) {
    const uint32_t index = (first + w) * kWarp + lane;
    score[w] = index < p.places.count ? p.scores[p.places.at(index)] : 0;
  }
  uint32_t own = 0;
  EDGEPOP_UNROLL
  for (int w = 0; w < kWarpWords; ++w) {
    const uint32_t index = (first + w) * kWarp + lane;
    const Interval kept = static_cast<int64_t>(index) <= cut.index ? early : late;
    const uint32_t image = p.of == Of::abs ? magnitude(score[w]) : monotone(score[w]);
    const uint32_t word = block.ballot(index < p.places.count && image - kept.lo <= kept.span);
    if (lane == static_cast<uint32_t>(w)) own = word;
  }
  if (lane < kWarpWords && first + lane < p.words) p.bits[first + lane] = own;
}

}  // namespace edgepop::cuda
