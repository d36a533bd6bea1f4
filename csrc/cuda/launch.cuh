// Starts a kernel with dynamic shared memory on a stream; the simulator has its own.
#pragma once

#include "kernels.h"
#include "ptx.cuh"

#ifdef RNK_CUDA_SIM
#include "launch_sim.h"
#else
#include <cuda_runtime.h>

#include <set>
#include <utility>

namespace rnk::cuda {

// Allows a kernel all the shared memory that a block may take: the allowance is the kernel's and
// not the launch's, and a smaller one set by another thread in between would make its launch fail.
// And asks for as much of it on a multiprocessor, not first-level cache, as the plans count on.
// Both last, so each thread does it once for a kernel and a GPU.
inline cudaError_t allow_shared_memory(const void* kernel, const Gpu& gpu) {
  thread_local std::set<std::pair<const void*, int> > allowed;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess || allowed.count({kernel, device})) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               gpu.shared_per_block);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared);
  if (error == cudaSuccess) allowed.insert({kernel, device});
  return error;
}

// Returns nullptr, or what CUDA says of a failed launch.
template <typename... Parameters>
const char* launch(void (*kernel)(Parameters...), int blocks, int threads, int shared_bytes,
                   const Gpu& gpu, Stream stream, const Parameters&... parameters) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  if (shared_bytes) error = allow_shared_memory(reinterpret_cast<const void*>(kernel), gpu);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, parameters...);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // so that it does not turn up in somebody else's call
  return cudaGetErrorString(error);
}

}  // namespace rnk::cuda
#endif
