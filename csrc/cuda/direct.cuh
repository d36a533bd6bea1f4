// fprop and dgrad in float32, without matrix instructions: every product and sum is IEEE float32.
//
// A thread sums four destination channels of eight anchors. The weights lie in shared memory as
// [tap][source channel of the group][destination channel], so that both operands are read 16 bytes
// at a time; groups are never mixed.
#pragma once

#include "epilogue.cuh"
#include "ring.cuh"

namespace rnk::cuda {

constexpr int kDirectThreads = 256;
constexpr int kDirectLookahead = 1;
constexpr int kDirectChannels = 32;                // destination channels of a block at the most
constexpr int kDirectQuads = kDirectChannels / 4;  // threads side by side for one anchor
constexpr int kDirectRows = 32 / kDirectQuads;     // anchors side by side in a warp
constexpr int kDirectAnchors = 8;                  // of a thread

// The kinds of blocks: some groups beside each other, or, of wider ones, a share of the destination
// channels of one.
struct DirectConv : TapConv {
  int block_groups = 0, shares = 0;
};

// Copies the weights of destination channels [first_to, end_to) to shared memory, for the order of
// the taps' shifts; zeros for what there is not.
RNK_DEVICE void copy_direct_weights(const DirectConv& conv, int first_to, int end_to,
                                    bool reversible, uint32_t shared) {
  const int from_width = conv.source_width, to_width = conv.destination_width;
  for (int v = threadIdx.x; v < kTaps * from_width * kDirectChannels; v += blockDim.x) {
    const int to = first_to + v % kDirectChannels, from = v / kDirectChannels % from_width;
    const int tap = v / kDirectChannels / from_width;
    const bool exists = to < min(end_to, conv.destination_channels);
    const int weight_tap = conv.turned && reversible ? kTaps - 1 - tap : tap;
    // Weights are [out][tap][in], and the source channels are `out` where they are turned.
    const int64_t out = conv.turned ? static_cast<int64_t>(to) / to_width * from_width + from : to;
    const int in = conv.turned ? to % to_width : from;
    const int in_width = conv.turned ? to_width : from_width;
    const int64_t at = (out * kTaps + weight_tap) * in_width + in;
    st_shared_4(shared + v * 4, exists ? ld_global_4(conv.weight + at * 4) : 0);
  }
}

// kWidth: channels of a group, 1 or 2, or 4 for any multiple of 4.
template <class Taps, int kWidth>
RNK_KERNEL(kDirectThreads, 1)
direct_kernel(const DirectConv conv) {
  const Tiles& tiles = conv.tiles;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int lanes = gridDim.x / conv.channel_blocks;
  const int channel_block = blockIdx.x % conv.channel_blocks;
  const int first_group = channel_block / conv.shares * conv.block_groups;
  const int share = channel_block % conv.shares * kDirectChannels;
  const int first_from = first_group * conv.source_width;
  const int first_to = first_group * conv.destination_width + share;
  const int end_to =
      min(first_to + kDirectChannels, (first_group + conv.block_groups) * conv.destination_width);
  const int vectors = conv.block_groups * conv.source_width / 4;
  const int present = min(vectors, (conv.source_channels - first_from) / 4);

  const Ring<Taps> ring{shared_base(), tiles.pixel_bytes};
  const uint32_t table = ring.base + tiles.ring_bytes;
  const uint32_t weights = table + kMostAnchors * 4;
  const RowVectors list(tiles.columns, vectors, Taps::step);
  Walk<Taps> ahead(conv, blockIdx.x / conv.channel_blocks), now = ahead;
#pragma unroll
  for (int k = 0; k < kDirectLookahead; ++k) {
    if (!ahead.at_end(conv)) load_rows(conv, ring, list, ahead, first_from * 4, present, false);
    ahead.next(conv, lanes);
    cp_async_commit();
  }
  write_anchors(tiles, table);
  copy_direct_weights(conv, first_to, end_to, Taps::phases == 1, weights);

  // This thread's four destination channels and the first source channel of their group.
  const int quad = lane % kDirectQuads * 4, channel = first_to + quad;
  const int group = min((share + quad) / conv.destination_width, conv.block_groups - 1);
  const int from = kWidth == 4 ? group * conv.source_width * 4 : quad * 4;
  const bool used = channel < min(end_to, conv.destination_channels);
  const int source_quads = kWidth == 4 ? conv.source_width / 4 : 1;
  float bias[4] = {};
  if (conv.bias && used) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      bias[j] = bits_float(ld_global_4(conv.bias + (channel + j) * 4));
    }
  }

  for (; !now.at_end(conv); now.next(conv, lanes)) {
    cp_async_wait<kDirectLookahead - 1>();
    sync_threads();
    if (!ahead.at_end(conv)) load_rows(conv, ring, list, ahead, first_from * 4, present, false);
    ahead.next(conv, lanes);
    cp_async_commit();
    const Epilogue<F32> epilogue(conv, now);
    constexpr int kWarpAnchors = kDirectRows * kDirectAnchors;
    for (int first = warp * kWarpAnchors; first < tiles.anchors;
         first += kDirectThreads / 32 * kWarpAnchors) {
      Window windows[kDirectAnchors];
#pragma unroll
      for (int k = 0; k < kDirectAnchors; ++k) {
        const int at = min(first + k * kDirectRows + lane / kDirectQuads, tiles.anchors - 1);
        windows[k] = window_of(tiles, ring, now.slot, Anchor(ld_shared_4(table + 4 * at)));
      }
#pragma unroll 1
      for (int phase = 0; phase < Taps::phases * Taps::phases; ++phase) {
        float sums[kDirectAnchors][4] = {};
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
          const int r = tap / kKernel, s = tap % kKernel;
          if (Taps::phase(r) * Taps::phases + Taps::phase(s) != phase) continue;
          uint32_t rows[kDirectAnchors];
#pragma unroll
          for (int k = 0; k < kDirectAnchors; ++k) {
            rows[k] = window_row(tiles, ring, windows[k], Taps::shift(r)) +
                      ring.column_offset(tiles, Taps::shift(s)) + from;
          }
          uint32_t weight = weights + (tap * conv.source_width * kDirectChannels + quad) * 4;
#pragma unroll 1
          for (int q = 0; q < source_quads; ++q) {
            float x[kDirectAnchors][4];
#pragma unroll
            for (int k = 0; k < kDirectAnchors; ++k) load_quad(x[k], rows[k] + q * kVectorBytes);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
              float w[4];
              load_quad(w, weight);
              weight += kDirectChannels * 4;
#pragma unroll
              for (int k = 0; k < kDirectAnchors; ++k) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                  sums[k][j] = fmaf(x[k][j / kWidth * kWidth + i], w[j], sums[k][j]);
                }
              }
            }
          }
        }
#pragma unroll
        for (int k = 0; k < kDirectAnchors; ++k) {
          const int at = first + k * kDirectRows + lane / kDirectQuads;
          const bool exists = at < tiles.anchors && used;
          const Anchor anchor(ld_shared_4(table + 4 * min(at, tiles.anchors - 1)));
          epilogue.store_quad(sums[k], bias, anchor, exists, channel, Taps::phases,
                              phase / Taps::phases, phase % Taps::phases);
        }
      }
    }
  }
  cp_async_wait<0>();
}

}  // namespace rnk::cuda
