#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "common/tensor.h"
#include "cpu/dispatch/isa.h"
#include "cpu/dispatch/threads.h"
#include "cpu/select/blocks.h"
#include "cpu/select/scores.h"

namespace edgepop::cpu {
namespace {

constexpr int64_t kBehind = 64;  // bytes that may be read or written behind those asked for
constexpr int64_t kCopied = 16;  // bytes at a time

// A byte of 0 or 1 for each of `count` bits.
void unpack(const uint8_t* bits, int64_t count, uint8_t* bytes) {
  for (int64_t i = 0; i < count; i += 8) {
    const uint64_t spread = (bits[i / 8] * 0x0101010101010101u & 0x8040201008040201u) + 0x7f7f7f7f7f7f7f7fu;
    const uint64_t ones = spread >> 7 & 0x0101010101010101u;
    std::memcpy(bytes + i, &ones, 8);
  }
}

// The bits of 64 bytes of 0 or 1.
uint64_t pack(const uint8_t* bytes) {
  uint64_t word = 0;
  for (int i = 0; i < 64; i += 8) {
    uint64_t ones;
    std::memcpy(&ones, bytes + i, 8);
    word |= (ones * 0x0102040810204080u >> 56) << i;
  }
  return word;
}

// Each byte of 0 or 1 as many times as a T has bytes.
template <class T>
void repeat(const uint8_t* x, int64_t outer, uint8_t* __restrict y) {
  for (int64_t o = 0; o < outer; ++o) {
    const T same = static_cast<T>(x[o] * static_cast<T>(0x0101010101010101u));
    std::memcpy(y + o * sizeof(T), &same, sizeof(T));
  }
}

// y[o][0 .. n)[i] = x[o][i]: what lies behind is written over by what comes next.
void repeat(const uint8_t* x, int64_t outer, int64_t n, int64_t inner, uint8_t* y) {
  if (inner == 1) {
    if (n == 2) return repeat<uint16_t>(x, outer, y);
    if (n == 4) return repeat<uint32_t>(x, outer, y);
    for (int64_t o = 0; o < outer; ++o, y += n) {
      const uint64_t same = x[o] * 0x0101010101010101u;
      for (int64_t i = 0; i < n; i += 8) std::memcpy(y + i, &same, 8);
    }
    return;
  }
  for (int64_t o = 0; o < outer; ++o, x += inner) {
    for (int64_t j = 0; j < n; ++j, y += inner) {
      for (int64_t i = 0; i < inner; i += kCopied) std::memcpy(y + i, x + i, kCopied);
    }
  }
}

// Bits put one behind the other into words of memory.
class Packed {
 public:
  explicit Packed(uint8_t* at) : at_(at) {}

  // The `count` lowest bits of the word, 1 to 64; it has no other.
  void put(uint64_t word, int64_t count) {
    held_ |= word << filled_;
    if (filled_ + count < 64) {
      filled_ += count;
      return;
    }
    std::memcpy(at_, &held_, 8);
    at_ += 8;
    held_ = filled_ == 0 ? 0 : word >> (64 - filled_);
    filled_ += count - 64;
  }

  void finish() const {
    if (filled_ > 0) std::memcpy(at_, &held_, 8);
  }

 private:
  uint8_t* at_;
  uint64_t held_ = 0;
  int64_t filled_ = 0;
};

// The masks of bands, rows of blocks.
class Bands {
 public:
  static int64_t words(const Blocks& blocks) { return (blocks.row() + 63) / 64; }
  static int64_t bytes(const Blocks& blocks) { return blocks.row() + kBehind; }
  // A band's bits, its bytes twice, and its words.
  static int64_t room(const Blocks& blocks) {
    return packed_bytes(blocks.row_blocks()) + 2 * bytes(blocks) + 8 * words(blocks);
  }

  Bands(const SelectKernels& our, const float* sums, const Cut& cut, const Blocks& blocks, uint8_t* memory)
      : our_(our), sums_(sums), cut_(cut), blocks_(blocks), bits_(memory),
        bytes_(bits_ + packed_bytes(blocks.row_blocks())), others_(bytes_ + bytes(blocks)),
        words_(others_ + bytes(blocks)) {}

  void put(int64_t band, Packed& packed) const {
    const int64_t count = blocks_.row_blocks(), first = band * count;
    our_.mask_bits(sums_ + first, count, Of::raw, {cut_.key, cut_.index - first}, bits_);
    unpack(bits_, count, bytes_);
    const uint8_t* const row = spread();
    const int64_t words = Bands::words(blocks_), last = blocks_.row() - 64 * (words - 1);
    for (int64_t w = 0; w < words; ++w) {
      uint64_t word = pack(row + 64 * w);
      if (w + 1 == words && last < 64) word &= (uint64_t{1} << last) - 1;
      std::memcpy(words_ + 8 * w, &word, 8);
    }
    for (int64_t r = 0; r < blocks_.size[0]; ++r) {
      for (int64_t w = 0; w < words; ++w) {
        uint64_t word;
        std::memcpy(&word, words_ + 8 * w, 8);
        packed.put(word, w + 1 < words ? 64 : last);
      }
    }
  }

 private:
  // A row of bytes, one for each weight, from one for each block.
  const uint8_t* spread() const {
    uint8_t *from = bytes_, *into = others_;
    int64_t outer = blocks_.row_blocks(), inner = 1;
    for (int d = kBlockDims - 1; d > 0; --d) {
      const int64_t size = blocks_.size[d];
      if (size > 1) {
        repeat(from, outer, size, inner, into);
        std::swap(from, into);
      }
      outer /= blocks_.count[d];
      inner *= blocks_.count[d] * size;
    }
    return from;
  }

  const SelectKernels& our_;
  const float* const sums_;
  const Cut& cut_;
  const Blocks& blocks_;
  uint8_t* const bits_;
  uint8_t* const bytes_;
  uint8_t* const others_;
  uint8_t* const words_;
};

}  // namespace

void block_bits(const float* sums, const Cut& cut, const Blocks& blocks, uint8_t* bits, int threads) {
  const SelectKernels& our = *kernels().select;
  const int64_t count = blocks.elements();
  std::memset(bits + packed_bytes(count) - 8, 0, 8);
  if (count == 0) return;
  // A task's bands end with a word, but for the last one's.
  const int64_t band = blocks.size[0] * blocks.row(), whole = 64 / std::gcd(band, int64_t{64});
  const int64_t bands = whole * std::max<int64_t>(kScoresChunk / (whole * band), 1);
  const int64_t tasks = (blocks.count[0] + bands - 1) / bands, room = Bands::room(blocks);
  threads = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(count / (16 * kScoresChunk), 1)));
  std::vector<uint8_t> memory(threads * room);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Bands masks(our, sums, cut, blocks, memory.data() + (threads > 1 ? thread_number() : 0) * room);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t first = task * bands, end = std::min(first + bands, blocks.count[0]);
      Packed packed(bits + first * band / 8);
      for (int64_t b = first; b < end; ++b) masks.put(b, packed);
      packed.finish();
    }
  }
}

}  // namespace edgepop::cpu
