// The plain description of one grouped convolution that every kernel takes.
#pragma once

#include <cstdint>

namespace rnk {

struct ConvProblem {
  int64_t batch = 0;
  int64_t in_channels = 0, in_h = 0, in_w = 0;
  int64_t out_channels = 0, out_h = 0, out_w = 0;
  int64_t kernel_h = 0, kernel_w = 0;
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_h = 0, pad_w = 0;
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t groups = 1;

  int64_t in_width() const { return in_channels / groups; }  // channels of one group
  int64_t out_width() const { return out_channels / groups; }
  int64_t taps() const { return kernel_h * kernel_w; }
};

// Where the pixels of an NHWC tensor lie; the channels of a pixel are side by side.
struct PixelStrides {
  int64_t n = 0, h = 0, w = 0;  // in elements
};

}  // namespace rnk
