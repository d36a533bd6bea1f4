// The private operators that resnext_kernels/backends/cpu.py calls. Arguments were validated
// there; checked again is what would otherwise read or write out of bounds or divide by zero.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "operands.h"
#include "workspace.h"

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

int64_t threads() { return torch::stable::get_num_threads(); }

// A calling thread's memory for the tiles of its workers: one, whatever the computation.
Workspace& tiles() {
  thread_local Workspace workspace;
  return workspace;
}

// Runs `f(scratch, begin, end)` over [0, tasks) in parallel, a scratch of `words` for each range.
template <class F>
void parallel_tasks(int64_t tasks, int64_t words, F f) {
  // Apart by more than what the hardware fetches past the end of what a thread writes row by row:
  // fetched to be written, it is taken from the thread that works on it.
  constexpr int64_t kApart = 32 * 1024, kPage = 1024;
  const int64_t step = (words + kApart + kPage - 1) / kPage * kPage;
  const int64_t workers = std::min(threads(), std::max<int64_t>(tasks, 1));
  float* base = tiles().get(workers * step);
  // One range of tasks a worker: the range, not the thread, owns the scratch.
  torch::stable::parallel_for(0, workers, 1, [=](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w)
      f(base + w * step, tasks * w / workers, tasks * (w + 1) / workers);
  });
}

void run(TapConv conv) {
  const Kernels& k = kernels();
  const TapPlan plan = k.plan_taps(conv, threads());
  std::atomic<bool> done = true;
  parallel_tasks(plan.tasks, plan.scratch_words, [&](float* scratch, int64_t begin, int64_t end) {
    if (!k.run_taps(conv, plan, scratch, begin, end)) done = false;
  });
  if (done) return;
  conv.exact = true;
  run(conv);
}

void run(const Relayout& r) {
  constexpr int64_t kFewest = 4;  // tasks of a thread
  torch::stable::parallel_for(0, r.tasks(), kFewest, [&](int64_t begin, int64_t end) {
    kernels().run_relayout(r, begin, end);
  });
}

// Runs `c` on a few images at a time, whose copies in channels_last then stay in the caches, for
// operands in planes.
void run_in_portions(const TapConv& c, const Tensor& src, const std::optional<Tensor>& residual,
                     const Tensor& dst) {
  constexpr int64_t kPortionBytes = 4 << 20, kLineWords = 16;
  const int64_t element_bytes = c.element == Element::f32 ? 4 : 2;
  const int64_t src_image = c.src_channels() * c.src_rows * c.src_cols;
  const int64_t dst_image = c.dst_channels() * c.dst_rows * c.dst_cols;
  const int64_t most =
      std::clamp<int64_t>(kPortionBytes / element_bytes / (src_image + dst_image), 1, c.batch);
  const auto words = [&](const Tensor& t, int64_t image) {
    const int64_t lines = most * image * element_bytes / 4 / kLineWords + 1;
    return is_in_planes(t) ? lines * kLineWords : 0;
  };
  const int64_t all =
      words(src, src_image) + words(dst, dst_image) + (residual ? words(*residual, dst_image) : 0);
  if (all == 0) return run(c);
  thread_local Workspace kept;
  Workspace passing;  // for one image that is larger than a portion
  float* const src_copy = (4 * all <= 2 * kPortionBytes ? kept : passing).get(all);
  float* const dst_copy = src_copy + words(src, src_image);
  float* const residual_copy = dst_copy + words(dst, dst_image);

  for (int64_t first = 0; first < c.batch; first += most) {
    TapConv part = c;
    part.batch = std::min(most, c.batch - first);
    // The images as they lie, or their copy.
    const auto read = [&](const Tensor& t, int64_t image_step, float* copy) -> const void* {
      if (!is_in_planes(t))
        return static_cast<const char*>(t.const_data_ptr()) + first * image_step * element_bytes;
      Relayout r = from_planes(t).part(first, part.batch);
      r.dst = copy;
      run(r);
      return copy;
    };
    part.src = read(src, c.src_strides.n, src_copy);
    if (residual) part.residual = read(*residual, dst_image, residual_copy);
    if (!is_in_planes(dst)) {
      part.dst = static_cast<char*>(c.dst) + first * dst_image * element_bytes;
      run(part);
      continue;
    }
    part.dst = dst_copy;
    run(part);
    Relayout r = to_planes(dst).part(first, part.batch);
    r.src = dst_copy;
    run(r);
  }
}

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

// Returns whether all of grad_weight is finite.
bool run(const Wgrad& w) {
  const Kernels& k = kernels();
  const WgradPlan plan = k.plan_wgrad(w, threads());
  thread_local Workspace sums;
  float* partial = sums.get(plan.partial_words());
  std::atomic<bool> finite = true;
  parallel_tasks(plan.tasks, plan.scratch_words, [&](float* scratch, int64_t begin, int64_t end) {
    if (!k.run_wgrad(w, plan, partial, scratch, begin, end)) finite = false;
  });
  if (plan.splits == 1) return finite;
  torch::stable::parallel_for(0, plan.units, 1 + 16384 / plan.unit_weights,
                              [&](int64_t begin, int64_t end) {
                                if (!k.reduce_wgrad(w, plan, partial, begin, end)) finite = false;
                              });
  return finite;
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
  w.input = input.const_data_ptr();
  w.input_strides = pixel_strides(input);
  w.grad_output = grad_output.const_data_ptr();
  w.grad_strides = pixel_strides(grad_output);
  w.grad_weight = out.mutable_data_ptr();
  w.taps_inside = filter_strides(out).tap == 1;
  check_shape(input, input_shape(w.problem), "input");
  check_shape(grad_output, output_shape(w.problem), "grad_output");

  if (run(w)) return;
  // Perhaps only since a zero beside the image times infinity is NaN.
  w.exact = true;
  run(w);
}

// Copies images in planes into channels_last.
void to_channels_last(const Tensor& src, const Tensor& dst) {
  STD_TORCH_CHECK(src.dim() == 4 && is_in_planes(src),
                  "resnext_kernels_cpu: source is not in planes");
  check_like(dst, element_of(src), "destination");
  check_dense(dst, {src.size(0), src.size(1), src.size(2), src.size(3)}, "destination");
  Relayout r = from_planes(src);
  r.dst = dst.mutable_data_ptr();
  run(r);
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
  m.def("to_channels_last(Tensor source, Tensor(a!) destination) -> ()");
  m.def("isa() -> str");
  m.def("peak_gflops(str dtype) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(resnext_kernels_cpu, CPU, m) {
  m.impl("fprop", TORCH_BOX(&rnk::cpu::fprop));
  m.impl("dgrad", TORCH_BOX(&rnk::cpu::dgrad));
  m.impl("wgrad", TORCH_BOX(&rnk::cpu::wgrad));
  m.impl("to_channels_last", TORCH_BOX(&rnk::cpu::to_channels_last));
}

STABLE_TORCH_LIBRARY_IMPL(resnext_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&rnk::cpu::isa));
  m.impl("peak_gflops", TORCH_BOX(&rnk::cpu::peak_gflops));
}
