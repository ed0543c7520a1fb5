// Packing of x and dy for the weight gradient: one panel holds the positions of a block for a few channels,
// [slot][channel].
//
// A packed panel costs (rows + lanes) moves per position against rows * lanes products; in exchange the micro-kernels
// see one layout and one type whatever the tensors are (NHWC, NCHW, expanded, strided; float32, bfloat16, float16), and
// positions that lie a power of two apart in memory do not fight for the same cache sets.
#include "wgrad_tile.inl"

namespace edgepop::cpu::EDGEPOP_ISA {

// x or dy, seen along the axes of a walk.
struct Operand {
  const void* data;
  DType dtype;
  int64_t n, c, h, w;  // strides in elements
  int64_t images;
  Axis rows, columns;
};

// Loads channels or columns of one unit; `partner` points at the second image of a pair, null where there is none.
template <class T>
struct FloatUnits {
  using Element = T;
  using Unit = float;
  static constexpr int64_t kImages = 1;
  static Vec load_some(const T* p, const T*, int64_t n) { return load(p, n); }
  static Unit load_one(const T* p, const T*) { return to_float(*p); }
};
#if defined(__AVX512BF16__)
struct PairUnits {
  using Element = bf16;
  using Unit = uint32_t;
  static constexpr int64_t kImages = 2;
  static Vec load_some(const bf16* p, const bf16* partner, int64_t n) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
    if (partner == nullptr) return _mm512_castsi512_ps(low);
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), partner));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  static Unit load_one(const bf16* p, const bf16* partner) {
    return p->bits | static_cast<uint32_t>(partner == nullptr ? 0 : partner->bits) << 16;
  }
};
#endif

// `count` positions whose elements lie `step` apart, of one unit, into rows `width` apart by `stride` units.
template <class Units>
static void pack_positions(const Operand& x, const typename Units::Element* p, const typename Units::Element* partner,
                           int64_t step, int64_t count, int64_t channels, typename Units::Unit* to, int64_t width,
                           int64_t stride) {
  const auto paired = [&](int64_t offset) { return partner == nullptr ? nullptr : partner + offset; };
  const auto put = [](typename Units::Unit* at, Vec units, int64_t n) {
    store(reinterpret_cast<float*>(at), units, n);
  };
  if (x.c == 1) {
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t c = 0; c < width; c += kLanes) {
        const int64_t at = k * step + c;
        put(to + k * stride + c, Units::load_some(p + at, paired(at), smaller(kLanes, channels - c)),
            smaller(kLanes, width - c));
      }
    }
  } else if (step == 1) {
    for (int64_t k = 0; k < count; k += kLanes) {
      const int64_t positions = smaller(kLanes, count - k);
      for (int64_t c = 0; c < width; c += kLanes) {
        Vec square[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
          const int64_t at = (c + i) * x.c + k;
          square[i] = c + i < channels ? Units::load_some(p + at, paired(at), positions) : zero();
        }
        transpose(square);
        for (int64_t i = 0; i < positions; ++i) put(to + (k + i) * stride + c, square[i], smaller(kLanes, width - c));
      }
    }
  } else {
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t c = 0; c < width; ++c) {
        const int64_t at = k * step + c * x.c;
        to[k * stride + c] = c < channels ? Units::load_one(p + at, paired(at)) : typename Units::Unit{};
      }
    }
  }
}

// The `channels` channels of a block whose first lies `offset` elements into the data, every slot that some tap can
// read, into rows of `width` units.
template <class Units>
static void pack_panel(const Operand& x, const Block& block, int64_t offset, int64_t channels, int64_t width,
                       typename Units::Unit* panel) {
  using Element = typename Units::Element;
  const Element* const data = static_cast<const Element*>(x.data) + offset;
  x.rows.for_each_segment(block.row, block.rows, [&](int64_t row_slot, int64_t row, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      x.columns.for_each_segment(block.column, block.columns, [&](int64_t slot, int64_t column, int64_t columns) {
        const Element* const line = data + (row + i * x.rows.stride) * x.h + column * x.w;
        typename Units::Unit* const to = panel + ((row_slot + i) * x.columns.slots + slot) * block.units * width;
        for (int64_t k = 0; k < block.units; ++k) {
          const int64_t image = (block.unit + k) * Units::kImages;
          const Element* const p = line + image * x.n;
          const Element* const partner = Units::kImages == 2 && image + 1 < x.images ? p + x.n : nullptr;
          pack_positions<Units>(x, p, partner, x.columns.stride * x.w, columns, channels, to + k * width, width,
                                block.units * width);
        }
      });
    }
  });
}

}  // namespace edgepop::cpu::EDGEPOP_ISA
