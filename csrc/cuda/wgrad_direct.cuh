// The sums that one warp of wgrad keeps in registers in float32, without matrix instructions.
#pragma once

#include "wgrad_sums.cuh"

namespace rnk::cuda {

// 16 output by 16 input channels, in squares of 4 x 4 for all taps, a lane a square; of groups of
// less than 16 channels only the squares that a group reaches. The lanes that are left share the
// anchors.
struct DirectSums {
  static constexpr int kOutputs = 16, kAcross = 2, kVectorChannels = 4;
  static constexpr int kBlocks = 1, kClocks = 2500;
  static constexpr int kCount = kTaps * 4 * 4;
  float v[kCount] = {};
  int squares, output, input;  // squares of the warp; this lane's first vectors in it

  RNK_DEVICE explicit DirectSums(const WgradConv& conv) {
    const int lane = threadIdx.x % 32, width = conv.in_width;
    // 4 x 4 squares in the rows of a group's square; 16 channels are several such groups.
    const int across = conv.shares.group_in == kWgradInputs && width < 16 ? max(width / 4, 1) : 4;
    squares = 4 * across;
    output = lane % squares / across;
    input = output / across * across + lane % across;
  }

  template <class Format, class Taps>
  RNK_DEVICE void add(Format, const WgradOperands<Taps>& from, int first) {
    const int lane = threadIdx.x % 32;
    int at = lane / squares;
    // Eight lanes read at a time: where those are two anchors, they are four apart, whose four
    // vectors lie in different banks.
    if (squares == 4) at = at / 2 + at % 2 * 4;
#pragma unroll 1
    for (; at < kRowTile; at += 32 / squares) {
      float g[4], x[4];
      load_quad(g,
                from.grads + (first + at) * from.tiles.anchor_bytes + from.output_offset(output));
      const Window window = from.window(first + at);
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        load_quad(x, from.row(window, tap / kKernel) + from.input_offset(input) +
                         from.ring.column_offset(from.tiles, tap % kKernel));
#pragma unroll
        for (int k = 0; k < 16; ++k) v[tap * 16 + k] = fmaf(g[k / 4], x[k % 4], v[tap * 16 + k]);
      }
    }
  }

  // The sums of the lanes that shared the anchors, in a fixed order.
  RNK_DEVICE void finish() {
    for (int distance = 16; distance >= squares; distance /= 2) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) v[k] += bits_float(shfl_xor(float_bits(v[k]), distance));
    }
  }

  template <class Write>
  RNK_DEVICE void each(const Write& write) const {
    if (static_cast<int>(threadIdx.x % 32) >= squares) return;
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      float sums[kTaps][1];
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) sums[tap][0] = v[tap * 16 + k];
      write(output * 4 + k / 4, input * 4 + k % 4, sums);
    }
  }
};

}  // namespace rnk::cuda
