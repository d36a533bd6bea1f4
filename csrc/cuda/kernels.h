// What the launchers offer: plain pointers and numbers, neither torch nor CUDA headers. ops.cpp
// calls them with torch's tensors, the tests' simulator with guarded buffers.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>

#include "../conv_problem.h"

namespace rnk::cuda {

// tf32: float32 tensors, of which fprop and dgrad may multiply in TF32.
enum class Element { bf16, fp16, f32, tf32 };
inline int element_bytes(Element element) { return element < Element::f32 ? 2 : 4; }

// What a launch needs to know of the GPU it runs on.
struct Gpu {
  int multiprocessors = 0;
  int shared_per_block = 0;           // bytes a block may take
  int shared_per_multiprocessor = 0;  // bytes of all its blocks, of which each takes 1 KiB more

  auto operator<=>(const Gpu&) const = default;
};

#ifdef RNK_CUDA_SIM
struct Stream {};
#else
using Stream = void*;  // a cudaStream_t
#endif

// Images in NHWC: the channels of a pixel are side by side; the data and every stride are
// multiples of 16 bytes.
struct Images {
  const void* data = nullptr;
  PixelStrides strides;
};
struct MutableImages {
  void* data = nullptr;
  PixelStrides strides;
};

// Weights and their gradient are dense [out_channels][kernel_h][kernel_w][in_width]
// (channels_last). Each function queues its kernels on `stream` and returns nullptr, or what went
// wrong in words: why it does not serve the problem, or what CUDA says of a launch.

// output = relu?(conv(input, weight) + bias + residual); bias and residual may be absent (nullptr).
const char* fprop(const ConvProblem& problem, Element element, const Images& input,
                  const void* weight, const void* bias, const Images& residual, bool relu,
                  const MutableImages& output, const Gpu& gpu, Stream stream);

const char* dgrad(const ConvProblem& problem, Element element, const Images& grad_output,
                  const void* weight, const MutableImages& grad_input, const Gpu& gpu,
                  Stream stream);

// `workspace` holds wgrad_workspace bytes of partial sums.
const char* wgrad(const ConvProblem& problem, Element element, const Images& grad_output,
                  const Images& input, void* workspace, void* grad_weight, const Gpu& gpu,
                  Stream stream);
size_t wgrad_workspace(const ConvProblem& problem, Element element, const Gpu& gpu);

// nullptr where the kernels serve a problem, else the reason.
const char* not_supported_reason(const ConvProblem& problem, Element element);

}  // namespace rnk::cuda
