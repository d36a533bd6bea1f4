// Which way a TapConv is computed; one instruction set's version, included in its namespace.
#pragma once

template <class S>
constexpr bool kHasWinograd = S::Math::kPerWord == 1 && (S::kWidth == 0 || S::kWidth == 8);

// Calls `f.template operator()<One>()` with one dimension of Winograd's way to compute `c`.
template <class F>
auto with_along(const TapConv& c, F f) {
  if (c.vertical.stride == 1) return f.template operator()<Along<1>>();
  if (c.vertical.transposed) return f.template operator()<Phased>();
  return f.template operator()<Along<2>>();
}

// Where Winograd's way beats the plain one: sums of few channels do not pay for the transforms of
// pixels, those of stride 2 least (fprop's); few tiles not for those of weights; and tiles beside
// the image or empty lanes for nothing.
template <class S>
bool winograd_serves(const TapConv& c) {
  const TapAxis &v = c.vertical, &h = c.horizontal;
  const int64_t stride = v.stride, width = std::min(c.src_width, c.dst_width);
  const bool phased = stride == 2 && v.transposed;
  if (c.exact || v.taps != 3 || h.taps != 3 || v.dilation != 1 || h.dilation != 1) return false;
  if (h.stride != stride || stride > 2) return false;
  if (phased && (v.pad % 2 == 0 || h.pad % 2 == 0)) return false;
  if (width < 8 || (S::kIsLane && c.src_channels() % kLanes != 0)) return false;
  if (stride == 2 && !phased && !S::kIsLane && width <= 16) return false;
  return with_along(c, [&]<class One>() {
    using W = Winograd<One>;
    const int64_t tiles = W::tiles(c.dst_rows) * W::tiles(c.dst_cols);
    const int64_t least_tiles = std::min<int64_t>(phased ? c.src_width : c.src_width / 2, 24);
    const int64_t anchors = phased ? c.src_rows * c.src_cols : c.dst_rows * c.dst_cols;
    const int64_t saved = phased ? 0 : 2;  // of ten products
    return tiles * c.batch >= least_tiles &&
           10 * W::kPoints * tiles <= (10 - saved) * c.taps() * anchors;
  });
}

// Calls `f.template operator()<Runner>()` with what computes `c`.
template <class F>
auto with_runner(const TapConv& c, F f) {
  return with_strategy(c, [&]<class S>() {
    if constexpr (kHasWinograd<S>)
      if (winograd_serves<S>(c))
        return with_along(
            c, [&]<class One>() { return f.template operator()<WinogradRunner<S, One>>(); });
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
