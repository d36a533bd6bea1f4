// Kernels for AVX2 with FMA.
#include "isa_begin.h"
#if defined(__x86_64__)
#define RNK_BF16_DOT 0
#define RNK_VECTOR_OPERAND(v) "+x"(v)
#pragma GCC target("avx2,fma")
namespace rnk::cpu::avx2 {
namespace {
#include "simd_avx2.h"
#include "tap_kernels.h"
#include "finite.h"
#include "strategy.h"
#include "pack.h"
#include "look_ahead.h"
#include "tap_output.h"
#include "tap_run.h"
#include "winograd_blocks.h"
#include "winograd_kernels.h"
#include "winograd_run.h"
#include "tap_select.h"
#include "wgrad_rows.h"
#include "wgrad_kernels.h"
#include "wgrad_run.h"
#include "depthwise_wgrad_run.h"
#include "winograd_wgrad_kernels.h"
#include "winograd_wgrad_run.h"
#include "wgrad_select.h"
#include "peak.h"
}  // namespace

const Kernels table = {"avx2", plan_taps, run_taps, plan_wgrad, run_wgrad, reduce_wgrad, run_peak};
}  // namespace rnk::cpu::avx2
#endif
