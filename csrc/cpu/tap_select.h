// Which way a TapConv is computed; one instruction set's version, included in its namespace.
#pragma once

template <class S>
constexpr bool kHasWinograd = S::Math::kPerWord == 1 && (S::kWidth == 0 || S::kWidth == 8);

// Where Winograd's way beats the plain one: sums of few channels do not pay for the transforms of
// pixels, those of stride 2 least; few tiles not for those of weights; and tiles beside the image
// or empty lanes for nothing.
template <class S>
bool winograd_serves(const TapConv& c) {
  const TapAxis &v = c.vertical, &h = c.horizontal;
  const int64_t stride = v.stride, width = std::min(c.src_width, c.dst_width);
  if (c.exact || v.taps != 3 || h.taps != 3 || v.dilation != 1 || h.dilation != 1) return false;
  if (h.stride != stride || stride > 2 || (stride == 2 && v.transposed)) return false;
  if (width < 8 || (S::kIsLane && c.src_channels() % kLanes != 0)) return false;
  if (stride == 2 && !S::kIsLane && width <= 16) return false;
  const int64_t tiles = (c.dst_rows + 1) / 2 * ((c.dst_cols + 1) / 2);
  const int64_t points = stride == 1 ? Winograd<1>::kPoints : Winograd<2>::kPoints;
  return tiles * c.batch >= std::min<int64_t>(c.src_width / 2, 24) &&
         10 * points * tiles <= 8 * c.taps() * c.dst_rows * c.dst_cols;
}

// Calls `f.template operator()<Runner>()` with what computes `c`.
template <class F>
auto with_runner(const TapConv& c, F f) {
  return with_strategy(c, [&]<class S>() {
    if constexpr (kHasWinograd<S>)
      if (winograd_serves<S>(c))
        return c.vertical.stride == 1 ? f.template operator()<WinogradRunner<S, 1>>()
                                      : f.template operator()<WinogradRunner<S, 2>>();
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
