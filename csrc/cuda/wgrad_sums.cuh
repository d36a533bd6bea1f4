// The sums that one warp of wgrad keeps in registers, and the instructions that add to them.
#pragma once

#include "ring.cuh"
#include "wgrad_conv.h"

namespace rnk::cuda {

// Where the operands of 16 anchors lie: those of the warp's channels.
template <class Taps>
struct WgradOperands {
  const Tiles& tiles;
  Ring<Taps> ring;
  uint32_t grads;               // of the chunk's first anchor
  int output, input;            // the warp's first vectors of a pixel
  int last_output, last_input;  // the block's last ones; what lies beyond is never used
  uint32_t table;
  int slot;  // of the chunk's first source row

  RNK_DEVICE Window window(int anchor) const {
    const Anchor at(ld_shared_4(table + 4 * min(anchor, tiles.anchors - 1)));
    return window_of(tiles, ring, slot, at);
  }
  RNK_DEVICE uint32_t row(const Window& window, int r) const {
    return window_row(tiles, ring, window, r);
  }
  // The bytes from a pixel to a vector beyond the warp's first.
  RNK_DEVICE int output_offset(int vector) const {
    return min(output + vector, last_output) * kVectorBytes;
  }
  RNK_DEVICE int input_offset(int vector) const {
    return min(input + vector, last_input) * kVectorBytes;
  }
};

// Groups of 16 or more channels: kRows * 16 output by 16 input channels. An instruction takes 16
// outputs by 8 inputs at one tap.
template <int kRows, int kAcross_>
struct GroupSums {
  static constexpr int kOutputs = kRows * 16, kAcross = kAcross_, kVectorChannels = 8;
  static constexpr int kBlocks = 1;                  // on a multiprocessor
  static constexpr int kClocks = 150 * (kRows + 1);  // of 16 anchors, two warps on each scheduler
  static constexpr int kCount = kTaps * kRows * 2 * 4;
  float v[kCount] = {};

  RNK_DEVICE explicit GroupSums(const WgradConv&) {}
  RNK_DEVICE void finish() {}

  template <class Format, class Taps>
  RNK_DEVICE void add(Format, const WgradOperands<Taps>& from, int first) {
    // Matrices: outputs 0-7 and 8-15 of pixels 0-7, then of pixels 8-15.
    const int lane = threadIdx.x % 32;
    const int grad_pixel = first + lane % 8 + lane / 16 * 8;
    uint32_t a[kRows][4];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      ldmatrix_x4_trans(a[k], from.grads + grad_pixel * from.tiles.anchor_bytes +
                                  from.output_offset(k * 2 + lane / 8 % 2));
    }
    const Window window = from.window(first + lane % 16);
#pragma unroll
    for (int r = 0; r < kKernel; ++r) {
      const uint32_t row = from.row(window, r) + from.input_offset(lane / 16);
#pragma unroll
      for (int s = 0; s < kKernel; ++s) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, row + from.ring.column_offset(from.tiles, s));
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          float* sum = v + ((r * kKernel + s) * kRows + k) * 8;
          mma_k16(Format{}, sum, a[k], b[0], b[1]);
          mma_k16(Format{}, sum + 4, a[k], b[2], b[3]);
        }
      }
    }
  }

  // Calls write(output, input, sums of all taps), for that input channel and the next; channels
  // from the warp's first ones.
  template <class Write>
  RNK_DEVICE void each(const Write& write) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kRows * 8; k += 2) {
      const int row = k / 8, tile = k / 4 % 2, half = k / 2 % 2;
      float sums[kTaps][2];
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        sums[tap][0] = v[tap * kRows * 8 + k], sums[tap][1] = v[tap * kRows * 8 + k + 1];
      }
      write(row * 16 + half * 8 + lane / 4, tile * 8 + lane % 4 * 2, sums);
    }
  }
};

// Groups of up to 8 channels: the diagonal 8 x 8 blocks of 16 output and 16 input channels. An
// instruction takes 8 inputs at two taps by 8 outputs, so that none of its rows is for nothing.
struct MergedSums {
  static constexpr int kOutputs = 16, kAcross = 4, kVectorChannels = 8;
  static constexpr int kBlocks = 2, kClocks = 250;
  static constexpr int kPairs = (kTaps + 1) / 2;
  static constexpr int kCount = kPairs * 2 * 4;
  float v[kCount] = {};

  RNK_DEVICE explicit MergedSums(const WgradConv&) {}
  RNK_DEVICE void finish() {}

  template <class Format, class Taps>
  RNK_DEVICE void add(Format, const WgradOperands<Taps>& from, int first) {
    const int lane = threadIdx.x % 32;
    uint32_t b[4];
    ldmatrix_x4_trans(b, from.grads + (first + lane % 16) * from.tiles.anchor_bytes +
                             from.output_offset(lane / 16));
    // Matrices: the first and the second tap of pixels 0-7, then of pixels 8-15.
    const Window window = from.window(first + lane % 8 + lane / 16 * 8);
    const uint32_t rows[kKernel] = {from.row(window, 0), from.row(window, 1), from.row(window, 2)};
    const bool second = lane / 8 % 2;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int one = 2 * pair, two = one + 1 < kTaps ? one + 1 : one;
      const uint32_t at_one =
          rows[one / kKernel] + from.ring.column_offset(from.tiles, one % kKernel);
      const uint32_t at_two =
          rows[two / kKernel] + from.ring.column_offset(from.tiles, two % kKernel);
      const uint32_t at = second ? at_two : at_one;
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        uint32_t a[4];
        ldmatrix_x4_trans(a, at + from.input_offset(block));
        mma_k16(Format{}, v + (pair * 2 + block) * 4, a, b[block * 2], b[block * 2 + 1]);
      }
    }
  }

  template <class Write>
  RNK_DEVICE void each(const Write& write) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int block = k / 2, output = block * 8 + lane % 4 * 2 + k % 2;
      float sums[kTaps][1];
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        sums[tap][0] = v[tap / 2 * 8 + block * 4 + tap % 2 * 2 + k % 2];
      }
      write(output, block * 8 + lane / 4, sums);
    }
  }
};

}  // namespace rnk::cuda
