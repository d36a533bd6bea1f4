// The inner kernels of the weight gradient for one instruction set; included in its namespace.
// Accumulators stay in registers over a few output rows; sums have the layout of packed weights.
// They are float32 for every element type.
#pragma once

// What is asked of the memory for the next rows, see `LookAhead`.
struct WgradAhead {
  LookAhead input, grad;

  [[gnu::always_inline]] void part() {
    input.part();
    grad.part();
  }
};

// Pixels that one kernel call sums over: `rows` rows of words (`wgrad_rows.h`) of input and
// grad_output.
struct PixelRows {
  int64_t rows = 0, columns = 0;
  const int64_t* input = nullptr;  // words from the unit's place in the tile
  const int64_t* grad = nullptr;   // likewise; kMaxRun - 1 columns of zeros at either end of a row
  WgradAhead* ahead = nullptr;     // asked at each row, or null
};

// RUN horizontal taps whose input columns are neighbours: an input pixel is loaded and spread once
// and meets as many grad_output pixels. to[r] are the sums of tap r.
template <class Math, int WIDTH, int RUN, int STEP>
[[gnu::always_inline]] inline void wgrad_lane_steps(const float* x, const Vec (&grad)[RUN],
                                                    Vec (&acc)[RUN * WIDTH]) {
  const Vec xv = spread<WIDTH, STEP>(load(x));
#pragma GCC unroll 3
  for (int r = 0; r < RUN; ++r) {
    Vec& sum = acc[r * WIDTH + STEP];
    sum = Math::madd(sum, xv, grad[r]);
  }
  if constexpr (STEP + 1 < WIDTH) wgrad_lane_steps<Math, WIDTH, RUN, STEP + 1>(x, grad, acc);
}

// Groups of few channels have so few sums that each would wait for itself: several columns have
// sums of their own.
template <class Math, int WIDTH, int RUN>
inline void wgrad_lane_kernel(const PixelRows& pixels, const float* input, const float* grad,
                              float* const (&to)[RUN]) {
  constexpr int kSums = RUN * WIDTH, kColumns = std::clamp(kMaxColumns / kSums, 1, 4);
  Vec acc[kColumns][kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kColumns * kSums; ++i) acc[i / kSums][i % kSums] = zero();
  for (int64_t row = 0; row < pixels.rows; ++row) {
    if (pixels.ahead) pixels.ahead->part();
    const float *x = input + pixels.input[row], *g = grad + pixels.grad[row];
    const auto column = [&](Vec(&sums)[kSums]) {
      Vec gv[RUN];
      for (int r = 0; r < RUN; ++r) gv[r] = load(g - r * kLanes);
      wgrad_lane_steps<Math, WIDTH, RUN, 0>(x, gv, sums);
      x += kLanes;
      g += kLanes;
    };
    int64_t left = pixels.columns + RUN - 1;
    for (; left >= kColumns; left -= kColumns)
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) column(acc[c]);
    for (; left > 0; --left) column(acc[0]);
  }
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) {
    float* sum = to[i / WIDTH] + i % WIDTH * kLanes;
    Vec all = load(sum);
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) all = add(all, acc[c][i]);
    store(sum, all);
  }
}

// The same for CHANNELS input channels x VECS vectors of output channels of one group. A call's
// pixels are summed up apart: one sum of all pixels of a batch would lose more to rounding.
template <class Math, int RUN, int CHANNELS, int VECS>
inline void wgrad_broadcast_kernel(const PixelRows& pixels, const float* input, int64_t col_words,
                                   const float* grad, int64_t grad_col_words,
                                   float* const (&to)[RUN], int64_t vector_step) {
  constexpr int kAccs = RUN * CHANNELS * VECS;
  Vec acc[kAccs];
  const auto place = [&](int i) {
    return to[i / (CHANNELS * VECS)] + i % VECS * vector_step + i / VECS % CHANNELS * kLanes;
  };
#pragma GCC unroll 28
  for (Vec& sum : acc) sum = zero();
  for (int64_t row = 0; row < pixels.rows; ++row) {
    if (pixels.ahead) pixels.ahead->part();
    const float *x = input + pixels.input[row], *g = grad + pixels.grad[row];
    for (int64_t j = 0; j < pixels.columns + RUN - 1; ++j, x += col_words, g += grad_col_words) {
      Vec gv[RUN * VECS];
#pragma GCC unroll 6
      for (int i = 0; i < RUN * VECS; ++i)
        gv[i] = load(g - i / VECS * grad_col_words + i % VECS * kLanes);
#pragma GCC unroll 16
      for (int c = 0; c < CHANNELS; ++c) {
        const Vec xv = broadcast(x + c);
#pragma GCC unroll 6
        for (int i = 0; i < RUN * VECS; ++i) {
          Vec& sum = acc[(i / VECS * CHANNELS + c) * VECS + i % VECS];
          sum = Math::madd(sum, xv, gv[i]);
        }
      }
    }
  }
#pragma GCC unroll 28
  for (int i = 0; i < kAccs; ++i) store(place(i), add(load(place(i)), acc[i]));
}

// What the loops need to know of an element type and width: units of channels, their words in the
// tiles, and the kernels over all channels of a unit for one run of taps. `to` has the sums of the
// run's taps, as [tap][input channel][lane] for each vector of output channels.
template <class MathT, class E, int WIDTH>
struct LaneWgrad {
  using Math = MathT;
  using Rows = WgradRows<Math, E>;
  using Fill = typename Rows::template Fill<true>;
  using Element = E;
  static constexpr bool kIsLane = true;
  static constexpr int kWidth = WIDTH;
  static constexpr int kRun = WIDTH * kMaxRun <= 2 * kMaxColumns ? kMaxRun : 1;
  static constexpr int kRunColumns = 1;  // narrowest row for which runs pay

  static int64_t units(const ConvProblem& p) { return (p.in_channels + kLanes - 1) / kLanes; }
  static int64_t in_channels(const ConvProblem&) { return kLanes; }
  static int64_t out_channels(const ConvProblem&) { return kLanes; }
  static int64_t col_words(const ConvProblem&) { return kLanes; }
  static int64_t grad_col_words(const ConvProblem&) { return kLanes; }
  static int64_t vectors(const ConvProblem&) { return 1; }

  template <int RUN>
  static void run(const ConvProblem&, const WgradPlan&, const PixelRows& pixels, const float* input,
                  const float* grad, float* const (&to)[RUN]) {
    wgrad_lane_kernel<Math, WIDTH, RUN>(pixels, input, grad, to);
  }
};

template <class MathT, class E>
struct BroadcastWgrad {
  using Math = MathT;
  using Rows = WgradRows<Math, E>;
  using Fill = typename Rows::template Fill<false>;
  using Element = E;
  static constexpr bool kIsLane = false;
  static constexpr int kWidth = 0;  // known when it runs
  static constexpr int kRun = kMaxRun;
  static constexpr int kRunColumns = 24;

  static int64_t units(const ConvProblem& p) { return p.groups; }
  static int64_t in_channels(const ConvProblem& p) { return p.in_width(); }
  static int64_t out_channels(const ConvProblem& p) { return p.out_width(); }
  static int64_t col_words(const ConvProblem& p) { return p.in_width(); }
  static int64_t vectors(const ConvProblem& p) { return (p.out_width() + kLanes - 1) / kLanes; }
  static int64_t grad_col_words(const ConvProblem& p) { return vectors(p) * kLanes; }

  template <int RUN>
  static void run(const ConvProblem& p, const WgradPlan& plan, const PixelRows& pixels,
                  const float* input, const float* grad, float* const (&to)[RUN]) {
    // 24 accumulators of 32 registers, or 12 of 16. Where they allow it, an input channel is loaded
    // once for two vectors.
    constexpr int kSingle = (RUN == 1 ? 8 : 4) * kBlockVectors;
    int64_t v = 0;
    if constexpr (kBlockVectors > 1 || RUN == 1)
      for (; v + 2 <= vectors(p); v += 2)
        channels<RUN, kSingle / 2, 2>(p, plan, pixels, input, grad, v, to);
    for (; v < vectors(p); ++v) channels<RUN, kSingle, 1>(p, plan, pixels, input, grad, v, to);
  }

  template <int RUN, int CHANNELS, int VECS>
  static void channels(const ConvProblem& p, const WgradPlan& plan, const PixelRows& pixels,
                       const float* input, const float* grad, int64_t v, float* const (&to)[RUN]) {
    const int64_t vector_step = p.taps() * p.in_width() * kLanes;
    int64_t c = 0;
    const auto call = [&]<int N>() {
      for (; c + N <= p.in_width(); c += N) {
        float* at[RUN];
        for (int r = 0; r < RUN; ++r) at[r] = to[r] + v * vector_step + c * kLanes;
        wgrad_broadcast_kernel<Math, RUN, N, VECS>(pixels, input + c, plan.col_words,
                                                   grad + v * kLanes, plan.grad_col_words, at,
                                                   vector_step);
      }
    };
    call.template operator()<CHANNELS>();
    if constexpr (CHANNELS > 8) call.template operator()<8>();
    if constexpr (CHANNELS > 4) call.template operator()<4>();
    call.template operator()<1>();
  }
};
