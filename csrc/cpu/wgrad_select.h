// Which way a weight gradient is computed; one instruction set's version, included in its
// namespace.
#pragma once

template <class Math, class E, class F>
auto with_wgrad_width(int64_t width, F f) {
  if (width == 1) return f.template operator()<LaneWgrad<Math, E, 1>>();
  if (width == 2) return f.template operator()<LaneWgrad<Math, E, 2>>();
  if constexpr (kLanes > 4)
    if (width == 4) return f.template operator()<LaneWgrad<Math, E, 4>>();
  if constexpr (kLanes > 8)
    if (width == 8) return f.template operator()<LaneWgrad<Math, E, 8>>();
  return f.template operator()<BroadcastWgrad<Math, E>>();
}

// Calls `f.template operator()<S>()` with the kernels that serve `w`.
template <class F>
auto with_wgrad(const Wgrad& w, F f) {
  const ConvProblem& p = w.problem;
  const int64_t width = p.in_width() == p.out_width() ? p.in_width() : 0;
  if (w.element == Element::f32) return with_wgrad_width<F32, float>(width, f);
#if RNK_BF16_DOT
  // Two rows at once, where there are two; at the border one of them meets zeros.
  if (!w.exact && p.out_h > 1) return with_wgrad_width<Bf16Dot, uint16_t>(width, f);
#endif
  return with_wgrad_width<F32, uint16_t>(width, f);
}

template <class S>
constexpr bool kHasWinogradWgrad = S::Math::kPerWord == 1 && !S::kIsLane;

// Where Winograd's way beats the plain one: few tiles do not pay for turning their sums into taps,
// few channels not for the transforms of pixels; and tiles beside the image are work for nothing.
inline bool winograd_serves(const Wgrad& w) {
  const ConvProblem& p = w.problem;
  if (w.exact || p.kernel_h != 3 || p.kernel_w != 3 || p.dilation_h != 1 || p.dilation_w != 1)
    return false;
  if (p.stride_h != p.stride_w || p.stride_h > 2) return false;
  if (std::min(p.in_width(), p.out_width()) < 16) return false;
  const int64_t tiles = (p.out_h + 1) / 2 * ((p.out_w + 1) / 2);
  const int64_t points =
      p.stride_h == 1 ? Winograd<Along<1>>::kPoints : Winograd<Along<2>>::kPoints;
  return tiles * p.batch >= 24 && 10 * points * tiles <= 8 * p.taps() * p.out_h * p.out_w;
}

template <class S>
constexpr bool kHasDepthwiseWgrad = S::Math::kPerWord == 1 && S::kWidth == 1;

// Where pixels are best read in place: to widen them for each of many taps takes longer than a
// copy.
template <class S>
bool depthwise_serves(const Wgrad& w) {
  return sizeof(typename S::Element) == sizeof(float) || w.problem.kernel_w <= 5;
}

// Calls `f.template operator()<Runner>()` with what computes `w`.
template <class F>
auto with_wgrad_runner(const Wgrad& w, F f) {
  return with_wgrad(w, [&]<class S>() {
    if constexpr (kHasWinogradWgrad<S>)
      if (winograd_serves(w))
        return w.problem.stride_h == 1 ? f.template operator()<WinogradWgradRunner<S, 1>>()
                                       : f.template operator()<WinogradWgradRunner<S, 2>>();
    if constexpr (kHasDepthwiseWgrad<S>)
      if (depthwise_serves<S>(w)) return f.template operator()<DepthwiseWgradRunner<S>>();
    return f.template operator()<WgradRunner<S>>();
  });
}

inline WgradPlan plan_wgrad(const Wgrad& w, int64_t threads) {
  return with_wgrad_runner(w, [&]<class R>() { return R::plan(w, threads); });
}
inline bool run_wgrad(const Wgrad& w, const WgradPlan& plan, float* partial, float* scratch,
                      int64_t begin, int64_t end) {
  return with_wgrad_runner(
      w, [&]<class R>() { return R::run(w, plan, partial, scratch, begin, end); });
}
inline bool reduce_wgrad(const Wgrad& w, const WgradPlan& plan, const float* partial, int64_t begin,
                         int64_t end) {
  return with_wgrad(
      w, [&]<class S>() { return WgradRunner<S>::reduce(w, plan, partial, begin, end); });
}
