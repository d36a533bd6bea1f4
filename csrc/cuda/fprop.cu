#include "tap_conv.h"

namespace rnk::cuda {

const char* fprop(const ConvProblem& p, Element element, const Images& input, const void* weight,
                  const void* bias, const Images& residual, bool relu, const MutableImages& output,
                  const Gpu& gpu, Stream stream) {
  if (const char* reason = not_supported_reason(p, element)) return reason;
  TapConv conv;
  conv.source = static_cast<const unsigned char*>(input.data);
  conv.weight = static_cast<const unsigned char*>(weight);
  conv.bias = static_cast<const unsigned char*>(bias);
  conv.residual = static_cast<const unsigned char*>(residual.data);
  conv.destination = static_cast<unsigned char*>(output.data);
  conv.source_strides = in_bytes(input.strides, element);
  conv.residual_strides = in_bytes(residual.strides, element);
  conv.destination_strides = in_bytes(output.strides, element);
  conv.images = static_cast<int>(p.batch);
  conv.source_h = static_cast<int>(p.in_h), conv.source_w = static_cast<int>(p.in_w);
  conv.source_channels = static_cast<int>(p.in_channels);
  conv.destination_h = static_cast<int>(p.out_h), conv.destination_w = static_cast<int>(p.out_w);
  conv.destination_channels = static_cast<int>(p.out_channels);
  conv.source_width = static_cast<int>(p.in_width());
  conv.destination_width = static_cast<int>(p.out_width());
  conv.pad_h = static_cast<int>(p.pad_h), conv.pad_w = static_cast<int>(p.pad_w);
  conv.relu = relu;
  conv.anchor_h = conv.destination_h, conv.anchor_w = conv.destination_w;
  const auto launch = p.stride_h == 1 ? launch_unit : launch_strided;
  return launch(conv, element, gpu, stream);
}

}  // namespace rnk::cuda
