// The walk of a block over strips and chunks, and the ring of source rows in shared memory.
#pragma once

#include "ptx.cuh"
#include "tap_conv.h"
#include "taps.cuh"

namespace rnk::cuda {

// Where a block is in its list of strips, chunk by chunk.
template <class Taps>
struct Walk {
  int unit, chunk = 0;
  int slot = 0;       // of the ring, where the chunk's first source row lies
  int image, images;  // the first image of the chunk, and how many
  int row, column;    // first anchor of the strip
  int rows;           // of anchors in the strip

  RNK_DEVICE Walk(const Gather& conv, int first) : unit(first) { place(conv); }

  RNK_DEVICE bool at_end(const Gather& conv) const { return unit >= conv.units; }

  RNK_DEVICE void next(const Gather& conv, int lanes) {
    const Tiles& t = conv.tiles;
    const bool last = ++chunk == t.chunks;
    slot += last ? t.last_rows : t.chunk_rows;
    if (slot >= t.ring_rows) slot -= t.ring_rows;
    if (!last) return;
    chunk = 0;
    unit += lanes;
    place(conv);
  }

 private:
  RNK_DEVICE void place(const Gather& conv) {
    const Tiles& t = conv.tiles;
    const int strips = t.strips_w * t.strips_h;
    image = unit, row = column = 0;
    // Small images are one strip each, and come here at every chunk: no divisions for them.
    if (strips > 1) {
      const int strip = unit % strips;
      image = unit / strips;
      row = strip / t.strips_w * t.strip_h;
      column = strip % t.strips_w * t.strip_w;
    }
    image *= t.images;
    images = min(t.images, conv.images - image);
    rows = min(t.strip_h, conv.anchor_h - row);
  }
};

// An entry of the list of a chunk's anchors.
struct Anchor {
  int image, row, column;

  RNK_DEVICE static uint32_t encode(int image, int row, int column) {
    return image << 24 | row << 12 | column;
  }
  RNK_DEVICE explicit Anchor(uint32_t code)
      : image(code >> 24), row(code >> 12 & 0xfff), column(code & 0xfff) {}
};

// The ring of source rows. Row `r` of image `k` of a chunk lies in slot
// (walk.slot + k * image_rows + r) % ring_rows, k * image_pad bytes further on.
template <class Taps>
struct Ring {
  uint32_t base;
  int pixel_bytes;

  RNK_DEVICE uint32_t row_offset(const Tiles& t, int slot) const {
    if (Taps::step == 1) return slot * t.pitch_bytes;
    return slot / Taps::step * t.pitch_bytes + slot % Taps::step * t.row_bytes;
  }
  // At step 2 the even columns lie before the odd ones, so that neighbours in the list of anchors
  // are neighbours here.
  RNK_DEVICE uint32_t column_offset(const Tiles& t, int column) const {
    if (Taps::step == 1) return column * pixel_bytes;
    return column % Taps::step * t.plane_bytes + column / Taps::step * pixel_bytes;
  }
};

// A slot less than 2 * rows in a ring of `rows`: what is less than `rows` turns negative, huge.
RNK_DEVICE uint32_t wrapped(uint32_t slot, int rows) { return min(slot, slot - rows); }

// Deals the vectors of rows of pixels out to the threads of a block, pixel by pixel; each thread
// keeps to one vector of the pixels, and those left over do nothing.
//
// Banks: eight threads write at a time. Of pixels of four vectors they take two, which lie in
// different banks where they are four apart in their plane, of which `step` take turns in a row.
class RowVectors {
 public:
  RNK_DEVICE RowVectors(int columns, int vectors, int step) : columns_(columns) {
    const int pixels = blockDim.x / vectors, apart = 4 * step;
    int pixel = threadIdx.x / vectors;
    if (vectors == 4) {
      pixel = pixel / (2 * apart) * 2 * apart + pixel % 2 * apart + pixel / 2 % apart;
    }
    vector_ = threadIdx.x % vectors;
    column_ = pixel % columns, column_step_ = pixels % columns;
    row_ = pixel < pixels ? pixel / columns : kNever, row_step_ = pixels / columns;
  }

  RNK_DEVICE int vector() const { return vector_; }

  // Where this thread's vector of its first pixel in rows [begin, ...) lies, if row 0 begins at
  // `origin`. Computed once for all images: the products of 64 bits are many instructions.
  RNK_DEVICE const unsigned char* first(int begin, const unsigned char* origin,
                                        const PixelStrides& strides) const {
    return computed_here(origin + (begin + row_) * strides.h + column_ * strides.w +
                         vector_ * kVectorBytes);
  }

  // Calls copy(row, column, pixel) for this thread's share of rows [begin, end). `pixel` is where
  // this thread's vector of the pixel lies: in the first one `first`.
  template <class Copy>
  RNK_DEVICE void each(int begin, int end, const unsigned char* first, const PixelStrides& strides,
                       const Copy& copy) const {
    int row = begin + row_, column = column_;
    const int64_t step = row_step_ * strides.h + column_step_ * strides.w;
    const int64_t wrap = strides.h - columns_ * strides.w;
    const unsigned char* pixel = first;
#pragma unroll 1
    while (row < end) {
      copy(row, column, pixel);
      column += column_step_, row += row_step_, pixel += step;
      if (column >= columns_) column -= columns_, ++row, pixel += wrap;
    }
  }

 private:
  static constexpr int kNever = 1 << 29;
  int columns_, vector_, row_, column_, row_step_, column_step_;
};

RNK_DEVICE bool within(int i, int size) {
  return static_cast<unsigned>(i) < static_cast<unsigned>(size);
}

// Starts the copies of the source rows that a chunk needs and the one before it did not: of each
// pixel the vectors that `list` deals out, from byte `offset` on, of which `present` exist. The
// others, and what lies outside the image, become zeros. Rows and images beyond the chunk's are
// left as they are, unless `whole`: then they become zeros too.
template <class Taps>
RNK_DEVICE void load_rows(const Gather& conv, const Ring<Taps>& ring, const RowVectors& list,
                          const Walk<Taps>& walk, int64_t offset, int present, bool whole) {
  const Tiles& t = conv.tiles;
  constexpr int halo = Taps::window - Taps::step;
  const int begin = walk.chunk ? halo : 0;
  const int end = min(t.chunk_rows, walk.rows * Taps::step - walk.chunk * t.chunk_rows) + halo;
  const int top = walk.row * Taps::step + walk.chunk * t.chunk_rows - conv.pad_h;
  const int left = walk.column * Taps::step - conv.pad_w;
  const uint32_t base = ring.base + list.vector() * kVectorBytes;
  const unsigned char* pixels =
      list.first(begin,
                 conv.source + conv.source_strides.n * walk.image + offset +
                     top * conv.source_strides.h + left * conv.source_strides.w,
                 conv.source_strides);
  for (int k = 0; k < (whole ? t.images : walk.images); ++k, pixels += conv.source_strides.n) {
    const bool exists = k < walk.images && list.vector() < present;
    const int bottom = exists ? max(0, min(conv.source_h, top + end)) : 0;
    list.each(begin, whole ? t.chunk_rows + halo : end, pixels, conv.source_strides,
              [&](int row, int column, const unsigned char* pixel) {
                const uint32_t slot = walk.slot + k * t.image_rows + row;
                const bool inside =
                    within(top + row, bottom) && within(left + column, conv.source_w);
                cp_async_16(base + ring.row_offset(t, wrapped(slot, t.ring_rows)) +
                                ring.column_offset(t, column) + k * t.image_pad,
                            pixel, inside);
              });
  }
}

RNK_DEVICE void load_quad(float (&v)[4], uint32_t shared) {
  const Vec16 bits = ld_shared_16(shared);
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = bits_float(bits.x[j]);
}

// Writes the list of a chunk's anchors to shared memory: a table in place of divisions.
RNK_DEVICE void write_anchors(const Tiles& t, uint32_t table) {
  for (int a = threadIdx.x; a < t.anchors; a += blockDim.x) {
    const int row = a / t.strip_w;
    st_shared_4(table + 4 * a, Anchor::encode(row / t.chunk_h, row % t.chunk_h, a % t.strip_w));
  }
}

// The shared memory that an anchor's window of source pixels begins in: a column's bytes, to which
// come those of a row, and the slot of its first row.
struct Window {
  uint32_t column;
  int slot;
};

template <class Taps>
RNK_DEVICE Window window_of(const Tiles& t, const Ring<Taps>& ring, int chunk_slot,
                            const Anchor& anchor) {
  return {ring.base + anchor.column * ring.pixel_bytes + anchor.image * t.image_pad,
          chunk_slot + anchor.image * t.image_rows + anchor.row * Taps::step};
}

template <class Taps>
RNK_DEVICE uint32_t window_row(const Tiles& t, const Ring<Taps>& ring, const Window& window,
                               int r) {
  return window.column + ring.row_offset(t, wrapped(window.slot + r, t.ring_rows));
}

}  // namespace rnk::cuda
