// The inner kernels of Winograd's way to compute the gradient of 3x3 taps for one instruction set;
// included in its namespace.
//
// The transpose of the way in which results are computed (winograd_kernels.h): where those are
// A^T ((G g) * (B^T d)), the taps' gradient is G^T ((A y) * (B^T d)) of a tile's pixels y of
// grad_output and its patch d. The products can be summed over all tiles before G^T turns the sums
// into taps: 16 of them stand for 9 taps.
//
// A block's patches lie as [point][channel vector][tile][lane], its tiles of grad_output alike, the
// sums as [weight][vector][input channel][lane].
#pragma once

// One dimension.
template <int STRIDE>
struct AlongTaps;

template <>
struct AlongTaps<1> {
  static constexpr int kGrads = 4;
  static constexpr int kGradOf[] = {0, 1, 2, 3};  // of each point

  static void grads(const Vec (&y)[2], Vec (&u)[4]) {
    u[0] = y[0];
    u[1] = add(y[0], y[1]);
    u[2] = sub(y[0], y[1]);
    u[3] = y[1];  // A has -1 here, which taps() makes good
  }
  static void taps(const Vec (&m)[4], Vec (&g)[3]) {
    constexpr float kHalf = 0.5f;
    const Vec half = broadcast(&kHalf), outer = mul(half, add(m[1], m[2]));
    g[0] = add(m[0], outer);
    g[1] = mul(half, sub(m[1], m[2]));
    g[2] = sub(outer, m[3]);
  }
};

template <>
struct AlongTaps<2> {
  static constexpr int kGrads = 3;
  static constexpr int kGradOf[] = {0, 1, 2, 0, 2};

  static void grads(const Vec (&y)[2], Vec (&u)[3]) {
    u[0] = y[0];
    u[1] = add(y[0], y[1]);
    u[2] = y[1];
  }
  static void taps(const Vec (&m)[4], Vec (&g)[3]) {
    g[0] = add(m[0], m[1]);
    g[1] = m[3];
    g[2] = add(m[1], m[2]);
  }
};

// Both dimensions.
template <int STRIDE>
struct WinogradTaps {
  using W = Winograd<Along<STRIDE>>;
  using One = AlongTaps<STRIDE>;
  static constexpr int kGrads = One::kGrads * One::kGrads;

  // A tile's pixels of grad_output; a point's result goes `step` words behind the last one's.
  [[gnu::always_inline]] static void grads(const Vec (&y)[2][2], float* to, int64_t step) {
    Vec left[One::kGrads], right[One::kGrads];
    One::grads({y[0][0], y[1][0]}, left);
    One::grads({y[0][1], y[1][1]}, right);
    for (int i = 0; i < One::kGrads; ++i) {
      Vec u[One::kGrads];
      One::grads({left[i], right[i]}, u);
      for (int j = 0; j < One::kGrads; ++j, to += step) store(to, u[j]);
    }
  }

  // Sums, `step` words apart, to the taps' gradient, `tap_step` words apart.
  [[gnu::always_inline]] static void taps(const float* m, int64_t step, float* to,
                                          int64_t tap_step) {
    Vec columns[4][3];
    for (int j = 0; j < 4; ++j) {
      Vec column[4];
      for (int i = 0; i < 4; ++i) column[i] = load(m + (i * 4 + j) * step);
      One::taps(column, columns[j]);
    }
    for (int i = 0; i < 3; ++i) {
      const Vec row[4] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
      Vec g[3];
      One::taps(row, g);
      for (int j = 0; j < 3; ++j, to += tap_step) store(to, g[j]);
    }
  }

  // The points whose products are summed for one weight.
  struct Pairs {
    int count = 0;
    int patch[4] = {}, grad[4] = {};
  };
  static constexpr std::array<Pairs, W::kWeights> pairs() {
    std::array<Pairs, W::kWeights> of = {};
    for (int p = 0; p < W::kPoints; ++p) {
      Pairs& pairs = of[W::kWeightOf[p]];
      pairs.patch[pairs.count] = p;
      pairs.grad[pairs.count++] =
          One::kGradOf[p / W::kSide] * One::kGrads + One::kGradOf[p % W::kSide];
    }
    return of;
  }
  static constexpr std::array<Pairs, W::kWeights> kPairs = pairs();
};

// Where the operands of the products of one weight lie.
struct TileSums {
  const float* patches;
  const float* grads;
  float* to;
  int64_t patch_words, grad_words;  // from a point's pixels to the next one's
  int64_t grad_step;                // from a vector of grad_output to the next one
  int64_t vector_step;              // from a vector's sums to the next one's
  int64_t tiles;
  bool first;  // nothing was summed yet
};

// CHANNELS input channels x VECS vectors of output channels.
template <int CHANNELS, int VECS, class Pairs>
inline void sum_tiles(const TileSums& b, const Pairs& pairs, const float* patches,
                      const float* grads, float* to) {
  constexpr int kAccs = CHANNELS * VECS;
  const int64_t grad_step = b.grad_step, vector_step = b.vector_step;
  Vec acc[kAccs];
#pragma GCC unroll 16
  for (Vec& sum : acc) sum = zero();
  for (int i = 0; i < pairs.count; ++i) {
    const float* x = patches + pairs.patch[i] * b.patch_words;
    const float* g = grads + pairs.grad[i] * b.grad_words;
    const float* const end = x + b.tiles * kLanes;
    for (; x < end; x += kLanes, g += kLanes) {
      Vec gv[VECS];
      for (int v = 0; v < VECS; ++v) gv[v] = load(g + v * grad_step);
#pragma GCC unroll 16
      for (int c = 0; c < CHANNELS; ++c) {
        const Vec xv = broadcast(x + c);
        for (int v = 0; v < VECS; ++v) acc[c * VECS + v] = fma(xv, gv[v], acc[c * VECS + v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kAccs; ++i) {
    float* sum = to + i / VECS * kLanes + i % VECS * vector_step;
    store(sum, b.first ? acc[i] : add(load(sum), acc[i]));
  }
}
