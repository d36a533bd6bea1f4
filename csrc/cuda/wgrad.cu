#include "launch.cuh"
#include "plan_cache.h"
#include "wgrad.cuh"

namespace rnk::cuda {
namespace {

template <class Sums_>
struct Kind {
  using Sums = Sums_;
};

// Calls f with the format of the elements and the kind of sums for a problem.
template <class F>
auto with_sums(const ConvProblem& p, Element element, const F& f) {
  if (element_bytes(element) == 4) return f(F32{}, Kind<DirectSums>{});
  const auto with = [&](auto format) {
    if (is_merged(p)) return f(format, Kind<MergedSums>{});
    if (p.in_width() <= 16 && p.out_width() <= 16) return f(format, Kind<GroupSums<1, 2>>{});
    if (p.in_width() <= 32 && p.out_width() <= 32) return f(format, Kind<GroupSums<2, 2>>{});
    return f(format, Kind<GroupSums<2, 4>>{});
  };
  return element == Element::bf16 ? with(Bf16{}) : with(Fp16{});
}

struct WgradPlan {
  Plan plan;
  WgradShares shares;
  int splits = 0;
};

template <class Sums>
WgradPlan plan_sums(const ConvProblem& p, const Gpu& gpu) {
  WgradPlan w;
  w.shares = wgrad_shares(p, Sums::kOutputs, Sums::kAcross, Sums::kVectorChannels);
  const WgradShares& s = w.shares;
  const int sums_bytes = Sums::kCount * s.warps * 32 * 4;
  const TileShape shape{static_cast<int>(p.stride_h), kKernel,
                        static_cast<int>(p.out_h),    static_cast<int>(p.out_w),
                        pixel_bytes(s.vectors_in),    pixel_bytes(s.vectors_out)};
  TileBudget budget;
  budget.images = p.batch;
  budget.channel_blocks = ceil_div(s.groups, s.block_groups) * s.output_shares * s.input_shares;
  budget.most_blocks = Sums::kBlocks;
  budget.fixed_bytes = kMostAnchors * 4;
  budget.warps_along = kWgradWarps / s.warps;
  budget.least_ring = budget.warps_along > 1 ? sums_bytes : 0;
  budget.tile_clocks = Sums::kClocks;
  budget.stored_bytes = s.vectors_out * kVectorBytes;  // read, but the same to the memory
  budget.block_bytes = 2 * sums_bytes;                 // written, and read again
  w.plan = plan_of(shape, budget, gpu);
  w.splits = w.plan.blocks / budget.channel_blocks;
  return w;
}

WgradPlan plan_wgrad(const ConvProblem& p, Element element, const Gpu& gpu) {
  return with_sums(p, element, [&](auto, auto kind) {
    return plan_sums<typename decltype(kind)::Sums>(p, gpu);
  });
}

template <class Format, class Sums>
const char* launch_wgrad(const ConvProblem& p, const WgradConv& conv, const WgradPlan& w,
                         void* grad_weight, const Gpu& gpu, Stream stream) {
  const auto kernel =
      p.stride_h == 1 ? wgrad_kernel<Format, Unit, Sums> : wgrad_kernel<Format, Strided, Sums>;
  const char* error =
      launch(kernel, w.plan.blocks, kWgradThreads, w.plan.shared_bytes, gpu, stream, conv);
  if (error) return error;
  const int64_t weights = p.out_channels * kTaps * p.in_width();
  const SumSplits task{conv.partial, static_cast<unsigned char*>(grad_weight), weights, w.splits};
  const int lanes = sum_lanes(w.splits), block_weights = kSumThreads / lanes * kSumVector;
  const int blocks = static_cast<int>((weights + block_weights - 1) / block_weights);
  const auto sum = lanes == 1 ? sum_kernel<Format, 1> : sum_kernel<Format, kSumLanes>;
  return launch(sum, blocks, kSumThreads, kSumThreads * kVectorBytes, gpu, stream, task);
}

}  // namespace

size_t wgrad_workspace(const ConvProblem& p, Element element, const Gpu& gpu) {
  return sizeof(float) * plan_wgrad(p, element, gpu).splits * p.out_channels * kTaps * p.in_width();
}

const char* wgrad(const ConvProblem& p, Element element, const Images& grad_output,
                  const Images& input, void* workspace, void* grad_weight, const Gpu& gpu,
                  Stream stream) {
  if (const char* reason = not_supported_reason(p, element)) return reason;
  const WgradPlan w = plan_wgrad(p, element, gpu);
  if (!w.plan.blocks) return kNoRoom;
  WgradConv conv;
  conv.source = static_cast<const unsigned char*>(input.data);
  conv.source_strides = in_bytes(input.strides, element);
  conv.source_h = static_cast<int>(p.in_h), conv.source_w = static_cast<int>(p.in_w);
  conv.images = static_cast<int>(p.batch);
  conv.pad_h = static_cast<int>(p.pad_h), conv.pad_w = static_cast<int>(p.pad_w);
  conv.anchor_h = static_cast<int>(p.out_h), conv.anchor_w = static_cast<int>(p.out_w);
  conv.channel_blocks = w.plan.blocks / w.splits;
  conv.units = static_cast<int>(w.plan.units);
  conv.tiles = w.plan.tiles;
  conv.grad = static_cast<const unsigned char*>(grad_output.data);
  conv.grad_strides = in_bytes(grad_output.strides, element);
  conv.partial = static_cast<float*>(workspace);
  conv.in_channels = static_cast<int>(p.in_channels);
  conv.out_channels = static_cast<int>(p.out_channels);
  conv.in_width = static_cast<int>(p.in_width());
  conv.out_width = static_cast<int>(p.out_width());
  conv.shares = w.shares;
  return with_sums(p, element, [&](auto format, auto kind) {
    using Sums = typename decltype(kind)::Sums;
    return launch_wgrad<decltype(format), Sums>(p, conv, w, grad_weight, gpu, stream);
  });
}

}  // namespace rnk::cuda
