#include "kernels.h"

namespace rnk::cuda {

const char* not_supported_reason(const ConvProblem& p, Element element) {
  constexpr int64_t kMostSide = 1 << 15, kMostChannels = 1 << 20, kMostImages = 1 << 29;
  constexpr int64_t kMostWidth = 192;  // whose weights fit every GPU's shared memory
  if (p.kernel_h != 3 || p.kernel_w != 3) return "kernels other than 3x3";
  if (p.stride_h != p.stride_w || p.stride_h > 2) return "strides other than 1 and 2";
  if (p.dilation_h != 1 || p.dilation_w != 1) return "dilation";
  if (p.in_channels % 8 || p.out_channels % 8) return "channel counts that are no multiple of 8";
  const int64_t in = p.in_width(), out = p.out_width();
  const bool merged = in == out && 8 % in == 0;
  if (!merged && (in % 8 || out % 8)) {
    return "groups of less than 8 channels but 1, 2 or 4, or no multiple of 8";
  }
  if (in > kMostWidth || out > kMostWidth) return "groups of more than 192 channels";
  if (element_bytes(element) == 4 && (in > 64 || out > 64)) {
    return "groups of more than 64 channels in float32";
  }
  if (p.in_h > kMostSide || p.in_w > kMostSide) return "images of more than 32768 pixels a side";
  if (p.pad_h > kMostSide || p.pad_w > kMostSide) return "padding of more than 32768 pixels";
  if (p.batch > kMostImages) return "more than 536870912 images";
  if (p.in_channels > kMostChannels || p.out_channels > kMostChannels) {
    return "more than 1048576 channels";
  }
  return nullptr;
}

}  // namespace rnk::cuda
