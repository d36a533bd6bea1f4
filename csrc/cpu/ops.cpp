// The private operators that resnext_kernels/backends/cpu.py calls. Arguments were validated
// there; checked again is what would otherwise read or write out of bounds or divide by zero.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "operands.h"
#include "run.h"

namespace rnk::cpu {
namespace {

ConvProblem problem_of(const Tensor& weight, int64_t batch, int64_t in_h, int64_t in_w,
                       const Ints& stride, const Ints& padding, const Ints& dilation,
                       int64_t groups) {
  check_pair(stride, 1, "stride");
  check_pair(padding, 0, "padding");
  check_pair(dilation, 1, "dilation");
  STD_TORCH_CHECK(weight.dim() == 4 && groups > 0 && weight.size(0) % groups == 0,
                  "resnext_kernels_cpu: weight expected 4 dimensions, the first in whole groups");
  STD_TORCH_CHECK(weight.numel() > 0, "resnext_kernels_cpu: weight is empty");
  ConvProblem p;
  p.batch = batch;
  p.in_channels = weight.size(1) * groups;
  p.in_h = in_h;
  p.in_w = in_w;
  p.out_channels = weight.size(0);
  p.kernel_h = weight.size(2);
  p.kernel_w = weight.size(3);
  p.stride_h = stride[0];
  p.stride_w = stride[1];
  p.pad_h = padding[0];
  p.pad_w = padding[1];
  p.dilation_h = dilation[0];
  p.dilation_w = dilation[1];
  p.groups = groups;
  p.out_h = (in_h + 2 * p.pad_h - p.dilation_h * (p.kernel_h - 1) - 1) / p.stride_h + 1;
  p.out_w = (in_w + 2 * p.pad_w - p.dilation_w * (p.kernel_w - 1) - 1) / p.stride_w + 1;
  const bool fits = in_h + 2 * p.pad_h > p.dilation_h * (p.kernel_h - 1) &&
                    in_w + 2 * p.pad_w > p.dilation_w * (p.kernel_w - 1);
  STD_TORCH_CHECK(batch > 0 && in_h > 0 && in_w > 0 && fits,
                  "resnext_kernels_cpu: expected images with pixels that the kernel fits in");
  return p;
}

Ints input_shape(const ConvProblem& p) { return {p.batch, p.in_channels, p.in_h, p.in_w}; }
Ints output_shape(const ConvProblem& p) { return {p.batch, p.out_channels, p.out_h, p.out_w}; }

// fprop from input to output, or dgrad from grad_output to grad_input.
TapConv tap_conv(const ConvProblem& p, const Tensor& src, const Tensor& weight, const Tensor& dst,
                 bool transposed) {
  check_shape(src, transposed ? output_shape(p) : input_shape(p), "source");
  check_images(dst, transposed ? input_shape(p) : output_shape(p), "destination");
  const FilterStrides filter = filter_strides(weight);
  // The kernels read such filters in pairs of input channels.
  STD_TORCH_CHECK(transposed || filter.tap == 1 || weight.size(1) % 2 == 0,
                  "resnext_kernels_cpu: weight in channels_last has ", weight.size(1),
                  " channels, expected an even number");
  TapConv c;
  c.element = element_of(src);
  check_like(src, c.element, "source");
  check_like(weight, c.element, "weight");
  check_like(dst, c.element, "destination");
  c.batch = p.batch;
  c.groups = p.groups;
  c.src_width = transposed ? p.out_width() : p.in_width();
  c.dst_width = transposed ? p.in_width() : p.out_width();
  c.src_rows = src.size(2);
  c.src_cols = src.size(3);
  c.dst_rows = dst.size(2);
  c.dst_cols = dst.size(3);
  c.vertical = {p.kernel_h, p.stride_h, p.pad_h, p.dilation_h, transposed};
  c.horizontal = {p.kernel_w, p.stride_w, p.pad_w, p.dilation_w, transposed};
  c.src = src.const_data_ptr();
  c.src_strides = image_strides(src);
  c.dst = dst.mutable_data_ptr();
  c.weight = weight.const_data_ptr();
  c.weight_group = p.out_width() * filter.out;
  c.weight_dst = transposed ? filter.in : filter.out;
  c.weight_src = transposed ? filter.out : filter.in;
  c.weight_tap = filter.tap;
  return c;
}

void fprop(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
           const std::optional<Tensor>& residual, const Tensor& out, const Ints& stride,
           const Ints& padding, const Ints& dilation, int64_t groups, bool relu) {
  const ConvProblem p = problem_of(weight, input.size(0), input.size(2), input.size(3), stride,
                                   padding, dilation, groups);
  TapConv c = tap_conv(p, input, weight, out, false);
  if (residual) {
    check_like(*residual, c.element, "residual");
    check_images(*residual, output_shape(p), "residual");
  }
  if (bias) {
    check_like(*bias, c.element, "bias");
    STD_TORCH_CHECK(bias->is_contiguous() && bias->numel() == p.out_channels,
                    "resnext_kernels_cpu: bias is not one dense row of the output channels");
  }
  c.bias = bias ? bias->const_data_ptr() : nullptr;
  c.residual = residual ? residual->const_data_ptr() : nullptr;
  c.relu = relu;
  run_in_portions(c, input, residual, out);
}

void dgrad(const Tensor& grad_output, const Tensor& weight, const Tensor& out, const Ints& stride,
           const Ints& padding, const Ints& dilation, int64_t groups) {
  const ConvProblem p =
      problem_of(weight, out.size(0), out.size(2), out.size(3), stride, padding, dilation, groups);
  run_in_portions(tap_conv(p, grad_output, weight, out, true), grad_output, std::nullopt, out);
}

void wgrad(const Tensor& grad_output, const Tensor& input, const Tensor& out, const Ints& stride,
           const Ints& padding, const Ints& dilation, int64_t groups) {
  Wgrad w;
  w.problem = problem_of(out, input.size(0), input.size(2), input.size(3), stride, padding,
                         dilation, groups);
  w.element = element_of(input);
  check_like(input, w.element, "input");
  check_like(grad_output, w.element, "grad_output");
  check_like(out, w.element, "grad_weight");
  w.input_strides = image_strides(input);
  w.grad_strides = image_strides(grad_output);
  w.grad_weight = out.mutable_data_ptr();
  w.taps_inside = filter_strides(out).tap == 1;
  check_shape(input, input_shape(w.problem), "input");
  check_shape(grad_output, output_shape(w.problem), "grad_output");

  if (run(w, input, grad_output)) return;
  // Perhaps only since a zero beside the image times infinity is NaN.
  w.exact = true;
  run(w, input, grad_output);
}

std::string isa() { return kernels().name; }

// GFLOP/s of multiply-adds in registers, all threads: the ceiling of every kernel here.
double peak_gflops(const std::string& dtype) {
  STD_TORCH_CHECK(dtype == "float32" || dtype == "bfloat16",
                  "peak_gflops: dtype expected \"float32\" or \"bfloat16\"");
  const Element element = dtype == "float32" ? Element::f32 : Element::bf16;
  constexpr int64_t kRounds = 1 << 20;
  std::vector<int64_t> flops(threads());
  const auto start = std::chrono::steady_clock::now();
  torch::stable::parallel_for(0, threads(), 1, [&](int64_t begin, int64_t end) {
    float sink;
    for (int64_t t = begin; t < end; ++t) flops[t] = kernels().run_peak(element, kRounds, &sink);
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  double total = 0;
  for (int64_t f : flops) total += static_cast<double>(f);
  return total / seconds.count() / 1e9;
}

}  // namespace
}  // namespace rnk::cpu

STABLE_TORCH_LIBRARY(resnext_kernels_cpu, m) {
  m.def(
      "fprop(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, Tensor(a!) output, "
      "int[] stride, int[] padding, int[] dilation, int groups, bool relu) -> ()");
  m.def(
      "dgrad(Tensor grad_output, Tensor weight, Tensor(a!) grad_input, int[] stride, "
      "int[] padding, int[] dilation, int groups) -> ()");
  m.def(
      "wgrad(Tensor grad_output, Tensor input, Tensor(a!) grad_weight, int[] stride, "
      "int[] padding, int[] dilation, int groups) -> ()");
  m.def("isa() -> str");
  m.def("peak_gflops(str dtype) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(resnext_kernels_cpu, CPU, m) {
  m.impl("fprop", TORCH_BOX(&rnk::cpu::fprop));
  m.impl("dgrad", TORCH_BOX(&rnk::cpu::dgrad));
  m.impl("wgrad", TORCH_BOX(&rnk::cpu::wgrad));
}

STABLE_TORCH_LIBRARY_IMPL(resnext_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&rnk::cpu::isa));
  m.impl("peak_gflops", TORCH_BOX(&rnk::cpu::peak_gflops));
}
