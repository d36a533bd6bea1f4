// Starts a kernel with dynamic shared memory on a stream; the simulator has its own.
#pragma once

#include "kernels.h"
#include "ptx.cuh"

#ifdef RNK_CUDA_SIM
#include "launch_sim.h"
#else
#include <cuda_runtime.h>

namespace rnk::cuda {

// Returns nullptr, or what CUDA says of a failed launch. Each kernel is allowed all the shared
// memory that a block may take: the allowance is the kernel's and not the launch's, and a smaller
// one set by another thread in between would make this launch fail.
template <typename... Parameters>
const char* launch(void (*kernel)(Parameters...), int blocks, int threads, int shared_bytes,
                   const Gpu& gpu, Stream stream, const Parameters&... parameters) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 gpu.shared_per_block);
  }
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, parameters...);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // so that it does not turn up in somebody else's call
  return cudaGetErrorString(error);
}

}  // namespace rnk::cuda
#endif
