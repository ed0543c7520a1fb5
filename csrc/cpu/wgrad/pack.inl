// Packing of x and dy for the weight gradient: one panel holds the positions of a block for a few channels,
// [slot][channel].
//
// A packed panel costs (rows + lanes) moves per position against rows * lanes products; in exchange the micro-kernels
// see one layout and one type whatever the tensors are (NHWC, NCHW, expanded, strided; float32, bfloat16, float16), and
// positions that lie a power of two apart in memory do not fight for the same cache sets.
#pragma once

#include "cpu/wgrad/tile.inl"

namespace edgepop::cpu::EDGEPOP_ISA::wgrad {

// x or dy, seen along the axes of a walk.
struct Operand {
  const void* data;
  DType dtype;
  int64_t n, c, h, w;  // strides in elements
  int64_t images;
  WalkAxis rows, columns;
};

// The panels of one operand and block: `width` channels each, the last one what is left in whole vectors.
template <class Unit>
struct Panels {
  Unit* first;
  int64_t step;  // units from one panel to the next
  int64_t channels, width;

  int64_t left(int64_t panel) const { return channels - panel * width; }
  // Units per position of a panel, `left` channels being left when it starts.
  int64_t padded(int64_t left) const { return left < width ? round_up(left, kLanes) : width; }
};

// Loads channels or columns of one unit; `partner` points at the second image of a pair, null where there is none.
template <class T>
struct FloatUnits {
  using Element = T;
  using Unit = float;
  static constexpr int64_t kImages = 1;
  static Vec load_some(const T* p, const T*, int64_t n) { return n >= kLanes ? load(p) : load(p, n); }
  static Unit load_one(const T* p, const T*) { return to_float(*p); }
};
struct PairUnits {
  using Element = bf16;
  using Unit = uint32_t;
  static constexpr int64_t kImages = 2;
  static Vec load_some(const bf16* p, const bf16* partner, int64_t n) {
    return (Vec)pairs_at(p, partner, n);
  }
  static Unit load_one(const bf16* p, const bf16* partner) {
    return p->bits | static_cast<uint32_t>(partner == nullptr ? 0 : partner->bits) << 16;
  }
};

// Positions of one line of a block: `columns` of them `step` elements apart, of `units` units each.
template <class Units>
struct Line {
  const typename Units::Element* first;
  int64_t columns, step;
  int64_t units, unit_step;
  int64_t pairs, partner;  // units that have a second image, and how far it is
  int64_t slot;            // of the first position

  const typename Units::Element* at(int64_t column, int64_t unit) const {
    return first + column * step + unit * unit_step;
  }
  const typename Units::Element* partner_of(const typename Units::Element* p, int64_t unit) const {
    return unit < pairs ? p + partner : nullptr;
  }
};

template <class Unit>
static inline Vec load_units(const Unit* p) {
  static_assert(sizeof(Unit) == sizeof(float), "lanes hold one unit each");
  return load(reinterpret_cast<const float*>(p));
}
template <class Unit>
static inline void store_units(Unit* p, Vec units) {
  store(reinterpret_cast<float*>(p), units);
}

// Positions of a line that are packed side by side, a quarter of the line apart: as many streams, which the hardware
// fetches ahead. One by one, packing waited for memory: 1 to 8 % of a call (Ice Lake, 2 cores).
constexpr int64_t kStreams = 4;

// Channels side by side in memory. Position by position through all panels: rows of x that lie a power of two apart
// would push each other out of the cache if every panel went over all of them. Panels of one vector go one by one: they
// are many places to store to, and use up the cache lines that they read. Pairs, with half a line each, do not.
template <class Units>
static void pack_channels(const Line<Units>& line, const Panels<typename Units::Unit>& panels) {
  const int64_t together = panels.width == kLanes && Units::kImages == 1 ? kLanes : panels.channels;
  typename Units::Unit* first = panels.first;
  if (line.units == 1 && line.step == panels.channels && panels.width == panels.channels) {  // pixels without a gap
    const auto* const p = line.at(0, 0);
    const auto* const partner = line.partner_of(p, 0);
    for (int64_t i = 0, count = line.columns * line.step; i < count; i += kLanes) {
      const auto* const second = partner == nullptr ? nullptr : partner + i;
      store_units(first + line.slot * line.step + i, Units::load_some(p + i, second, count - i));
    }
    return;
  }
  // Narrow rows are stored as whole vectors, what is too much of one being overwritten by the next: in order, then.
  const int64_t positions = line.columns * line.units;
  const int64_t stretch = panels.width % kLanes == 0 ? ceil_div(positions, kStreams) : positions;
  for (int64_t channel = 0; channel < panels.channels; channel += together, first += panels.step) {
    const int64_t end = min(panels.channels, channel + together);
    for (int64_t position = 0; position < stretch; ++position) {
      const typename Units::Element *from[kStreams], *partner[kStreams];
      int64_t streams = 0;
      for (int64_t at = position; at < positions; at += stretch, ++streams) {
        from[streams] = line.at(at / line.units, at % line.units) + channel;
        partner[streams] = line.partner_of(from[streams], at % line.units);
      }
      typename Units::Unit* panel = first;
      for (int64_t c = channel; c < end; c += panels.width, panel += panels.step) {
        const int64_t left = end - c, width = panels.padded(left);
        for (int64_t v = 0; v < width; v += kLanes) {
          for (int64_t i = 0; i < streams; ++i) {
            const int64_t slot = line.slot + position + i * stretch, offset = c - channel + v;
            const auto* const second = partner[i] == nullptr ? nullptr : partner[i] + offset;
            store_units(panel + slot * width + v, Units::load_some(from[i] + offset, second, min(left, width) - v));
          }
        }
      }
    }
  }
}

// Columns side by side in memory: squares of kLanes x kLanes are transposed, a whole number of panels together, and
// distributed from there.
template <class Units>
static void pack_columns(const Line<Units>& line, int64_t channel_step, const Panels<typename Units::Unit>& panels) {
  constexpr int64_t kTogether = 12 * kLanes;
  static_assert(kTogether % kPanelRows == 0 && kTogether % kTileLanes == 0, "rows and lanes in whole panels");
  alignas(64) typename Units::Unit rows[kLanes][kTogether];
  for (int64_t channel = 0; channel < panels.channels; channel += kTogether) {
    const int64_t channels = min(kTogether, panels.channels - channel);
    for (int64_t k = 0; k < line.columns; k += kLanes) {
      const int64_t positions = min(kLanes, line.columns - k);
      for (int64_t unit = 0; unit < line.units; ++unit) {
        for (int64_t c = 0; c < channels; c += kLanes) {
          Vec square[kLanes];
          for (int64_t i = 0; i < kLanes; ++i) {
            const auto* const p = line.at(k, unit) + (channel + c + i) * channel_step;
            square[i] = c + i < channels ? Units::load_some(p, line.partner_of(p, unit), positions) : zero();
          }
          transpose(square);
          for (int64_t i = 0; i < kLanes; ++i) store_units(rows[i] + c, square[i]);
        }
        for (int64_t i = 0; i < positions; ++i) {
          const int64_t slot = line.slot + (k + i) * line.units + unit;
          typename Units::Unit* panel = panels.first + channel / panels.width * panels.step;
          for (int64_t c = 0; c < channels; c += panels.width, panel += panels.step) {
            const int64_t width = panels.padded(panels.channels - channel - c);
            for (int64_t v = 0; v < width; v += kLanes) {
              store_units(panel + slot * width + v, load_units(rows[i] + c + v));
            }
          }
        }
      }
    }
  }
}

// Neither.
template <class Units>
static void pack_elements(const Line<Units>& line, int64_t channel_step, const Panels<typename Units::Unit>& panels) {
  for (int64_t channel = 0; channel < panels.channels; channel += panels.width) {
    const int64_t left = panels.channels - channel, width = panels.padded(left);
    typename Units::Unit* to = panels.first + channel / panels.width * panels.step + line.slot * width;
    for (int64_t k = 0; k < line.columns; ++k) {
      for (int64_t unit = 0; unit < line.units; ++unit, to += width) {
        for (int64_t c = 0; c < width; ++c) {
          const auto* const p = line.at(k, unit) + (channel + c) * channel_step;
          to[c] = c < left ? Units::load_one(p, line.partner_of(p, unit)) : typename Units::Unit{};
        }
      }
    }
  }
}

// Panels of a block, from the channel that lies `offset` elements into the data on; every slot that some tap can read.
template <class Units>
static void pack_panels(const Operand& x, const Block& block, int64_t offset,
                        const Panels<typename Units::Unit>& panels) {
  using Element = typename Units::Element;
  const int64_t image = block.unit * Units::kImages;
  const int64_t pairs = Units::kImages == 2 ? min(block.units, (x.images - image) / 2) : 0;
  const Element* const data = static_cast<const Element*>(x.data) + offset + image * x.n;
  const int64_t step = x.columns.stride * x.w;
  x.rows.for_each_segment(block.row, block.rows, [&](int64_t row_slot, int64_t row, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      x.columns.for_each_segment(block.column, block.columns, [&](int64_t slot, int64_t column, int64_t columns) {
        const Element* const first = data + (row + i * x.rows.stride) * x.h + column * x.w;
        const int64_t first_slot = ((row_slot + i) * x.columns.slots + slot) * block.units;
        const Line<Units> line = {first, columns, step, block.units, Units::kImages * x.n, pairs, x.n, first_slot};
        if (x.c == 1) {
          pack_channels(line, panels);
        } else if (step == 1 && 4 * panels.channels >= kLanes) {  // below that, squares are mostly empty
          pack_columns(line, x.c, panels);
        } else {
          pack_elements(line, x.c, panels);
        }
      });
    }
  });
}

}  // namespace edgepop::cpu::EDGEPOP_ISA::wgrad
