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

const Kernels table = {"portable", plan_taps,    run_taps, plan_wgrad,
                       run_wgrad,  reduce_wgrad, run_peak};
}  // namespace rnk::cpu::portable
