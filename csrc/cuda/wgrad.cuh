// wgrad: the sum over all pixels of grad_output times the input at each tap.
//
// The pixels are what a matrix instruction sums over: 16 anchors of a chunk, their gradients read
// transposed, and for each tap the input pixels the tap meets. The sums of all taps stay in
// registers while the block walks over its strips, so each operand is read from memory once. At
// the end each block writes its sums; `sum_kernel` adds those of all blocks in a fixed order, so
// that the same call gives the same bits.
#pragma once

#include <type_traits>

#include "wgrad_direct.cuh"
#include "wgrad_sums.cuh"

namespace rnk::cuda {

// Writes those of a warp's sums that are weights; `out`, `in`: its first channels in `group`.
template <class Sums>
RNK_DEVICE void write_partial(const WgradConv& conv, const Sums& sums, int group, int out, int in,
                              float* partial) {
  const WgradShares& shares = conv.shares;
  const bool merged = conv.in_width != shares.group_in;
  sums.each([&](int o, int i, const auto& taps) {
    const int to = group * shares.group_out + out + o, from = group * shares.group_in + in + i;
    if (out + o >= shares.group_out || in + i >= shares.group_in) return;
    if (to >= conv.out_channels) return;
    int column = in + i;
    if (merged) {  // widths are powers of 2
      if ((to ^ from) & -conv.in_width) return;
      column = from & (conv.in_width - 1);
    }
    float* at = partial + static_cast<int64_t>(to) * kTaps * conv.in_width + column;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      float* weight = at + tap * conv.in_width;
      if constexpr (sizeof(taps[tap]) == 2 * sizeof(float)) {
        st_global_8(weight, float_bits(taps[tap][0]), float_bits(taps[tap][1]));
      } else {
        st_global_4(weight, float_bits(taps[tap][0]));
      }
    }
  });
}

template <class Format, class Taps, class Sums>
RNK_KERNEL(kWgradThreads, Sums::kBlocks)
wgrad_kernel(const WgradConv conv) {
  constexpr int kLookahead = 2;
  constexpr int kElementBytes = kVectorBytes / Sums::kVectorChannels;
  const Tiles& tiles = conv.tiles;
  const WgradShares& shares = conv.shares;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int across = warp % shares.warps, along = warp / shares.warps;
  const int sharers = kWgradWarps / shares.warps;  // of the pixels
  const int lanes = gridDim.x / conv.channel_blocks;

  const int channel_block = blockIdx.x % conv.channel_blocks;
  const int input_share = channel_block % shares.input_shares;
  const int output_share = channel_block / shares.input_shares % shares.output_shares;
  const int first_group =
      channel_block / shares.input_shares / shares.output_shares * shares.block_groups;
  const int first_in = first_group * shares.group_in + input_share * Sums::kAcross * kWgradInputs;
  const int share_out = output_share * shares.output_warps * Sums::kOutputs;
  const int first_out = first_group * shares.group_out + share_out;
  const int present_in = (conv.in_channels - first_in) / Sums::kVectorChannels;
  const int present_out = (conv.out_channels - first_out) / Sums::kVectorChannels;
  // This warp's channels, from the first of the block.
  const int group = across % Sums::kAcross / shares.group_warps;
  const int in = group * shares.group_in + across % shares.group_warps * kWgradInputs;
  const int out = group * shares.group_out + across / Sums::kAcross * Sums::kOutputs;

  const int grad_bytes = tiles.anchor_bytes;
  const Ring<Taps> ring{shared_base(), tiles.pixel_bytes};
  const uint32_t grads = ring.base + tiles.ring_bytes;
  const uint32_t table = grads + (kLookahead + 1) * tiles.stage_bytes;
  const RowVectors in_list(tiles.columns, shares.vectors_in, Taps::step);
  const RowVectors out_list(tiles.strip_w, shares.vectors_out, 1);
  const auto load = [&](const Walk<Taps>& walk, int stage) {
    load_rows(conv, ring, in_list, walk, first_in * kElementBytes, present_in, true);
    const int top = walk.row + walk.chunk * tiles.chunk_h;
    const unsigned char* pixels = out_list.first(
        0,
        conv.grad + conv.grad_strides.n * walk.image + top * conv.grad_strides.h +
            walk.column * conv.grad_strides.w + static_cast<int64_t>(first_out) * kElementBytes,
        conv.grad_strides);
    for (int k = 0; k < tiles.images; ++k, pixels += conv.grad_strides.n) {
      const bool exists = k < walk.images && out_list.vector() < present_out;
      const int rows = exists ? walk.rows - walk.chunk * tiles.chunk_h : 0;
      const int columns = conv.anchor_w - walk.column;
      const int first = k * tiles.chunk_h * tiles.strip_w;
      const uint32_t base =
          grads + stage * tiles.stage_bytes + first * grad_bytes + out_list.vector() * kVectorBytes;
      out_list.each(0, tiles.chunk_h, pixels, conv.grad_strides,
                    [&](int row, int column, const unsigned char* pixel) {
                      cp_async_16(base + (row * tiles.strip_w + column) * grad_bytes, pixel,
                                  row < rows && column < columns);
                    });
    }
  };

  Walk<Taps> ahead(conv, blockIdx.x / conv.channel_blocks), now = ahead;
  int stage = 0;
#pragma unroll
  for (int k = 0; k < kLookahead; ++k) {
    if (!ahead.at_end(conv)) load(ahead, k);
    ahead.next(conv, lanes);
    cp_async_commit();
  }
  write_anchors(tiles, table);
  // The anchors that fill up the last 16 are zeros for good.
  for (int k = 0; k <= kLookahead; ++k) {
    const uint32_t end = grads + (k + 1) * tiles.stage_bytes;
    for (uint32_t p = grads + k * tiles.stage_bytes + tiles.anchors * grad_bytes +
                      threadIdx.x * kVectorBytes;
         p < end; p += blockDim.x * kVectorBytes) {
      st_shared_16(p, Vec16{});
    }
  }
  Sums sums(conv);

  for (; !now.at_end(conv); now.next(conv, lanes)) {
    cp_async_wait<kLookahead - 1>();
    sync_threads();
    if (!ahead.at_end(conv)) load(ahead, stage ? stage - 1 : kLookahead);
    ahead.next(conv, lanes);
    cp_async_commit();
    const WgradOperands<Taps> operands{tiles,
                                       ring,
                                       grads + stage * tiles.stage_bytes,
                                       out / Sums::kVectorChannels,
                                       in / Sums::kVectorChannels,
                                       shares.vectors_out - 1,
                                       shares.vectors_in - 1,
                                       table,
                                       now.slot};
    for (int first = along * kRowTile; first < tiles.anchors; first += sharers * kRowTile) {
      sums.add(Format{}, operands, first);
    }
    stage = stage == kLookahead ? 0 : stage + 1;
  }
  cp_async_wait<0>();

  sums.finish();
  // The sums of the warps that shared the pixels, through shared memory, in their order.
  constexpr int kStride = 32 * 4;
  const uint32_t exchange = ring.base + across * Sums::kCount * kStride + lane * 4;
  for (int giver = sharers - 1; giver; --giver) {
    sync_threads();
    if (along == giver) {
#pragma unroll
      for (int k = 0; k < Sums::kCount; ++k) {
        st_shared_4(exchange + k * kStride, float_bits(sums.v[k]));
      }
    }
    sync_threads();
    if (along == giver - 1) {
#pragma unroll
      for (int k = 0; k < Sums::kCount; ++k) {
        sums.v[k] += bits_float(ld_shared_4(exchange + k * kStride));
      }
    }
  }
  if (along) return;
  const int64_t split = blockIdx.x / conv.channel_blocks;
  write_partial(conv, sums, first_group + group, share_out + out - group * shares.group_out,
                input_share * Sums::kAcross * kWgradInputs + in - group * shares.group_in,
                conv.partial + split * conv.out_channels * kTaps * conv.in_width);
}

constexpr int kSumThreads = 256;
constexpr int kSumVector = 4;  // weights of a thread
constexpr int kSumLanes = 8;

struct SumSplits {
  const float* partial = nullptr;  // [splits][weights]
  unsigned char* sum = nullptr;    // [weights]
  int64_t weights = 0;             // a multiple of kSumVector
  int splits = 0;
};

// The threads that share the splits of their weights: of few splits one takes all, since wide
// groups have few, but so many weights that more threads would cost more than the loads.
inline int sum_lanes(int splits) { return splits < 2 * kSumLanes ? 1 : kSumLanes; }

// Adds the partial sums of all splits: those of each of kLanes threads, then theirs in their order.
template <class Format, int kLanes>
RNK_KERNEL(kSumThreads, 4)
sum_kernel(const SumSplits task) {
  constexpr int kColumns = kSumThreads / kLanes;
  const int lane = threadIdx.x / kColumns, column = threadIdx.x % kColumns;
  const int64_t weight = (static_cast<int64_t>(blockIdx.x) * kColumns + column) * kSumVector;
  float sums[kSumVector] = {};
  const auto add = [&](const Vec16& part) {
#pragma unroll
    for (int j = 0; j < kSumVector; ++j) sums[j] += bits_float(part.x[j]);
  };
  if (weight < task.weights) {
#pragma unroll 4
    for (int split = lane; split < task.splits; split += kLanes) {
      add(ld_global_16(task.partial + split * task.weights + weight));
    }
  }
  const auto bits = [&] {
    return Vec16{float_bits(sums[0]), float_bits(sums[1]), float_bits(sums[2]),
                 float_bits(sums[3])};
  };
  if constexpr (kLanes > 1) {
    const uint32_t mine = shared_base() + threadIdx.x * kVectorBytes;
    st_shared_16(mine, bits());
    sync_threads();
    if (lane) return;
#pragma unroll
    for (int k = 1; k < kLanes; ++k) add(ld_shared_16(mine + k * kColumns * kVectorBytes));
  }
  if (weight >= task.weights) return;
  if constexpr (std::is_same_v<Format, F32>) {
    st_global_16(task.sum + weight * 4, bits());
  } else {
    st_global_8(task.sum + weight * 2, pack(Format{}, sums[0], sums[1]),
                pack(Format{}, sums[2], sums[3]));
  }
}

}  // namespace rnk::cuda
