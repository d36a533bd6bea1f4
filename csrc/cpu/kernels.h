// The table of functions that each instruction set provides.
#pragma once

#include <cstdint>

#include "relayout_plan.h"
#include "tap_conv.h"
#include "wgrad_plan.h"

namespace rnk::cpu {

struct Kernels {
  const char* name;

  // fprop and dgrad; where run_taps returns false, only exact sums tell what is infinite or NaN
  TapPlan (*plan_taps)(const TapConv&, int64_t threads);
  bool (*run_taps)(const TapConv&, const TapPlan&, float* scratch, int64_t begin, int64_t end);

  // wgrad; the two that write grad_weight return whether all that they wrote is finite
  WgradPlan (*plan_wgrad)(const Wgrad&, int64_t threads);
  bool (*run_wgrad)(const Wgrad&, const WgradPlan&, float* partial, float* scratch, int64_t begin,
                    int64_t end);
  bool (*reduce_wgrad)(const Wgrad&, const WgradPlan&, const float* partial, int64_t begin,
                       int64_t end);

  void (*run_relayout)(const Relayout&, int64_t begin, int64_t end);

  // Runs multiply-adds that never leave the registers; returns their FLOPs.
  int64_t (*run_peak)(Element, int64_t rounds, float* sink);
};

// The best table this processor can run, or the one RESNEXT_KERNELS_CPU_ISA names; never null.
const Kernels& kernels();

// Bytes of a core's second-level cache, as the system tells; 1 MiB where it does not.
int64_t second_level_cache();

namespace portable {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512_bf16 {
extern const Kernels table;
}
#endif

}  // namespace rnk::cpu
