// Checks of what the private operators are given, and what their strides tell; included by ops.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "relayout_plan.h"

namespace rnk::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

Element element_of(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::BFloat16,
                  "resnext_kernels_cpu: expected float32 or bfloat16");
  return t.scalar_type() == ScalarType::Float ? Element::f32 : Element::bf16;
}

void check_like(const Tensor& t, Element element, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && element_of(t) == element, "resnext_kernels_cpu: ", name,
                  " is not of the dtype and the device of the others");
}

// Dense ones.
int64_t image_bytes(const Tensor& t) {
  return t.size(1) * t.size(2) * t.size(3) * element_bytes(element_of(t));
}

PixelStrides pixel_strides(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4 && (t.stride(1) == 1 || t.size(1) == 1),
                  "resnext_kernels_cpu: expected a 4-d tensor with channel stride 1");
  return {t.stride(0), t.stride(2), t.stride(3)};
}

// Whether each channel of an image is one row of its pixels, while a pixel's channels lie apart.
bool is_in_planes(const Tensor& t) {
  const bool channels = t.stride(1) == 1 || t.size(1) == 1;
  const bool row = t.stride(3) == 1 || t.size(3) == 1;
  return !channels && row && (t.stride(2) == t.size(3) || t.size(2) == 1);
}

// From a tensor in planes to dense channels_last, which is to be given.
Relayout from_planes(const Tensor& t) {
  Relayout r;
  r.element = element_of(t);
  r.images = t.size(0);
  r.rows = t.size(1);
  r.columns = t.size(2) * t.size(3);
  r.src = t.const_data_ptr();
  r.src_image = t.stride(0);
  r.src_row = t.stride(1);
  r.dst_image = r.rows * r.columns;
  r.dst_row = r.rows;
  return r;
}

// And back.
Relayout to_planes(const Tensor& t) {
  Relayout r;
  r.element = element_of(t);
  r.images = t.size(0);
  r.rows = t.size(2) * t.size(3);
  r.columns = t.size(1);
  r.dst = t.mutable_data_ptr();
  r.src_image = r.rows * r.columns;
  r.src_row = r.columns;
  r.dst_image = t.stride(0);
  r.dst_row = t.stride(1);
  return r;
}

void check_shape(const Tensor& t, const Ints& nchw, const char* name) {
  for (int64_t i = 0; i < 4; ++i)
    STD_TORCH_CHECK(t.size(i) == nchw[i], "resnext_kernels_cpu: ", name, " has the wrong shape");
}

void check_dense(const Tensor& t, const Ints& nchw, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, "resnext_kernels_cpu: ", name, " expected 4 dimensions");
  check_shape(t, nchw, name);
  const Ints dense = {nchw[1] * nchw[2] * nchw[3], 1, nchw[3] * nchw[1], nchw[1]};
  for (int64_t i = 0; i < 4; ++i)
    STD_TORCH_CHECK(t.stride(i) == dense[i] || nchw[i] <= 1, "resnext_kernels_cpu: ", name,
                    " is not dense channels_last");
}

// 32-bit words, in whole cache lines, of a copy of some images; none where they need no copy.
int64_t copy_words(const Tensor& t, int64_t images) {
  const int64_t lines = (images * image_bytes(t) + kLineBytes - 1) / kLineBytes;
  return is_in_planes(t) ? lines * kLineBytes / 4 : 0;
}

// Dense channels_last, or in planes.
void check_images(const Tensor& t, const Ints& nchw, const char* name) {
  if (t.dim() != 4 || !is_in_planes(t)) return check_dense(t, nchw, name);
  check_shape(t, nchw, name);
}

// Those of the images, or of their copy in channels_last.
PixelStrides image_strides(const Tensor& t) {
  if (t.dim() != 4 || !is_in_planes(t)) return pixel_strides(t);
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  return {h * w * c, w * c, c};
}

// Where the elements of a filter lie, in elements; dense in either of torch's layouts.
struct FilterStrides {
  int64_t out, in, tap;
};

FilterStrides filter_strides(const Tensor& weight) {
  const int64_t in = weight.size(1), taps = weight.size(2) * weight.size(3);
  if (weight.is_contiguous()) return {in * taps, taps, 1};
  const Ints dense = {in * taps, 1, in * weight.size(3), in};
  bool channels_last = true;
  for (int64_t i = 0; i < 4; ++i)
    channels_last = channels_last && (weight.stride(i) == dense[i] || weight.size(i) == 1);
  STD_TORCH_CHECK(channels_last,
                  "resnext_kernels_cpu: weight is neither contiguous nor channels_last");
  return {in * taps, 1, in};
}

void check_pair(const Ints& pair, int64_t least, const char* name) {
  STD_TORCH_CHECK(pair.size() == 2 && pair[0] >= least && pair[1] >= least,
                  "resnext_kernels_cpu: ", name, " expected two values >= ", least);
}

}  // namespace
}  // namespace rnk::cpu
