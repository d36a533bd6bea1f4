#include "tap_conv.h"

namespace rnk::cuda {

const char* dgrad(const ConvProblem& p, Element element, const Images& grad_output,
                  const void* weight, const MutableImages& grad_input, const Gpu& gpu,
                  Stream stream) {
  if (const char* reason = not_supported_reason(p, element)) return reason;
  TapConv conv;
  conv.source = static_cast<const unsigned char*>(grad_output.data);
  conv.weight = static_cast<const unsigned char*>(weight);
  conv.destination = static_cast<unsigned char*>(grad_input.data);
  conv.source_strides = in_bytes(grad_output.strides, element);
  conv.destination_strides = in_bytes(grad_input.strides, element);
  conv.images = static_cast<int>(p.batch);
  conv.source_h = static_cast<int>(p.out_h), conv.source_w = static_cast<int>(p.out_w);
  conv.source_channels = static_cast<int>(p.out_channels);
  conv.destination_h = static_cast<int>(p.in_h), conv.destination_w = static_cast<int>(p.in_w);
  conv.destination_channels = static_cast<int>(p.in_channels);
  conv.source_width = static_cast<int>(p.out_width());
  conv.destination_width = static_cast<int>(p.in_width());
  conv.turned = true;
  const int pad_h = static_cast<int>(p.pad_h), pad_w = static_cast<int>(p.pad_w);
  if (p.stride_h == 1) {
    conv.pad_h = 2 - pad_h, conv.pad_w = 2 - pad_w;
    conv.anchor_h = conv.destination_h, conv.anchor_w = conv.destination_w;
    return launch_unit(conv, element, gpu, stream);
  }
  // Anchor i holds the padded input rows 2 * i and 2 * i + 1.
  conv.pad_h = conv.pad_w = 1;
  conv.shift_h = pad_h, conv.shift_w = pad_w;
  conv.anchor_h = (conv.destination_h - 1 + pad_h) / 2 + 1;
  conv.anchor_w = (conv.destination_w - 1 + pad_w) / 2 + 1;
  return launch_phased(conv, element, gpu, stream);
}

}  // namespace rnk::cuda
