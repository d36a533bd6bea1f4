// What the kernels of wgrad are told, and how the weights of a convolution are dealt out.
#pragma once

#include "kernels.h"
#include "tap_conv.h"

namespace rnk::cuda {

constexpr int kWgradThreads = 256, kWgradWarps = kWgradThreads / 32;
constexpr int kWgradInputs = 16;  // input channels of a warp

// A warp sums the weights between `outputs` output and 16 input channels of a group, for all taps.
// A block has `across` warps with weights of their own: those of several groups beside each other
// where they are narrow, else of input channels of one; and twice as many where these outputs are
// an even share of the group's, so that fewer blocks read the same inputs. The other warps share
// out the pixels with these. Merged groups are seen 16 channels at a time.
struct WgradShares {
  int group_in = 0, group_out = 0;      // channels of a group, or of the 16 channels seen as one
  int groups = 0;                       // of the convolution
  int block_groups = 0;                 // groups of a block
  int group_warps = 0;                  // of `across`, for each of its groups
  int output_warps = 0;                 // times as many, with output channels of their own
  int warps = 0;                        // with weights of their own, of all these
  int output_shares = 0;                // blocks that share a group's output channels
  int input_shares = 0;                 // and its input channels
  int vectors_in = 0, vectors_out = 0;  // of 16 bytes that a block reads of a pixel
};

// Groups of 1, 2, 4 or 8 channels.
inline bool is_merged(const ConvProblem& p) {
  return p.in_width() == p.out_width() && 8 % p.in_width() == 0;
}

inline WgradShares wgrad_shares(const ConvProblem& p, int outputs, int across, int vector) {
  WgradShares s;
  s.group_in = is_merged(p) ? kWgradInputs : static_cast<int>(p.in_width());
  s.group_out = is_merged(p) ? kWgradInputs : static_cast<int>(p.out_width());
  s.groups = ceil_div(static_cast<int>(p.in_channels), s.group_in);
  const int output_tiles = ceil_div(s.group_out, outputs);
  s.output_warps = output_tiles % 2 ? 1 : 2;
  s.output_shares = output_tiles / s.output_warps;
  const int tiles = ceil_div(s.group_in, kWgradInputs);
  const bool together = output_tiles == 1 && tiles <= across / 2;
  s.block_groups = together ? across / tiles : 1;
  s.group_warps = across / s.block_groups;
  s.warps = across * s.output_warps;
  s.input_shares = together ? 1 : ceil_div(tiles, across);
  const int inputs =
      together ? s.block_groups * s.group_in : std::min(s.group_in, across * kWgradInputs);
  const int block_outputs =
      together ? s.block_groups * s.group_out : std::min(s.group_out, outputs * s.output_warps);
  s.vectors_in = ceil_div(inputs, vector), s.vectors_out = ceil_div(block_outputs, vector);
  return s;
}

// An odd number of vectors, so that eight pixels in a row lie in different banks.
inline int pixel_bytes(int vectors) { return (vectors | 1) * kVectorBytes; }

struct WgradConv : Gather {
  const unsigned char* grad = nullptr;  // grad_output
  PixelStrides grad_strides;
  float* partial = nullptr;  // [split][out_channels][tap][in_width]
  int in_channels = 0, out_channels = 0, in_width = 0, out_width = 0;
  WgradShares shares;
};

}  // namespace rnk::cuda
