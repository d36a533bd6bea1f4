// Runs the real kernels on the simulator: tensors come from Python as memory of the host.
#include "kernels.h"

#include "api.h"

namespace {

using namespace rnk;

// The whole memory that a tensor is a part of. Strides are in elements.
struct Tensor {
  void* data;  // nullptr: there is none
  int64_t bytes;
  int64_t offset;  // of the tensor, in bytes
  int64_t element_bytes;
  PixelStrides strides;
};

struct Shape {
  int64_t batch, channels, h, w;
};

enum class Role { input, output };

void permit(sim::Buffer& buffer, const Tensor& t, Role role, int64_t offset, int64_t bytes) {
  const auto* const data = static_cast<const unsigned char*>(t.data);
  buffer.permit(offset, bytes, role == Role::input ? data + offset : nullptr);
}

sim::Buffer& add_buffer(const char* name, const Tensor& t, Role role) {
  return sim::global_memory().add(name, t.bytes, role == Role::output);
}

// All of the memory from the tensor on is its own.
sim::Buffer& add_dense(const char* name, const Tensor& t, Role role) {
  sim::Buffer& buffer = add_buffer(name, t, role);
  permit(buffer, t, role, t.offset, t.bytes - t.offset);
  return buffer;
}

sim::Buffer& add_images(const char* name, const Tensor& t, const Shape& shape, Role role) {
  sim::Buffer& buffer = add_buffer(name, t, role);
  for (int64_t n = 0; n < shape.batch; ++n) {
    for (int64_t y = 0; y < shape.h; ++y) {
      for (int64_t x = 0; x < shape.w; ++x) {
        const int64_t pixel = n * t.strides.n + y * t.strides.h + x * t.strides.w;
        permit(buffer, t, role, t.offset + pixel * t.element_bytes,
               shape.channels * t.element_bytes);
      }
    }
  }
  return buffer;
}

void* address(const sim::Buffer& buffer, const Tensor& t) {
  return reinterpret_cast<void*>(buffer.address() + t.offset);
}

const void* input_vector(const char* name, const Tensor& t) {
  return t.data ? address(add_dense(name, t, Role::input), t) : nullptr;
}

cuda::Images input_images(const char* name, const Tensor& t, const Shape& shape) {
  if (!t.data) return {};
  return {address(add_images(name, t, shape, Role::input), t), t.strides};
}

std::string finish(const char* error, const sim::Buffer& output, const Tensor& t) {
  if (error) return error;
  output.copy_to(t.data);
  return sim::check_written(output);
}

Shape input_shape(const ConvProblem& p) { return {p.batch, p.in_channels, p.in_h, p.in_w}; }
Shape output_shape(const ConvProblem& p) { return {p.batch, p.out_channels, p.out_h, p.out_w}; }

}  // namespace

RNK_SIM_API const char* rnk_sim_not_supported_reason(const ConvProblem* problem,
                                                     cuda::Element element) {
  return cuda::not_supported_reason(*problem, element);
}

RNK_SIM_API const char* rnk_sim_fprop(const ConvProblem* p, cuda::Element element,
                                      const Tensor* input, const Tensor* weight, const Tensor* bias,
                                      const Tensor* residual, int relu, const Tensor* output,
                                      const cuda::Gpu* gpu) {
  return sim::guarded([&] {
    sim::begin_call();
    const auto in = input_images("input", *input, input_shape(*p));
    const auto add = input_images("residual", *residual, output_shape(*p));
    const void* const w = input_vector("weight", *weight);
    const void* const b = input_vector("bias", *bias);
    sim::Buffer& out = add_images("output", *output, output_shape(*p), Role::output);
    const char* const error = cuda::fprop(*p, element, in, w, b, add, relu,
                                          {address(out, *output), output->strides}, *gpu, {});
    return finish(error, out, *output);
  });
}

RNK_SIM_API const char* rnk_sim_dgrad(const ConvProblem* p, cuda::Element element,
                                      const Tensor* grad_output, const Tensor* weight,
                                      const Tensor* grad_input, const cuda::Gpu* gpu) {
  return sim::guarded([&] {
    sim::begin_call();
    const auto grad = input_images("grad_output", *grad_output, output_shape(*p));
    const void* const w = input_vector("weight", *weight);
    sim::Buffer& out = add_images("grad_input", *grad_input, input_shape(*p), Role::output);
    const char* const error = cuda::dgrad(
        *p, element, grad, w, {address(out, *grad_input), grad_input->strides}, *gpu, {});
    return finish(error, out, *grad_input);
  });
}

RNK_SIM_API const char* rnk_sim_wgrad(const ConvProblem* p, cuda::Element element,
                                      const Tensor* grad_output, const Tensor* input,
                                      const Tensor* grad_weight, const cuda::Gpu* gpu) {
  return sim::guarded([&] {
    sim::begin_call();
    const auto grad = input_images("grad_output", *grad_output, output_shape(*p));
    const auto in = input_images("input", *input, input_shape(*p));
    const size_t bytes = cuda::wgrad_workspace(*p, element, *gpu);
    sim::Buffer& sums = sim::global_memory().add("workspace", bytes, true);
    sums.permit(0, bytes, nullptr);
    sim::Buffer& out = add_dense("grad_weight", *grad_weight, Role::output);
    const char* const error =
        cuda::wgrad(*p, element, grad, in, reinterpret_cast<void*>(sums.address()),
                    address(out, *grad_weight), *gpu, {});
    return finish(error, out, *grad_weight);
  });
}
