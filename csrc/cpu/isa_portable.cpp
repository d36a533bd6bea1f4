// Kernels for any processor.
#include "isa_begin.h"
#define RNK_BF16_DOT 0
#if defined(__x86_64__)
#define RNK_VECTOR_OPERAND(v) "+x"(v)
#elif defined(__aarch64__)
#define RNK_VECTOR_OPERAND(v) "+w"(v)
#else
#define RNK_VECTOR_OPERAND(v) "+m"(v)
#endif

namespace rnk::cpu::portable {
namespace {
#include "simd_portable.h"
#include "isa_kernels.h"
}  // namespace

const Kernels table = kernels_named("portable");
}  // namespace rnk::cpu::portable
