// Kernels for AVX-512 with the bfloat16 dot product.
#include "isa_begin.h"
#if defined(__x86_64__)
#define RNK_BF16_DOT 1
#define RNK_VECTOR_OPERAND(v) "+v"(v)
RNK_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
namespace rnk::cpu::avx512_bf16 {
namespace {
#include "simd_avx512.h"
#include "isa_kernels.h"
}  // namespace

const Kernels table = kernels_named("avx512_bf16");
}  // namespace rnk::cpu::avx512_bf16
RNK_TARGET_END
#endif
