// Which way a TapConv is computed; one instruction set's version, included in its namespace.
#pragma once

template <class S>
constexpr bool kHasWinograd = S::Math::kPerWord == 1 && (S::kWidth == 0 || S::kWidth == 8);

// Where Winograd's way beats the plain one: short sums do not pay for the transforms of pixels, few
// tiles not for those of weights, and tiles or vectors that are mostly empty for neither.
template <class S>
bool winograd_serves(const TapConv& c) {
  const auto plain = [](const TapAxis& a) {
    return a.taps == 3 && a.stride == 1 && a.dilation == 1;
  };
  const int64_t tiles = (c.dst_rows + 1) / 2 * ((c.dst_cols + 1) / 2);
  return !c.exact && plain(c.vertical) && plain(c.horizontal) &&
         std::min(c.src_width, c.dst_width) >= 8 &&
         tiles * c.batch >= std::min<int64_t>(c.src_width / 2, 24) &&
         c.dst_rows * c.dst_cols >= 2 * tiles && (!S::kIsLane || c.src_channels() % kLanes == 0);
}

// Calls `f.template operator()<Runner>()` with what computes `c`.
template <class F>
auto with_runner(const TapConv& c, F f) {
  return with_strategy(c, [&]<class S>() {
    if constexpr (kHasWinograd<S>)
      if (winograd_serves<S>(c)) return f.template operator()<WinogradRunner<S>>();
    return f.template operator()<TapRunner<S>>();
  });
}

inline TapPlan plan_taps(const TapConv& c, int64_t threads) {
  return with_runner(c, [&]<class R>() { return R::plan(c, threads); });
}
inline bool run_taps(const TapConv& c, const TapPlan& p, float* scratch, int64_t begin,
                     int64_t end) {
  return with_runner(c, [&]<class R>() { return R::run(c, p, scratch, begin, end); });
}
