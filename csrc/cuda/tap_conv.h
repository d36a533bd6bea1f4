// What the kernels of fprop and dgrad are told, and the launchers of each kind of taps (taps.cuh),
// which are compiled in files of their own.
#pragma once

#include "kernels.h"
#include "tiles.h"

namespace rnk::cuda {

// The images that a kernel gathers windows of pixels from, and its share of them. A launch has
// `channel_blocks` kinds of blocks, each with channels of its own; the blocks of a kind share the
// strips of all images. All strides are in bytes.
struct Gather {
  const unsigned char* source = nullptr;
  PixelStrides source_strides;
  int source_h = 0, source_w = 0;
  int pad_h = 0, pad_w = 0;        // see taps.cuh
  int anchor_h = 0, anchor_w = 0;  // of an image
  int images = 0;
  int units = 0;  // strips of all images
  int channel_blocks = 0;
  Tiles tiles;
};

struct TapConv : Gather {
  const unsigned char* weight = nullptr;    // [out_channels][tap][in_width]
  const unsigned char* bias = nullptr;      // may be absent
  const unsigned char* residual = nullptr;  // may be absent
  unsigned char* destination = nullptr;
  PixelStrides residual_strides, destination_strides;
  int destination_h = 0, destination_w = 0;
  int source_channels = 0, destination_channels = 0;
  int source_width = 0, destination_width = 0;  // channels of a group
  int shift_h = 0, shift_w = 0;  // destination row of an anchor: phases * i + phase - shift
  bool turned = false;           // dgrad: sums over the weights' out_channels
  bool relu = false;
};

// Strides of pixels in bytes.
inline PixelStrides in_bytes(const PixelStrides& s, Element element) {
  const int bytes = element_bytes(element);
  return {s.n * bytes, s.h * bytes, s.w * bytes};
}

// As the functions of kernels.h.
const char* launch_unit(const TapConv& conv, Element element, const Gpu& gpu, Stream stream);
const char* launch_strided(const TapConv& conv, Element element, const Gpu& gpu, Stream stream);
const char* launch_phased(const TapConv& conv, Element element, const Gpu& gpu, Stream stream);

}  // namespace rnk::cuda
