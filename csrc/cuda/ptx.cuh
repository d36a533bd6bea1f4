// Every instruction the kernels use that C++ has no word for, once for the device and once for the
// block simulator of the tests (tests/cuda_sim/ptx_sim.h), which runs the same kernels on a CPU.
// Global and shared memory are reached through these functions alone, so that it can count and
// check every access. A shared address is a 32-bit number on the device and in the simulator.
#pragma once

#include <cstdint>

namespace rnk::cuda {

// Names the arithmetic of a kernel: the format of its operands, of so many bytes in memory. Sums
// are float32. TF32 is float32 without the low 13 bits of its fraction.
struct Bf16 {
  static constexpr int bytes = 2;
};
struct Fp16 {
  static constexpr int bytes = 2;
};
struct F32 {
  static constexpr int bytes = 4;
};
struct Tf32 {
  static constexpr int bytes = 4;
};

struct alignas(16) Vec16 {
  uint32_t x[4];
};

}  // namespace rnk::cuda

#ifdef RNK_CUDA_SIM
#include "ptx_sim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define RNK_DEVICE __device__ __forceinline__
#define RNK_HOST_DEVICE __host__ __device__ __forceinline__
#define RNK_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

namespace rnk::cuda {

RNK_DEVICE uint32_t shared_base() {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory));
}

RNK_DEVICE void sync_threads() { __syncthreads(); }

// --- global memory. Loads are of data that no kernel writes while this one runs.
RNK_DEVICE Vec16 ld_global_16(const void* p) {
  Vec16 v;
  asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "l"(p));
  return v;
}
RNK_DEVICE uint32_t ld_global_4(const void* p) {
  uint32_t v;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
RNK_DEVICE void st_global_16(void* p, const Vec16& v) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.x[0]), "r"(v.x[1]),
               "r"(v.x[2]), "r"(v.x[3])
               : "memory");
}
RNK_DEVICE void st_global_8(void* p, uint32_t lo, uint32_t hi) {
  asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(p), "r"(lo), "r"(hi) : "memory");
}
RNK_DEVICE void st_global_4(void* p, uint32_t v) {
  asm volatile("st.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
RNK_DEVICE void st_global_2(void* p, uint16_t v) {
  asm volatile("st.global.u16 [%0], %1;" ::"l"(p), "h"(v) : "memory");
}

// --- from global to shared memory, 16 bytes a thread, without a register: zeros where not `valid`
RNK_DEVICE void cp_async_16(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
RNK_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of the groups this thread committed last are under way.
template <int pending>
RNK_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// --- shared memory
RNK_DEVICE uint32_t ld_shared_4(uint32_t shared) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(shared) : "memory");
  return v;
}
RNK_DEVICE void ld_shared_8(uint32_t shared, uint32_t& lo, uint32_t& hi) {
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(lo), "=r"(hi) : "r"(shared) : "memory");
}
RNK_DEVICE Vec16 ld_shared_16(uint32_t shared) {
  Vec16 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "r"(shared)
               : "memory");
  return v;
}
RNK_DEVICE void st_shared_4(uint32_t shared, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared), "r"(v) : "memory");
}
RNK_DEVICE void st_shared_16(uint32_t shared, const Vec16& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(shared), "r"(v.x[0]), "r"(v.x[1]),
               "r"(v.x[2]), "r"(v.x[3])
               : "memory");
}
// 8x8 matrices of 2-byte elements; lane l gives the address of row l % 8 of matrix l / 8, and gets
// elements 2 * (l % 4) and the next of row l / 4 of each (of column l / 4, transposed).
RNK_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
RNK_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
RNK_DEVICE void ldmatrix_x2(uint32_t (&r)[2], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared)
               : "memory");
}
RNK_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared)
               : "memory");
}

// --- between the lanes of a warp
RNK_DEVICE uint32_t shfl_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
// Transposes an 8x8 matrix of 2-byte elements spread over the warp as ldmatrix spreads it.
RNK_DEVICE uint32_t movmatrix_trans(uint32_t v) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

// --- d += a * b. A is 16 x k by rows, B k x 8 by columns: g = lane / 4, t = lane % 4;
// a: rows g (even index) and g + 8 (odd), columns 2t, 2t+1 (plus 8 from index 2 on);
// b: rows 2t, 2t+1 (plus 8 for b1) of column g; d: rows g (0, 1) and g + 8 (2, 3), columns 2t,
// 2t+1.
#define RNK_MMA(Format, name)                                                                   \
  RNK_DEVICE void mma_k16(Format, float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                  \
        ".f32 "                                                                                 \
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                 \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                        \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                        \
  }                                                                                             \
  RNK_DEVICE void mma_k8(Format, float* d, uint32_t a0, uint32_t a1, uint32_t b0) {             \
    asm("mma.sync.aligned.m16n8k8.row.col.f32." name "." name                                   \
        ".f32 "                                                                                 \
        "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"                                          \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                        \
        : "r"(a0), "r"(a1), "r"(b0));                                                           \
  }
RNK_MMA(Bf16, "bf16")
RNK_MMA(Fp16, "f16")
#undef RNK_MMA

// The same for k = 8 in TF32, a column of A and a row of B for each register: a: rows g (even
// index) and g + 8 (odd), column t (plus 4 from index 2 on); b: row t (plus 4 for b1) of column g.
// So the operands of 32 bytes lie as those of mma_k16. The low 13 bits are dropped: what is to be
// rounded, `to_tf32` rounds, halves away from zero.
RNK_DEVICE void mma_tf32(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
RNK_DEVICE uint32_t to_tf32(uint32_t float_bits) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(float_bits)));
  return r;
}

RNK_DEVICE uint32_t float_bits(float v) { return __float_as_uint(v); }
RNK_DEVICE float bits_float(uint32_t v) { return __uint_as_float(v); }

// --- two elements in 32 bits, the first in the low half; rounds to nearest even
RNK_DEVICE uint32_t pack(Bf16, float lo, float hi) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
  return reinterpret_cast<const uint32_t&>(v);
}
RNK_DEVICE uint32_t pack(Fp16, float lo, float hi) {
  const __half2 v = __floats2half2_rn(lo, hi);
  return reinterpret_cast<const uint32_t&>(v);
}
RNK_DEVICE void unpack(Bf16, uint32_t v, float& lo, float& hi) {
  lo = __uint_as_float(v << 16);
  hi = __uint_as_float(v & 0xffff0000u);
}
RNK_DEVICE void unpack(Fp16, uint32_t v, float& lo, float& hi) {
  const float2 f = __half22float2(reinterpret_cast<const __half2&>(v));
  lo = f.x;
  hi = f.y;
}

// Keeps the compiler from computing a pointer anew wherever it is used.
template <class T>
RNK_DEVICE T* computed_here(T* p) {
  asm volatile("" : "+l"(p));
  return p;
}

// The larger of 0 and each of two elements; a NaN stays one.
RNK_DEVICE uint32_t relu(Bf16, uint32_t v) {
  uint32_t r;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(v), "r"(0));
  return r;
}
RNK_DEVICE uint32_t relu(Fp16, uint32_t v) {
  uint32_t r;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(v), "r"(0));
  return r;
}

}  // namespace rnk::cuda
#endif

namespace rnk::cuda {

// d += a * b over 32 bytes of channels: 16 of 2 bytes, 8 of 4.
template <class Format>
RNK_DEVICE void mma_32_bytes(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (Format::bytes == 4) {
    mma_tf32(d, a, b0, b1);
  } else {
    mma_k16(Format{}, d, a, b0, b1);
  }
}

}  // namespace rnk::cuda
