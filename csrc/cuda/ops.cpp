// The private operators that resnext_kernels/backends/cuda.py calls. Everything that a kernel
// relies on is checked here, before it is queued: an access out of bounds on a GPU takes the whole
// process with it. Nothing waits for the GPU, and memory comes from torch alone.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace rnk::cuda_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;
using Ints = std::vector<int64_t>;

#define RNK_CHECK(condition, ...) STD_TORCH_CHECK(condition, "resnext_kernels_cuda: ", __VA_ARGS__)

constexpr int64_t kAccess = 16;  // bytes that a thread moves at a time

template <class Values>
std::string text(const Values& values) {
  std::string joined;
  for (const int64_t value : values) joined += (joined.empty() ? "" : ", ") + std::to_string(value);
  return "(" + joined + ")";
}

void check_ints(const char* name, const Ints& values, size_t count, int64_t least) {
  bool good = values.size() == count;
  for (const int64_t value : values) good = good && value >= least;
  RNK_CHECK(good, name, "=", text(values), ": expected ", count, " values >= ", least);
}

// The convolution of an image of shape NCHW `input` with weights of shape KCRS `weight`.
ConvProblem conv_problem(const Ints& input, const Ints& weight, const Ints& stride,
                         const Ints& padding, const Ints& dilation, int64_t groups) {
  check_ints("input shape", input, 4, 1);
  check_ints("weight shape", weight, 4, 1);
  check_ints("stride", stride, 2, 1);
  check_ints("padding", padding, 2, 0);
  check_ints("dilation", dilation, 2, 1);
  RNK_CHECK(groups >= 1 && weight[0] % groups == 0 && input[1] == weight[1] * groups,
            "groups=", groups, ": expected a divisor of the output channels, ", weight[0],
            ", and input channels / weight.size(1), ", input[1], " / ", weight[1]);
  ConvProblem p;
  p.batch = input[0];
  p.in_channels = input[1];
  p.in_h = input[2];
  p.in_w = input[3];
  p.out_channels = weight[0];
  p.kernel_h = weight[2];
  p.kernel_w = weight[3];
  p.stride_h = stride[0];
  p.stride_w = stride[1];
  p.pad_h = padding[0];
  p.pad_w = padding[1];
  p.dilation_h = dilation[0];
  p.dilation_w = dilation[1];
  p.groups = groups;
  const int64_t room_h = p.in_h + 2 * p.pad_h - p.dilation_h * (p.kernel_h - 1) - 1;
  const int64_t room_w = p.in_w + 2 * p.pad_w - p.dilation_w * (p.kernel_w - 1) - 1;
  RNK_CHECK(room_h >= 0 && room_w >= 0, "weight shape ", text(weight),
            ": expected a kernel that fits into the padded input ", text(input));
  p.out_h = room_h / p.stride_h + 1;
  p.out_w = room_w / p.stride_w + 1;
  return p;
}

Ints shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Ints(sizes.begin(), sizes.end());
}
Ints input_shape(const ConvProblem& p) { return {p.batch, p.in_channels, p.in_h, p.in_w}; }
Ints output_shape(const ConvProblem& p) { return {p.batch, p.out_channels, p.out_h, p.out_w}; }

// What all tensors of a call share.
struct Kind {
  ScalarType dtype;
  int32_t device;

  explicit Kind(const Tensor& t) : dtype(t.scalar_type()), device(t.get_device_index()) {
    RNK_CHECK(
        dtype == ScalarType::Half || dtype == ScalarType::BFloat16 || dtype == ScalarType::Float,
        "dtype: expected float16, bfloat16 or float32");
  }
  int64_t element_bytes() const { return dtype == ScalarType::Float ? 4 : 2; }
  cuda::Element element(bool allow_tf32 = false) const {
    if (dtype == ScalarType::Float) return allow_tf32 ? cuda::Element::tf32 : cuda::Element::f32;
    return dtype == ScalarType::Half ? cuda::Element::fp16 : cuda::Element::bf16;
  }
};

void check_kind(const char* name, const Tensor& t, const Kind& kind, const Ints& shape) {
  RNK_CHECK(t.is_cuda() && t.get_device_index() == kind.device, name,
            ": expected on cuda:", kind.device);
  RNK_CHECK(t.scalar_type() == kind.dtype, name, ": expected the dtype of the other tensors");
  RNK_CHECK(shape_of(t) == shape, name, ": shape ", text(t.sizes()), ", expected ", text(shape));
  RNK_CHECK(reinterpret_cast<uintptr_t>(t.data_ptr()) % kAccess == 0, name,
            ": expected data at a multiple of ", kAccess, " bytes");
}

PixelStrides pixel_strides(const char* name, const Tensor& t, const Kind& kind, const Ints& shape) {
  check_kind(name, t, kind, shape);
  const int64_t elements = kAccess / kind.element_bytes();
  bool good = t.stride(1) == 1;
  constexpr int64_t kMostBytes = int64_t{1} << 35;  // what the kernels' offsets can hold
  for (const int64_t i : {0, 2, 3}) {
    good = good && t.stride(i) % elements == 0 && t.stride(i) < kMostBytes / kind.element_bytes();
  }
  RNK_CHECK(good, name, ": strides ", text(t.strides()),
            ", expected 1 for channels and multiples of ", elements, " below 2^35 bytes elsewhere");
  return {t.stride(0), t.stride(2), t.stride(3)};
}

cuda::Images images(const char* name, const Tensor& t, const Kind& kind, const Ints& shape) {
  const PixelStrides strides = pixel_strides(name, t, kind, shape);
  return {t.const_data_ptr(), strides};
}

// In any of torch's layouts a dimension of size 1 may have any stride.
void check_dense(const char* name, const Tensor& t) {
  int64_t expected = 1;
  for (const int64_t i : {1, 3, 2, 0}) {
    RNK_CHECK(t.size(i) == 1 || t.stride(i) == expected, name, ": shape ", text(t.sizes()),
              " with strides ", text(t.strides()), ", expected dense channels_last");
    expected *= t.size(i);
  }
}

// Written to, so no two pixels may share their memory.
cuda::MutableImages mutable_images(const char* name, const Tensor& t, const Kind& kind,
                                   const Ints& shape) {
  const PixelStrides strides = pixel_strides(name, t, kind, shape);
  check_dense(name, t);
  return {t.mutable_data_ptr(), strides};
}

void check_weight(const char* name, const Tensor& t, const Kind& kind, const Ints& shape) {
  check_kind(name, t, kind, shape);
  check_dense(name, t);
}

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that it does not turn up in somebody else's call
  RNK_CHECK(false, what, ": ", cudaGetErrorString(error));
}

int attribute(int32_t device, cudaDeviceAttr name) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

cuda::Gpu gpu_of(int32_t device) {
  static std::mutex mutex;
  static std::map<int32_t, cuda::Gpu> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  cuda::Gpu gpu;
  gpu.multiprocessors = attribute(device, cudaDevAttrMultiProcessorCount);
  gpu.shared_per_block = attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  gpu.shared_per_multiprocessor = attribute(device, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  known[device] = gpu;
  return gpu;
}

// torch's current stream. Its library is looked up among those already loaded and not linked to,
// so that this one loads beside a torch without CUDA too.
cuda::Stream stream_of(int32_t device) {
  using Get = decltype(&aoti_torch_get_current_cuda_stream);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Get>(symbol);
  }();
  RNK_CHECK(get != nullptr, "this torch has no CUDA: libtorch_cuda.so is not loaded");
  void* stream = nullptr;
  RNK_CHECK(get(device, &stream) == 0, "no current stream on cuda:", device);
  return stream;
}

void check_launched(const char* error) { RNK_CHECK(error == nullptr, error); }

void fprop(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
           const std::optional<Tensor>& residual, const Tensor& output, const Ints& stride,
           const Ints& padding, const Ints& dilation, int64_t groups, bool relu, bool allow_tf32) {
  const Kind kind(input);
  const ConvProblem p =
      conv_problem(shape_of(input), shape_of(weight), stride, padding, dilation, groups);
  const cuda::Images from = images("input", input, kind, input_shape(p));
  const cuda::MutableImages to = mutable_images("output", output, kind, output_shape(p));
  check_weight("weight", weight, kind, shape_of(weight));
  cuda::Images added;
  if (residual) added = images("residual", *residual, kind, output_shape(p));
  if (bias) {
    check_kind("bias", *bias, kind, {p.out_channels});
    RNK_CHECK(bias->is_contiguous(), "bias: stride ", bias->stride(0), ", expected 1");
  }
  const DeviceGuard guard(kind.device);
  check_launched(cuda::fprop(p, kind.element(allow_tf32), from, weight.const_data_ptr(),
                             bias ? bias->const_data_ptr() : nullptr, added, relu, to,
                             gpu_of(kind.device), stream_of(kind.device)));
}

void dgrad(const Tensor& grad_output, const Tensor& weight, const Tensor& grad_input,
           const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
           bool allow_tf32) {
  const Kind kind(grad_output);
  const ConvProblem p =
      conv_problem(shape_of(grad_input), shape_of(weight), stride, padding, dilation, groups);
  const cuda::Images from = images("grad_output", grad_output, kind, output_shape(p));
  const cuda::MutableImages to = mutable_images("grad_input", grad_input, kind, input_shape(p));
  check_weight("weight", weight, kind, shape_of(weight));
  const DeviceGuard guard(kind.device);
  check_launched(cuda::dgrad(p, kind.element(allow_tf32), from, weight.const_data_ptr(), to,
                             gpu_of(kind.device), stream_of(kind.device)));
}

void wgrad(const Tensor& grad_output, const Tensor& input, const Tensor& grad_weight,
           const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  const Kind kind(input);
  const ConvProblem p =
      conv_problem(shape_of(input), shape_of(grad_weight), stride, padding, dilation, groups);
  const cuda::Images grads = images("grad_output", grad_output, kind, output_shape(p));
  const cuda::Images from = images("input", input, kind, input_shape(p));
  check_weight("grad_weight", grad_weight, kind, shape_of(grad_weight));
  const DeviceGuard guard(kind.device);
  const cuda::Gpu gpu = gpu_of(kind.device);
  const int64_t bytes = static_cast<int64_t>(cuda::wgrad_workspace(p, kind.element(), gpu));
  // Freed when this returns, while the kernels may not have begun: torch hands the memory only to
  // what is queued on this stream after them.
  const Tensor workspace = torch::stable::new_empty(input, {bytes}, ScalarType::Byte);
  check_launched(cuda::wgrad(p, kind.element(), grads, from, workspace.mutable_data_ptr(),
                             grad_weight.mutable_data_ptr(), gpu, stream_of(kind.device)));
}

// Empty where the kernels serve the problem in elements of 2 bytes, or of 4.
std::string not_supported_reason(const Ints& input, const Ints& weight, const Ints& stride,
                                 const Ints& padding, const Ints& dilation, int64_t groups,
                                 int64_t element_bytes) {
  RNK_CHECK(element_bytes == 2 || element_bytes == 4, "element_bytes=", element_bytes,
            ": expected 2 or 4");
  const char* reason =
      cuda::not_supported_reason(conv_problem(input, weight, stride, padding, dilation, groups),
                                 element_bytes == 4 ? cuda::Element::f32 : cuda::Element::bf16);
  return reason ? reason : "";
}

// What the kernels were compiled for, in the form of TORCH_CUDA_ARCH_LIST.
std::string archs() { return RNK_CUDA_ARCHS; }

}  // namespace
}  // namespace rnk::cuda_ops

STABLE_TORCH_LIBRARY(resnext_kernels_cuda, m) {
  m.def(
      "fprop(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, Tensor(a!) output, "
      "int[] stride, int[] padding, int[] dilation, int groups, bool relu, bool allow_tf32) -> ()");
  m.def(
      "dgrad(Tensor grad_output, Tensor weight, Tensor(a!) grad_input, int[] stride, "
      "int[] padding, int[] dilation, int groups, bool allow_tf32) -> ()");
  m.def(
      "wgrad(Tensor grad_output, Tensor input, Tensor(a!) grad_weight, int[] stride, "
      "int[] padding, int[] dilation, int groups) -> ()");
  m.def(
      "not_supported_reason(int[] input, int[] weight, int[] stride, int[] padding, "
      "int[] dilation, int groups, int element_bytes) -> str");
  m.def("archs() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(resnext_kernels_cuda, CUDA, m) {
  m.impl("fprop", TORCH_BOX(&rnk::cuda_ops::fprop));
  m.impl("dgrad", TORCH_BOX(&rnk::cuda_ops::dgrad));
  m.impl("wgrad", TORCH_BOX(&rnk::cuda_ops::wgrad));
}

STABLE_TORCH_LIBRARY_IMPL(resnext_kernels_cuda, CompositeExplicitAutograd, m) {
  m.impl("not_supported_reason", TORCH_BOX(&rnk::cuda_ops::not_supported_reason));
  m.impl("archs", TORCH_BOX(&rnk::cuda_ops::archs));
}
