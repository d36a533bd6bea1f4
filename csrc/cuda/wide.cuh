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

// The weights of a block in shared memory: for each tap rows of an odd number of vectors. A row is
// one destination channel over all source channels; turned, one source channel over the block's
// destination channels.
template <int kTiles, bool kTurned>
struct WideWeights {
  uint32_t base;
  int rows, vectors;  // of a tap; of a row
  int row_bytes, tap_bytes;

  RNK_DEVICE WideWeights(const TapConv& conv, uint32_t shared)
      : base(shared),
        rows(kTurned ? conv.source_width : kTiles * 8),
        vectors(kTurned ? kTiles : conv.source_width / 8),
        row_bytes((vectors | 1) * kVectorBytes),
        tap_bytes(rows * row_bytes) {}

  // Starts copying those of destination channels `first` and further of `group`.
  RNK_DEVICE void copy(const TapConv& conv, int group, int first) const {
    const int64_t out = kTurned ? static_cast<int64_t>(group) * conv.source_width
                                : static_cast<int64_t>(group) * conv.destination_width + first;
    const int in_width = kTurned ? conv.destination_width : conv.source_width;
    const unsigned char* from = conv.weight + (out * kTaps * in_width + (kTurned ? first : 0)) * 2;
    const int left = conv.destination_width - first;
    for (int v = threadIdx.x; v < rows * kTaps * vectors; v += blockDim.x) {
      const int vector = v % vectors, tap = v / vectors % kTaps, row = v / vectors / kTaps;
      const bool exists = (kTurned ? vector * 8 : row) < left;
      const unsigned char* at = from + (row * kTaps + tap) * in_width * 2 + vector * kVectorBytes;
      cp_async_16(base + tap * tap_bytes + row * row_bytes + vector * kVectorBytes,
                  exists ? at : conv.weight, exists);
    }
  }

  // The operands of two tiles of destination channels, sums over 16 source channels from `from`.
  RNK_DEVICE void load_16(uint32_t (&b)[4], int tap, int tile, int from) const {
    const int lane = threadIdx.x % 32;
    if (kTurned) {
      ldmatrix_x4_trans(b, at(tap, from + lane % 16, tile * 8 + lane / 16 * 8));
    } else {
      ldmatrix_x4(b, at(tap, tile * 8 + lane % 8 + lane / 16 * 8, from + lane / 8 % 2 * 8));
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
  RNK_DEVICE uint32_t at(int tap, int row, int column) const {
    return base + tap * tap_bytes + row * row_bytes + column * 2;
  }
};

// Adds one tap: the pixels of `rows` by the weights of weight_tap.
template <class Format, int kTiles, bool kTurned>
RNK_DEVICE void add_tap(float (&sums)[kWideRows][kTiles][4], const uint32_t (&rows)[kWideRows],
                        const WideWeights<kTiles, kTurned>& weights, int weight_tap, int width) {
  const int lane = threadIdx.x % 32;
  int from = 0;
#pragma unroll 1
  for (; from + 16 <= width; from += 16) {
    uint32_t a[kWideRows][4], b[4];
#pragma unroll
    for (int k = 0; k < kWideRows; ++k) {
      ldmatrix_x4(a[k], rows[k] + from * 2 + lane / 16 * kVectorBytes);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      weights.load_16(b, weight_tap, tile, from);
#pragma unroll
      for (int k = 0; k < kWideRows; ++k) {
        mma_k16(Format{}, sums[k][tile], a[k], b[0], b[1]);
        mma_k16(Format{}, sums[k][tile + 1], a[k], b[2], b[3]);
      }
    }
  }
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
  const int vectors = conv.source_width / 8;
  const int64_t offset = static_cast<int64_t>(group) * conv.source_width * 2;

  const Ring<Taps> ring{shared_base(), tiles.pixel_bytes};
  const uint32_t table = ring.base + tiles.ring_bytes;
  const WideWeights<kTiles, kTurned> weights(conv, table + kMostAnchors * 4);
  const RowVectors list(tiles.columns, vectors);
  weights.copy(conv, group, first_to);
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
  for (int k = 0; k < kTiles; ++k) {
    const int channel = group_first + first_to + k * 8 + lane % 4 * 2;
    float* pair = bias[k / 2] + k % 2 * 2;
    load_bias<Format>(conv, channel, pair[0], pair[1]);
  }

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
          const int pixel = first + k * kRowTile + epilogue_pixel();
          const bool exists = pixel < tiles.anchors;
          const Anchor target(ld_shared_4(table + 4 * (exists ? pixel : 0)));
#pragma unroll
          for (int tile = 0; tile < kTiles; tile += 2) {
            const int to = first_to + tile * 8 + epilogue_channel();
            epilogue.store(sums[k][tile], sums[k][tile + 1], bias[tile / 2], target,
                           exists && to < conv.destination_width, group_first + to, Taps::phases,
                           phase / Taps::phases, phase % Taps::phases);
          }
        }
      }
    }
  }
  cp_async_wait<0>();
}

}  // namespace rnk::cuda
