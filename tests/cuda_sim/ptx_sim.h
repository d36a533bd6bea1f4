// The simulator's side of csrc/cuda/ptx.cuh, which includes this and says what each function does.
// Each takes one argument more, the place in the source it is called from, for messages and counts.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "formats.h"
#include "memory_instructions.h"
#include "warp_instructions.h"

#define RNK_DEVICE inline
#define RNK_HOST_DEVICE inline
#define RNK_KERNEL(threads, blocks) void

#define threadIdx (::rnk::sim::current->index)
#define blockIdx (::rnk::sim::current->block->index)
#define blockDim (::rnk::sim::current->block->threads_per_block)
#define gridDim (::rnk::sim::current->block->blocks)

namespace rnk::cuda {

using std::max;
using std::min;
using Site = std::source_location;

inline uint32_t shared_base() { return sim::SharedMemory::kBase; }
RNK_SIM_INLINE void sync_threads(Site site = Site::current()) {
  sim::wait_at_barrier({"sync_threads", site});
}
// As __syncwarp(): without it or a barrier, lanes of a warp race in shared memory like any threads.
RNK_SIM_INLINE void sync_warp(Site site = Site::current()) {
  sim::with_warp({"sync_warp", site}, sim::execute_sync_warp);
}

// --- global memory
inline Vec16 ld_global_16(const void* p, Site site = Site::current()) {
  Vec16 v;
  sim::load_global(&v, p, 16, {"ld_global_16", site});
  return v;
}
inline uint32_t ld_global_4(const void* p, Site site = Site::current()) {
  uint32_t v;
  sim::load_global(&v, p, 4, {"ld_global_4", site});
  return v;
}
inline void st_global_16(void* p, const Vec16& v, Site site = Site::current()) {
  sim::store_global(p, &v, 16, {"st_global_16", site});
}
inline void st_global_8(void* p, uint32_t lo, uint32_t hi, Site site = Site::current()) {
  const uint32_t v[2] = {lo, hi};
  sim::store_global(p, v, 8, {"st_global_8", site});
}
inline void st_global_4(void* p, uint32_t v, Site site = Site::current()) {
  sim::store_global(p, &v, 4, {"st_global_4", site});
}
inline void st_global_2(void* p, uint16_t v, Site site = Site::current()) {
  sim::store_global(p, &v, 2, {"st_global_2", site});
}

// --- asynchronous copies
inline void cp_async_16(uint32_t shared, const void* global, bool valid,
                        Site site = Site::current()) {
  sim::begin_copy(shared, valid ? global : nullptr, {"cp_async_16", site});
}
inline void cp_async_commit() { sim::commit_copies(); }
template <int pending>
inline void cp_async_wait() {
  sim::wait_for_copies(pending);
}

// --- shared memory
inline uint32_t ld_shared_4(uint32_t shared, Site site = Site::current()) {
  uint32_t v;
  sim::load_shared(&v, shared, 4, {"ld_shared_4", site});
  return v;
}
inline void ld_shared_8(uint32_t shared, uint32_t& lo, uint32_t& hi, Site site = Site::current()) {
  uint32_t v[2];
  sim::load_shared(v, shared, 8, {"ld_shared_8", site});
  lo = v[0], hi = v[1];
}
inline Vec16 ld_shared_16(uint32_t shared, Site site = Site::current()) {
  Vec16 v;
  sim::load_shared(&v, shared, 16, {"ld_shared_16", site});
  return v;
}
inline void st_shared_4(uint32_t shared, uint32_t v, Site site = Site::current()) {
  sim::store_shared(shared, &v, 4, {"st_shared_4", site});
}
inline void st_shared_16(uint32_t shared, const Vec16& v, Site site = Site::current()) {
  sim::store_shared(shared, &v, 16, {"st_shared_16", site});
}

// --- warp-wide instructions
template <int matrices, bool transposed>
RNK_SIM_INLINE void ldmatrix(uint32_t (&r)[matrices], uint32_t shared,
                             const sim::Instruction& instruction) {
  const int lane = sim::current->lane;
  sim::Operands& o = sim::current->warp->operands;
  o.address[lane] = shared;
  sim::with_warp(instruction, sim::execute_ldmatrix<matrices, transposed>);
#pragma GCC unroll 4
  for (int i = 0; i < matrices; ++i) r[i] = o.result[i][lane];
}
RNK_SIM_INLINE void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared, Site site = Site::current()) {
  ldmatrix<4, false>(r, shared, {"ldmatrix_x4", site});
}
RNK_SIM_INLINE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared,
                                      Site site = Site::current()) {
  ldmatrix<4, true>(r, shared, {"ldmatrix_x4_trans", site});
}
RNK_SIM_INLINE void ldmatrix_x2(uint32_t (&r)[2], uint32_t shared, Site site = Site::current()) {
  ldmatrix<2, false>(r, shared, {"ldmatrix_x2", site});
}
RNK_SIM_INLINE void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t shared,
                                      Site site = Site::current()) {
  ldmatrix<2, true>(r, shared, {"ldmatrix_x2_trans", site});
}

RNK_SIM_INLINE uint32_t exchange(uint32_t v, int mask, const sim::Instruction& instruction,
                                 void (*execute)(sim::Warp&, sim::Block&)) {
  const int lane = sim::current->lane;
  sim::Operands& o = sim::current->warp->operands;
  o.address[lane] = v;
  o.mask[lane] = mask;
  sim::with_warp(instruction, execute);
  return o.result[0][lane];
}
RNK_SIM_INLINE uint32_t shfl_xor(uint32_t v, int mask, Site site = Site::current()) {
  return exchange(v, mask, {"shfl_xor", site}, sim::execute_shfl_xor);
}
RNK_SIM_INLINE uint32_t movmatrix_trans(uint32_t v, Site site = Site::current()) {
  return exchange(v, 0, {"movmatrix_trans", site}, sim::execute_movmatrix);
}

template <class Format>
struct SimFormat;
template <>
struct SimFormat<Bf16> : sim::Bfloat16 {
  using Type = sim::Bfloat16;
};
template <>
struct SimFormat<Fp16> : sim::Float16 {
  using Type = sim::Float16;
};

template <int size>
RNK_SIM_INLINE void mma(float* d, const uint32_t (&a)[2 * size], const uint32_t (&b)[size],
                        const sim::Instruction& instruction,
                        void (*execute)(sim::Warp&, sim::Block&)) {
  const int lane = sim::current->lane;
  sim::Operands& o = sim::current->warp->operands;
#pragma GCC unroll 4
  for (int i = 0; i < 2 * size; ++i) o.a[i][lane] = a[i];
#pragma GCC unroll 2
  for (int i = 0; i < size; ++i) o.b[i][lane] = b[i];
  float* const upper = &o.d[lane / 4][lane % 4 * 2];
  float* const lower = &o.d[lane / 4 + 8][lane % 4 * 2];
  std::memcpy(upper, d, 8);
  std::memcpy(lower, d + 2, 8);
  sim::with_warp(instruction, execute);
  std::memcpy(d, upper, 8);
  std::memcpy(d + 2, lower, 8);
}
template <class Format>
RNK_SIM_INLINE void mma_k16(Format, float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                            Site site = Site::current()) {
  mma<2>(d, a, {b0, b1}, {"mma_k16", site}, sim::execute_mma<typename SimFormat<Format>::Type, 16>);
}
template <class Format>
RNK_SIM_INLINE void mma_k8(Format, float* d, uint32_t a0, uint32_t a1, uint32_t b0,
                           Site site = Site::current()) {
  mma<1>(d, {a0, a1}, {b0}, {"mma_k8", site},
         sim::execute_mma<typename SimFormat<Format>::Type, 8>);
}
RNK_SIM_INLINE void mma_tf32(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                             Site site = Site::current()) {
  mma<2>(d, a, {b0, b1}, {"mma_tf32", site}, sim::execute_mma_tf32);
}
inline uint32_t to_tf32(uint32_t float_bits) { return sim::Tfloat32::rounded(float_bits); }

// --- bits of numbers, and two elements in 32 bits
inline uint32_t float_bits(float v) { return std::bit_cast<uint32_t>(v); }
inline float bits_float(uint32_t v) { return std::bit_cast<float>(v); }
template <class Format>
inline uint32_t pack(Format, float lo, float hi) {
  using F = SimFormat<Format>;
  return F::from_float(lo) | static_cast<uint32_t>(F::from_float(hi)) << 16;
}
template <class Format>
inline void unpack(Format, uint32_t v, float& lo, float& hi) {
  using F = SimFormat<Format>;
  lo = F::to_float(static_cast<uint16_t>(v));
  hi = F::to_float(static_cast<uint16_t>(v >> 16));
}

template <class T>
inline T* computed_here(T* p) {
  return p;
}

template <class Format>
inline uint32_t relu(Format, uint32_t v) {
  float lo, hi;
  unpack(Format{}, v, lo, hi);
  return pack(Format{}, lo < 0 ? 0 : lo, hi < 0 ? 0 : hi);
}

}  // namespace rnk::cuda
