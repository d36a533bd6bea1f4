// fprop and dgrad of groups of 1, 2, 4, 8, 16 or 32 channels: the weights stay in registers.
//
// A block owns a few channels of each pixel and their weights for its whole life, and walks over
// strips of images. Global memory is read once into the ring of rows and written once; a matrix
// instruction multiplies 16 pixels by the weights of one tap. Groups of less than 8 channels are
// merged: the zeros of the block diagonal cost arithmetic that is free at the memory's speed, but
// are multiplied too, so a NaN or infinity reaches all channels of its eight.
#pragma once

#include "epilogue.cuh"
#include "ring.cuh"

namespace rnk::cuda {

// The shape of a kernel. `width`: channels of a group, or 8, in which groups of up to 8 channels
// lie side by side. An instruction sums over 32 bytes of them, or 16 where there are no more;
// `steps` make a group. A warp has `tiles` * 8 destination channels of the block's `channels`;
// `blocks` fit a multiprocessor.
template <class Format, int width_, int tiles_, int channels_, int threads_, int blocks_>
struct Narrow {
  static constexpr int bytes = Format::bytes, width = width_, tiles = tiles_;
  static constexpr int channels = channels_, threads = threads_, blocks = blocks_;
  static constexpr bool merged = width * bytes == kVectorBytes;
  static constexpr int steps = merged ? 1 : width * bytes / 32;
  static constexpr int warp_channels = tiles * 8;
  static constexpr int across = channels / warp_channels;  // warps with channels of their own
  static constexpr int along = threads / 32 / across;      // warps that share the pixels
  static constexpr int vectors = channels * bytes / kVectorBytes;
  static constexpr int pixel_bytes = (vectors | 1) * kVectorBytes;
  // Weights of an output channel on their way to the registers: an odd number of vectors.
  static constexpr int weight_vectors = kTaps * width * bytes / kVectorBytes;
  static constexpr int weight_pitch = (weight_vectors | 1) * kVectorBytes;
  static constexpr int weight_bytes = channels * weight_pitch;
  static_assert(tiles % 2 == 0 && along > 0 && (!merged || tiles == 2));
};

// The weights that one warp multiplies by, as operands of its matrix instructions.
template <class Format, class Shape>
struct NarrowWeights {
  static constexpr int kHalves = Shape::merged ? 1 : 2;
  uint32_t b[kTaps][Shape::steps][Shape::tiles][kHalves];

  // Starts copying the weights of the block's channels, from `first` on, to `shared`: rows of
  // weight_pitch bytes, or, where the width is not a constant, as they lie.
  RNK_DEVICE static void copy(const TapConv& conv, int first, uint32_t shared) {
    const int channels = min(Shape::channels, conv.source_channels - first);
    const int row_bytes = kTaps * conv.source_width * Shape::bytes;
    const unsigned char* weights = conv.weight + static_cast<int64_t>(first) * row_bytes;
    for (int v = threadIdx.x; v < channels * row_bytes / kVectorBytes; v += blockDim.x) {
      const int row = Shape::merged ? 0 : v / Shape::weight_vectors;
      const int pad = row * (Shape::weight_pitch - Shape::weight_vectors * kVectorBytes);
      cp_async_16(shared + v * kVectorBytes + pad, weights + v * kVectorBytes, true);
    }
  }

  // Takes the weights to registers, in the order of the taps' shifts: for the warp's destination
  // channels, `across` beyond the block's first.
  RNK_DEVICE void load(const TapConv& conv, int across, uint32_t shared, bool reversed) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      const int weight_tap = reversed ? kTaps - 1 - tap : tap;
#pragma unroll
      for (int step = 0; step < Shape::steps; ++step) {
#pragma unroll
        for (int tile = 0; tile < Shape::tiles; tile += 2) {
          if constexpr (Shape::bytes == 4) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              b[tap][step][tile + k / 2][k % 2] =
                  rounded(conv, shared, across + tile * 8, k / 2, step * 8 + k % 2 * 4, weight_tap);
            }
          } else if constexpr (Shape::merged) {
            b[tap][step][tile][0] = merged(conv, shared, across + tile * 8, weight_tap);
            b[tap][step][tile + 1][0] = merged(conv, shared, across + tile * 8 + 8, weight_tap);
          } else {
            // Matrices: sums over channels 0-7 and 8-15 for one tile, then for the next. Rows are
            // output channels, which are what dgrad sums over.
            const int to = across + tile * 8,
                      from = across / Shape::width * Shape::width + step * 16;
            uint32_t r[4];
            if (conv.turned) {
              const int row = from + lane % 16, column = to % Shape::width + lane / 16 * 8;
              ldmatrix_x4_trans(r, at(shared, row, weight_tap, column));
            } else {
              const int row = to + lane % 8 + lane / 16 * 8;
              ldmatrix_x4(r, at(shared, row, weight_tap, step * 16 + lane / 8 % 2 * 8));
            }
            b[tap][step][tile][0] = r[0], b[tap][step][tile][1] = r[1];
            b[tap][step][tile + 1][0] = r[2], b[tap][step][tile + 1][1] = r[3];
          }
        }
      }
    }
  }

 private:
  RNK_DEVICE static uint32_t at(uint32_t shared, int row, int tap, int column) {
    return shared + row * Shape::weight_pitch + (tap * Shape::width + column) * Shape::bytes;
  }

  // The weight of a tap in TF32 that this lane multiplies by: for its column of tile `tile` of the
  // 16 channels from `first` on, from its row of the four source channels of a group from `from`
  // on.
  RNK_DEVICE static uint32_t rounded(const TapConv& conv, uint32_t shared, int first, int tile,
                                     int from, int tap) {
    const int lane = threadIdx.x % 32;
    const int to = first + tile_channel<Format>(tile, lane / 4);
    const int source = from + lane % 4;
    const int row = conv.turned ? to / Shape::width * Shape::width + source : to;
    return to_tf32(ld_shared_4(at(shared, row, tap, conv.turned ? to % Shape::width : source)));
  }

  // The weights of a tap among 8 channels of the block, those of the block diagonal. Where the
  // block has fewer channels, what lies in shared memory multiplies zeros, and is never stored.
  RNK_DEVICE static uint32_t merged(const TapConv& conv, uint32_t shared, int first, int tap) {
    const int lane = threadIdx.x % 32, width = conv.source_width;  // a power of 2
    const int o = first + lane / 4, i = first + lane % 4 * 2;
    const int at = (o * kTaps + tap) * width + (i & (width - 1));
    // In rows of one weight the pair (i, i + 1) holds that of o, whichever of them it is.
    const bool diagonal = ((o ^ i) & -max(width, 2)) == 0;
    uint32_t v = ld_shared_4(shared + (at & -2) * 2);
    if (width == 1) v = (at % 2 ? v >> 16 : v & 0xffff) << o % 2 * 16;
    v = diagonal ? v : 0;
    return conv.turned ? movmatrix_trans(v) : v;
  }
};

template <class Format, class Taps, class Shape>
RNK_KERNEL(Shape::threads, Shape::blocks)
narrow_kernel(const TapConv conv) {
  constexpr int kLookahead = 2;
  const Tiles& tiles = conv.tiles;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int channel_block = blockIdx.x % conv.channel_blocks * Shape::channels;
  const int lanes = gridDim.x / conv.channel_blocks;
  const int across = warp % Shape::across * Shape::warp_channels, along = warp / Shape::across;

  const Ring<Taps> ring{shared_base() + Shape::weight_bytes, Shape::pixel_bytes};
  const uint32_t table = ring.base + tiles.ring_bytes;
  const RowVectors list(tiles.columns, Shape::vectors, Taps::step);
  const int present = (conv.source_channels - channel_block) * Format::bytes / kVectorBytes;
  const int offset = channel_block * Format::bytes;
  NarrowWeights<Format, Shape>::copy(conv, channel_block, shared_base());
  cp_async_commit();
  Walk<Taps> ahead(conv, blockIdx.x / conv.channel_blocks), now = ahead;
#pragma unroll
  for (int k = 0; k < kLookahead; ++k) {
    if (!ahead.at_end(conv)) {
      load_rows(conv, ring, list, ahead, offset, present, false);
    }
    ahead.next(conv, lanes);
    cp_async_commit();
  }
  write_anchors(tiles, table);
  cp_async_wait<kLookahead>();
  sync_threads();
  NarrowWeights<Format, Shape> weights;
  weights.load(conv, across, shared_base(), conv.turned && Taps::phases == 1);
  float bias[Shape::tiles / 2][4];
#pragma unroll
  for (int k = 0; k < Shape::tiles / 2; ++k) {
    load_bias<Format>(conv, channel_block + across + k * 16, bias[k]);
  }
  // This lane's row of a 16 x 16 operand: pixel lane % 16, vector lane / 16.
  const int operand =
      across / Shape::width * Shape::width * Format::bytes + lane / 16 * kVectorBytes;

  for (; !now.at_end(conv); now.next(conv, lanes)) {
    cp_async_wait<kLookahead - 1>();
    sync_threads();
    if (!ahead.at_end(conv)) {
      load_rows(conv, ring, list, ahead, offset, present, false);
    }
    ahead.next(conv, lanes);
    cp_async_commit();
    const Epilogue<Format> epilogue(conv, now);
    for (int first = along * kRowTile; first < tiles.anchors; first += Shape::along * kRowTile) {
      const Anchor anchor(ld_shared_4(table + 4 * min(first + lane % 16, tiles.anchors - 1)));
      const Window window = window_of(tiles, ring, now.slot, anchor);
      float sums[Taps::phases][Taps::phases][Shape::tiles][4] = {};
#pragma unroll
      for (int r = 0; r < Taps::window; ++r) {
        const uint32_t row = window_row(tiles, ring, window, r) + operand;
#pragma unroll
        for (int s = 0; s < Taps::window; ++s) {
#pragma unroll
          for (int step = 0; step < Shape::steps; ++step) {
            uint32_t a[4];
            ldmatrix_x4(a, row + ring.column_offset(tiles, s) + step * 32);
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) {
              if (Taps::shift(tap / kKernel) != r || Taps::shift(tap % kKernel) != s) continue;
              auto& sum = sums[Taps::phase(tap / kKernel)][Taps::phase(tap % kKernel)];
#pragma unroll
              for (int tile = 0; tile < Shape::tiles; ++tile) {
                const auto& b = weights.b[tap][step][tile];
                if constexpr (Shape::merged) {
                  mma_k8(Format{}, sum[tile], a[2 * tile], a[2 * tile + 1], b[0]);
                } else {
                  mma_32_bytes<Format>(sum[tile], a, b[0], b[1]);
                }
              }
            }
          }
        }
      }
      const int channel = channel_block + across + epilogue.channel();
#pragma unroll
      for (int k = 0; k < epilogue.kPixels; ++k) {
        const int pixel = first + epilogue.pixel(k);
        const bool exists = pixel < tiles.anchors;
        const Anchor target(ld_shared_4(table + 4 * min(pixel, tiles.anchors - 1)));
#pragma unroll
        for (int h = 0; h < Taps::phases; ++h) {
#pragma unroll
          for (int w = 0; w < Taps::phases; ++w) {
#pragma unroll
            for (int tile = 0; tile < Shape::tiles; tile += 2) {
              epilogue.store(k, sums[h][w][tile], sums[h][w][tile + 1], bias[tile / 2], target,
                             exists, channel + tile * 8, Taps::phases, h, w);
            }
          }
        }
      }
    }
  }
  cp_async_wait<0>();
}

}  // namespace rnk::cuda
