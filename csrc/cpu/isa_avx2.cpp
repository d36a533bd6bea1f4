// Kernels for AVX2 with FMA.
#include "isa_begin.h"
#if defined(__x86_64__)
#define RNK_BF16_DOT 0
#define RNK_VECTOR_OPERAND(v) "+x"(v)
RNK_TARGET_BEGIN("avx2,fma")
namespace rnk::cpu::avx2 {
namespace {
#include "simd_avx2.h"
#include "isa_kernels.h"
}  // namespace

const Kernels table = kernels_named("avx2");
}  // namespace rnk::cpu::avx2
RNK_TARGET_END
#endif
