// fprop and dgrad of groups whose channel counts are multiples of 8: the weights stay in shared
// memory.
//
// A block owns one group, or some of its destination channels, with their weights of all taps. Each
// warp takes 32 pixels by all the block's destination channels, so that an operand read from shared
// memory serves several matrix instructions.
#pragma once

#include "epilogue.cuh"
#include "ring.cuh"

namespace rnk::cuda {

constexpr int kWideThreads = 256;
constexpr int kWideRows = 2;  // of 16 pixels that a warp takes at a time
constexpr int kWideLookahead = 1;

// From a row of `vectors` weights in shared memory to the next, so that operands lie in different
// banks: 8 rows of a vector; turned in 4-byte elements, which ldmatrix cannot turn, 4 rows of 32
// bytes.
RNK_HOST_DEVICE int wide_pitch(int vectors, bool turned, int bytes) {
  return (turned && bytes == 4 ? vectors + 2 : vectors | 1) * kVectorBytes;
}

// The weights of a block in shared memory, a few rows for each tap. A row is one destination
// channel over all source channels; turned, one source channel over the block's destination
// channels.
template <class Format, int kTiles, bool kTurned>
struct WideWeights {
  static constexpr int kBytes = Format::bytes, kVector = kVectorBytes / kBytes;
  static_assert(kBytes == 2 || kTiles * 8 / kVector % 4 == 0);  // for wide_pitch
  uint32_t base;
  int rows, vectors;  // of a tap; of a row
  int row_bytes, tap_bytes;

  RNK_DEVICE WideWeights(const TapConv& conv, uint32_t shared)
      : base(shared),
        rows(kTurned ? conv.source_width : kTiles * 8),
        vectors((kTurned ? kTiles * 8 : conv.source_width) / kVector),
        row_bytes(wide_pitch(vectors, kTurned, kBytes)),
        tap_bytes(rows * row_bytes) {}

  // Starts copying those of destination channels `first` and further of `group`.
  RNK_DEVICE void copy(const TapConv& conv, int group, int first) const {
    const int64_t out = kTurned ? static_cast<int64_t>(group) * conv.source_width
                                : static_cast<int64_t>(group) * conv.destination_width + first;
    const int in_width = kTurned ? conv.destination_width : conv.source_width;
    const unsigned char* from =
        conv.weight + (out * kTaps * in_width + (kTurned ? first : 0)) * kBytes;
    const int left = conv.destination_width - first;
    each([&](int row, int tap, int vector, uint32_t shared) {
      const bool exists = (kTurned ? vector * kVector : row) < left;
      const unsigned char* at =
          from + (row * kTaps + tap) * in_width * kBytes + vector * kVectorBytes;
      cp_async_16(shared, exists ? at : conv.weight, exists);
    });
  }

  // Rounds what this thread copied, when it has arrived.
  RNK_DEVICE void round() const {
    if constexpr (kBytes == 4) {
      each([](int, int, int, uint32_t shared) {
        Vec16 v = ld_shared_16(shared);
#pragma unroll
        for (int j = 0; j < 4; ++j) v.x[j] = to_tf32(v.x[j]);
        st_shared_16(shared, v);
      });
    }
  }

  // The operands of two tiles of destination channels, sums over 32 bytes of source channels from
  // `from` on.
  RNK_DEVICE void load_32_bytes(uint32_t (&b)[4], int tap, int tile, int from) const {
    const int lane = threadIdx.x % 32;
    if constexpr (!kTurned) {
      ldmatrix_x4(b, at(tap, tile * 8 + lane % 8 + lane / 16 * 8, from + lane / 8 % 2 * kVector));
    } else if constexpr (kBytes == 2) {
      ldmatrix_x4_trans(b, at(tap, from + lane % 16, tile * 8 + lane / 16 * 8));
    } else {
      const int to = tile * 8 + tile_channel<Format>(0, lane / 4);
      ld_shared_8(at(tap, from + lane % 4, to), b[0], b[2]);
      ld_shared_8(at(tap, from + lane % 4 + 4, to), b[1], b[3]);
    }
  }
  // The same over 8 source channels. Lanes from 16 on give no address that counts.
  RNK_DEVICE void load_8(uint32_t (&b)[2], int tap, int tile, int from) const {
    const int lane = threadIdx.x % 16;
    if (kTurned) {
      ldmatrix_x2_trans(b, at(tap, from + lane % 8, tile * 8 + lane / 8 * 8));
    } else {
      ldmatrix_x2(b, at(tap, tile * 8 + lane, from));
    }
  }

 private:
  // Calls visit(row, tap, vector, shared) for this thread's share of the vectors.
  template <class Visit>
  RNK_DEVICE void each(const Visit& visit) const {
    for (int v = threadIdx.x; v < rows * kTaps * vectors; v += blockDim.x) {
      const int vector = v % vectors, tap = v / vectors % kTaps, row = v / vectors / kTaps;
      visit(row, tap, vector, at(tap, kTurned ? row : place(row), vector * kVector));
    }
  }

  // The row in shared memory of a destination channel: see tile_channel.
  RNK_DEVICE static int place(int channel) {
    return kBytes == 2 ? channel : channel / 16 * 16 + channel % 2 * 8 + channel % 16 / 2;
  }

  RNK_DEVICE uint32_t at(int tap, int row, int column) const {
    return base + tap * tap_bytes + row * row_bytes + column * kBytes;
  }
};

// Adds one tap: the pixels of `rows` by the weights of weight_tap.
template <class Format, int kTiles, bool kTurned>
RNK_DEVICE void add_tap(float (&sums)[kWideRows][kTiles][4], const uint32_t (&rows)[kWideRows],
                        const WideWeights<Format, kTiles, kTurned>& weights, int weight_tap,
                        int width) {
  constexpr int kStep = 32 / Format::bytes;
  const int lane = threadIdx.x % 32;
  int from = 0;
#pragma unroll 1
  for (; from + kStep <= width; from += kStep) {
    uint32_t a[kWideRows][4], b[4];
#pragma unroll
    for (int k = 0; k < kWideRows; ++k) {
      ldmatrix_x4(a[k], rows[k] + from * Format::bytes + lane / 16 * kVectorBytes);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      weights.load_32_bytes(b, weight_tap, tile, from);
#pragma unroll
      for (int k = 0; k < kWideRows; ++k) {
        mma_32_bytes<Format>(sums[k][tile], a[k], b[0], b[1]);
        mma_32_bytes<Format>(sums[k][tile + 1], a[k], b[2], b[3]);
      }
    }
  }
  if constexpr (kStep == 16) {
    if (from == width) return;
    uint32_t a[kWideRows][2], b[2];
#pragma unroll
    for (int k = 0; k < kWideRows; ++k) ldmatrix_x2(a[k], rows[k] + from * 2);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      weights.load_8(b, weight_tap, tile, from);
#pragma unroll
      for (int k = 0; k < kWideRows; ++k) {
        mma_k8(Format{}, sums[k][tile], a[k][0], a[k][1], b[0]);
        mma_k8(Format{}, sums[k][tile + 1], a[k][0], a[k][1], b[1]);
      }
    }
  }
}

// kTiles * 8 destination channels a block.
template <class Format, class Taps, int kTiles, bool kTurned>
RNK_KERNEL(kWideThreads, 1)
wide_kernel(const TapConv conv) {
  static_assert(kTiles % 2 == 0);
  const Tiles& tiles = conv.tiles;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int lanes = gridDim.x / conv.channel_blocks;
  const int shares = (conv.destination_width + kTiles * 8 - 1) / (kTiles * 8);
  const int channel_block = blockIdx.x % conv.channel_blocks;
  const int group = channel_block / shares, first_to = channel_block % shares * kTiles * 8;
  const int vectors = conv.source_width * Format::bytes / kVectorBytes;
  const int64_t offset = static_cast<int64_t>(group) * conv.source_width * Format::bytes;

  const Ring<Taps> ring{shared_base(), tiles.pixel_bytes};
  const uint32_t table = ring.base + tiles.ring_bytes;
  const WideWeights<Format, kTiles, kTurned> weights(conv, table + kMostAnchors * 4);
  const RowVectors list(tiles.columns, vectors, Taps::step);
  weights.copy(conv, group, first_to);
  cp_async_commit();
  Walk<Taps> ahead(conv, blockIdx.x / conv.channel_blocks), now = ahead;
#pragma unroll
  for (int k = 0; k < kWideLookahead; ++k) {
    if (!ahead.at_end(conv)) load_rows(conv, ring, list, ahead, offset, vectors, false);
    ahead.next(conv, lanes);
    cp_async_commit();
  }
  write_anchors(tiles, table);
  const int group_first = group * conv.destination_width;
  float bias[kTiles / 2][4];
#pragma unroll
  for (int k = 0; k < kTiles / 2; ++k) {
    load_bias<Format>(conv, group_first + first_to + k * 16, bias[k]);
  }
  cp_async_wait<kWideLookahead>();
  weights.round();

  for (; !now.at_end(conv); now.next(conv, lanes)) {
    cp_async_wait<kWideLookahead - 1>();
    sync_threads();
    if (!ahead.at_end(conv)) load_rows(conv, ring, list, ahead, offset, vectors, false);
    ahead.next(conv, lanes);
    cp_async_commit();
    const Epilogue<Format> epilogue(conv, now);
    constexpr int kWarpAnchors = kWideRows * kRowTile;
    for (int first = warp * kWarpAnchors; first < tiles.anchors;
         first += kWideThreads / 32 * kWarpAnchors) {
      Window windows[kWideRows];
#pragma unroll
      for (int k = 0; k < kWideRows; ++k) {
        const int pixel = min(first + k * kRowTile + lane % 16, tiles.anchors - 1);
        windows[k] = window_of(tiles, ring, now.slot, Anchor(ld_shared_4(table + 4 * pixel)));
      }
#pragma unroll
      for (int phase = 0; phase < Taps::phases * Taps::phases; ++phase) {
        float sums[kWideRows][kTiles][4] = {};
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
          const int r = tap / kKernel, s = tap % kKernel;
          if (Taps::phase(r) * Taps::phases + Taps::phase(s) != phase) continue;
          uint32_t rows[kWideRows];
#pragma unroll
          for (int k = 0; k < kWideRows; ++k) {
            rows[k] = window_row(tiles, ring, windows[k], Taps::shift(r)) +
                      ring.column_offset(tiles, Taps::shift(s));
          }
          const int weight_tap = kTurned && Taps::phases == 1 ? kTaps - 1 - tap : tap;
          add_tap<Format>(sums, rows, weights, weight_tap, conv.source_width);
        }
#pragma unroll
        for (int k = 0; k < kWideRows; ++k) {
#pragma unroll
          for (int j = 0; j < epilogue.kPixels; ++j) {
            const int pixel = first + k * kRowTile + epilogue.pixel(j);
            const bool exists = pixel < tiles.anchors;
            const Anchor target(ld_shared_4(table + 4 * min(pixel, tiles.anchors - 1)));
#pragma unroll
            for (int tile = 0; tile < kTiles; tile += 2) {
              const int to = first_to + tile * 8 + epilogue.channel();
              epilogue.store(j, sums[k][tile], sums[k][tile + 1], bias[tile / 2], target,
                             exists && to < conv.destination_width, group_first + to, Taps::phases,
                             phase / Taps::phases, phase % Taps::phases);
            }
          }
        }
      }
    }
  }
  cp_async_wait<0>();
}

}  // namespace rnk::cuda
