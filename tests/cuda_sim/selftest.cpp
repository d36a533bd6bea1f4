// Runs the kernels of selftest_kernels.cuh for tests/test_cuda_sim.py.
#include "selftest_kernels.cuh"

#include <map>

#include "api.h"

namespace rnk::cuda {
namespace {

using Run = const char* (*)(const SelfTest&, int blocks);

template <Bug bug>
const char* run_copy(const SelfTest& task, int blocks) {
  return launch(ring_copy<bug>, blocks, kCopyThreads, kStages * kStageBytes, Gpu{}, Stream{}, task);
}

template <class Format, int k, Bug bug = Bug::none>
const char* run_matmul(const SelfTest& task, int blocks) {
  return launch(matmul<Format, k, bug>, blocks, kMatmulThreads, kMatmulShared, Gpu{}, Stream{},
                task);
}

const char* run_matmul_tf32(const SelfTest& task, int blocks) {
  return launch(matmul_tf32, blocks, 32, 512, Gpu{}, Stream{}, task);
}

template <Bug bug>
const char* run_exchange(const SelfTest& task, int blocks) {
  return launch(exchange_words<bug>, blocks, 32, 128, Gpu{}, Stream{}, task);
}

template <Bug bug>
const char* run_stuck(const SelfTest& task, int blocks) {
  return launch(stuck<bug>, blocks, 64, 0, Gpu{}, Stream{}, task);
}

const char* run_cost(const SelfTest& task, int blocks) {
  return launch(cost_of_stride, blocks, 32, 8192, Gpu{}, Stream{}, task);
}

// From a to b, and in a second launch from b to out.
template <bool first_too>
const char* run_chain(const SelfTest& task, int blocks) {
  const SelfTest first{task.a, nullptr, const_cast<unsigned char*>(task.b), task.n};
  const SelfTest second{task.b, nullptr, task.out, task.n};
  const char* const error = first_too ? run_copy<Bug::none>(first, blocks) : nullptr;
  return error ? error : run_copy<Bug::none>(second, blocks);
}

const std::map<std::string, Run> kKernels = {
    {"copy", run_copy<Bug::none>},
    {"copy dropped_barrier", run_copy<Bug::dropped_barrier>},
    {"copy wrong_wait_count", run_copy<Bug::wrong_wait_count>},
    {"copy early_load", run_copy<Bug::early_load>},
    {"copy read_one_too_far", run_copy<Bug::read_one_too_far>},
    {"copy unguarded_tail", run_copy<Bug::unguarded_tail>},
    {"copy no_wait_at_exit", run_copy<Bug::no_wait_at_exit>},
    {"copy double_write", run_copy<Bug::double_write>},
    {"copy misaligned_global", run_copy<Bug::misaligned_global>},
    {"copy misaligned_shared", run_copy<Bug::misaligned_shared>},
    {"copy write_to_input", run_copy<Bug::write_to_input>},
    {"matmul bf16 16", run_matmul<Bf16, 16>},
    {"matmul bf16 8", run_matmul<Bf16, 8>},
    {"matmul fp16 16", run_matmul<Fp16, 16>},
    {"matmul fp16 8", run_matmul<Fp16, 8>},
    {"matmul tf32", run_matmul_tf32},
    {"matmul dropped_barrier", run_matmul<Bf16, 16, Bug::dropped_barrier>},
    {"matmul swapped_fragment", run_matmul<Bf16, 16, Bug::swapped_fragment>},
    {"matmul divergent_ldmatrix", run_matmul<Bf16, 16, Bug::divergent_ldmatrix>},
    {"matmul misaligned_shared", run_matmul<Bf16, 16, Bug::misaligned_shared>},
    {"matmul outside_shared", run_matmul<Bf16, 16, Bug::outside_shared>},
    {"exchange", run_exchange<Bug::none>},
    {"exchange dropped_warp_sync", run_exchange<Bug::dropped_warp_sync>},
    {"words", run_stuck<Bug::none>},
    {"words missing_block", run_stuck<Bug::missing_block>},
    {"words early_return", run_stuck<Bug::early_return>},
    {"words different_barriers", run_stuck<Bug::different_barriers>},
    {"words half_a_warp", run_stuck<Bug::half_a_warp>},
    {"words plain_dereference", run_stuck<Bug::plain_dereference>},
    {"cost", run_cost},
    {"chain", run_chain<true>},
    {"chain without_first", run_chain<false>},
};

}  // namespace
}  // namespace rnk::cuda

namespace {

rnk::sim::Buffer& add_buffer(const char* name, int64_t bytes, const void* initial) {
  rnk::sim::Buffer& buffer = rnk::sim::global_memory().add(name, bytes, initial == nullptr);
  buffer.permit(0, bytes, initial);
  return buffer;
}

}  // namespace

// Kernels may write to b where it is absent (nullptr). out receives what they wrote.
RNK_SIM_API const char* rnk_sim_selftest(const char* name, const void* a, int64_t a_bytes,
                                         const void* b, int64_t b_bytes, void* out,
                                         int64_t out_bytes, int n, int blocks) {
  using namespace rnk;
  return sim::guarded([&]() -> std::string {
    sim::begin_call();
    sim::Buffer& buffer = add_buffer("out", out_bytes, nullptr);
    cuda::SelfTest task;
    task.n = n;
    task.a = reinterpret_cast<const unsigned char*>(add_buffer("a", a_bytes, a).address());
    task.b = reinterpret_cast<const unsigned char*>(add_buffer("b", b_bytes, b).address());
    task.out = reinterpret_cast<unsigned char*>(buffer.address());
    if (const char* error = cuda::kKernels.at(name)(task, blocks)) return error;
    buffer.copy_to(out);
    return sim::check_written(buffer);
  });
}
