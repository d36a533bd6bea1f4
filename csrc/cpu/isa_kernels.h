// All kernels of one instruction set; included in its namespace, behind its simd_*.h.
#pragma once

#include "look_ahead.h"
#include "tap_kernels.h"
#include "finite.h"
#include "strategy.h"
#include "pack.h"
#include "tap_output.h"
#include "tap_plan.h"
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
#include "relayout.h"
#include "peak.h"

constexpr Kernels kernels_named(const char* name) {
  return {name, plan_taps, run_taps, plan_wgrad, run_wgrad, reduce_wgrad, run_relayout, run_peak};
}
