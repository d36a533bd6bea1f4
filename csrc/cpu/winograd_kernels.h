// The inner kernels of Winograd's way to compute 3x3 taps for one instruction set; included in its
// namespace.
//
// A tile is 2x2 destination pixels, 4x4 in dgrad at stride 2; the source pixels that it reads are
// its patch. In each dimension a patch d and taps g give the results A^T ((G g) * (B^T d)), a
// product at each *point* (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
// 2016, 4.1). In two dimensions that makes 16 products in place of 36 at stride 1, and 25 at
// stride 2.
//
// A block's patches lie as [patch point][channel vector][tile][lane], its products as
// [vector][point][tile][lane].
#pragma once

constexpr int kBlockWords = kTiles * kLanes;  // of one vector at one point

// One dimension, whose results are STRIDE source pixels apart. Points may have the patch's or the
// taps' part in common.
template <int STRIDE>
struct Along;

// F(2, 3): three taps on four pixels, by four products for six.
template <>
struct Along<1> {
  static constexpr int kPixels = 4, kStep = 2;  // of a patch; from a tile's patch to the next
  static constexpr int kPoints = 4, kPatches = 4, kResults = 2;
  static constexpr int kPatchOf[] = {0, 1, 2, 3}, kWeightOf[] = {0, 1, 2, 3};

  static int64_t first_pixel(const TapAxis& axis) { return axis.first_source(0); }

  static void patch(const Vec (&d)[4], Vec (&v)[4]) {
    v[0] = sub(d[0], d[2]);
    v[1] = add(d[1], d[2]);
    v[2] = sub(d[2], d[1]);
    v[3] = sub(d[1], d[3]);
  }
  static void taps(const Vec (&g)[3], Vec (&u)[4]) {
    constexpr float kHalf = 0.5f;
    const Vec half = broadcast(&kHalf), outer = add(g[0], g[2]);
    u[0] = g[0];
    u[1] = mul(half, add(outer, g[1]));
    u[2] = mul(half, sub(outer, g[1]));
    u[3] = g[2];
  }
  static void results(const Vec (&m)[4], Vec (&y)[2]) {
    y[0] = add(add(m[0], m[1]), m[2]);
    y[1] = sub(sub(m[1], m[2]), m[3]);
  }
};

// The outer taps are F(2, 2) on the even pixels, three products for four; the middle one is alone
// with the odd pixels.
template <>
struct Along<2> {
  static constexpr int kPixels = 5, kStep = 4;
  static constexpr int kPoints = 5, kPatches = 5, kResults = 2;
  static constexpr int kPatchOf[] = {0, 1, 2, 3, 4}, kWeightOf[] = {0, 1, 2, 3, 3};

  static int64_t first_pixel(const TapAxis& axis) { return axis.first_source(0); }
  static void patch(const Vec (&d)[5], Vec (&v)[5]) {
    v[0] = sub(d[0], d[2]);
    v[1] = d[2];
    v[2] = sub(d[4], d[2]);
    v[3] = d[1];
    v[4] = d[3];
  }
  static void taps(const Vec (&g)[3], Vec (&u)[4]) {
    u[0] = g[0];
    u[1] = add(g[0], g[2]);
    u[2] = g[2];
    u[3] = g[1];
  }
  static void results(const Vec (&m)[5], Vec (&y)[2]) {
    y[0] = add(add(m[0], m[1]), m[3]);
    y[1] = add(add(m[2], m[1]), m[4]);
  }
};

// dgrad at stride 2, whose taps come turned: results in pairs of one that meets the middle tap
// alone and one that meets the outer taps, which are F(2, 2) as above. For odd padding: with an
// even one the pairs would be the other way round.
struct Phased {
  static constexpr int kPixels = 3, kStep = 2;
  static constexpr int kPoints = 5, kPatches = 4, kResults = 4;
  static constexpr int kPatchOf[] = {0, 1, 2, 3, 1}, kWeightOf[] = {0, 1, 2, 3, 3};

  static int64_t first_pixel(const TapAxis& axis) { return axis.first_source(1); }
  static void patch(const Vec (&d)[3], Vec (&v)[4]) {
    v[0] = sub(d[0], d[1]);
    v[1] = d[1];
    v[2] = sub(d[2], d[1]);
    v[3] = d[0];
  }
  static void taps(const Vec (&g)[3], Vec (&u)[4]) { Along<2>::taps(g, u); }
  static void results(const Vec (&m)[5], Vec (&y)[4]) {
    y[0] = m[3];
    y[1] = add(m[0], m[1]);
    y[2] = m[4];
    y[3] = add(m[2], m[1]);
  }
};

// Both dimensions.
template <class One>
struct Winograd {
  static constexpr int kSide = One::kPixels;
  static constexpr int kPoints = One::kPoints * One::kPoints;
  static constexpr int kPatches = One::kPatches * One::kPatches;
  static constexpr int kWeights = 16;
  static constexpr int kStep = One::kStep;
  static constexpr int kShared = kSide - kStep;  // columns of a patch that the next one has, too
  static constexpr int kResults = One::kResults;
  static constexpr int kPixels = kResults * kResults;  // of a tile

  static int64_t tiles(int64_t pixels) { return (pixels + kResults - 1) / kResults; }

  // The patch whose columns were transformed already; a point's result goes `step` words behind the
  // last one's.
  [[gnu::always_inline]] static void patch(const Vec (&columns)[kSide][One::kPatches], float* to,
                                           int64_t step) {
    for (int i = 0; i < One::kPatches; ++i) {
      Vec row[kSide], v[One::kPatches];
      for (int j = 0; j < kSide; ++j) row[j] = columns[j][i];
      One::patch(row, v);
      for (int j = 0; j < One::kPatches; ++j, to += step) store(to, v[j]);
    }
  }

  // n channels (N, if that is not 0), from `channel` on, of the patches of a row of tiles, whose
  // pixels lie at `pixels`, `row` of them in a row. A column that two tiles share is transformed
  // once. The next tile's vectors go one vector behind a tile's.
  template <int N, class E>
  static void patch_row(const E* const* pixels, int64_t row, int64_t tiles, int64_t channel, int n,
                        float* to, int64_t step) {
    const auto column = [=](int64_t j, Vec(&v)[One::kPatches]) {
      Vec d[kSide];
      for (int i = 0; i < kSide; ++i)
        d[i] = load_elements(pixels[i * row + j] + channel, N ? N : n);
      One::patch(d, v);
    };
    Vec v[kSide][One::kPatches];
    for (int j = 0; j < kShared; ++j) column(j, v[j]);
    for (int64_t x = 0; x < tiles; ++x, to += kLanes) {
      for (int j = kShared; j < kSide; ++j) column(kStep * x + j, v[j]);
      patch(v, to, step);
      for (int j = 0; j < kShared; ++j)
        for (int i = 0; i < One::kPatches; ++i) v[j][i] = v[kStep + j][i];
    }
  }

  // The nine taps to the points' weights, `step` words apart.
  [[gnu::always_inline]] static void taps(const Vec (&g)[3][3], float* to, int64_t step) {
    Vec rows[3][4], u[4][4];
    for (int i = 0; i < 3; ++i) One::taps(g[i], rows[i]);
    for (int j = 0; j < 4; ++j) {
      const Vec column[3] = {rows[0][j], rows[1][j], rows[2][j]};
      One::taps(column, u[j]);
    }
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j, to += step) store(to, u[j][i]);
  }
  static constexpr std::array<int, kPoints> both(const int (&of)[One::kPoints], int each) {
    std::array<int, kPoints> all = {};
    for (int p = 0; p < kPoints; ++p) all[p] = of[p / One::kPoints] * each + of[p % One::kPoints];
    return all;
  }
  static constexpr std::array<int, kPoints> kPatchOf = both(One::kPatchOf, One::kPatches);
  static constexpr std::array<int, kPoints> kWeightOf = both(One::kWeightOf, 4);

  // The pixels of the tile whose products lie `step` words apart.
  [[gnu::always_inline]] static void results(const float* m, int64_t step, Vec (&y)[kPixels]) {
    Vec rows[kResults][One::kPoints], some[kResults];
    for (int j = 0; j < One::kPoints; ++j) {
      Vec column[One::kPoints];
      for (int i = 0; i < One::kPoints; ++i) column[i] = load(m + (i * One::kPoints + j) * step);
      One::results(column, some);
      for (int i = 0; i < kResults; ++i) rows[i][j] = some[i];
    }
    for (int i = 0; i < kResults; ++i) {
      One::results(rows[i], some);
      for (int j = 0; j < kResults; ++j) y[i * kResults + j] = some[j];
    }
  }
};

// Where the operands of a block's products lie.
struct Products {
  const float* patches;
  const float* weights;  // [vector][weight][source channel][lane]
  float* to;
  int points;
  const int *patch_of, *weight_of;  // of each point
  int64_t channels;                 // source channels of a group
  int64_t point_words;              // from a point's patches to the next one's
  int64_t weight_step;              // from a vector's weights to the next one's
};

// A source channel of a group at a time is broadcast to VECS vectors of destination channels.
// `between` is called once a point: work for the memory while this is work for the arithmetic.
template <int TILES, int VECS, class F>
void multiply_broadcast(const Products& b, F between) {
  const int64_t channels = b.channels, weight_step = b.weight_step;
  for (int p = 0; p < b.points; ++p) {
    Vec acc[TILES * VECS];
#pragma GCC unroll 32
    for (Vec& sum : acc) sum = zero();
    const float* from = b.patches + b.patch_of[p] * b.point_words;
    const float* w = b.weights + b.weight_of[p] * channels * kLanes;
    for (int64_t left = channels; left > 0; left -= kLanes, from += kBlockWords) {
      const float *x = from, *end = from + std::min<int64_t>(left, kLanes);
      for (; x < end; ++x, w += kLanes) {
        Vec wv[VECS];
        for (int v = 0; v < VECS; ++v) wv[v] = load(w + v * weight_step);
#pragma GCC unroll 16
        for (int t = 0; t < TILES; ++t) {
          const Vec xv = broadcast(x + t * kLanes);
          for (int v = 0; v < VECS; ++v) acc[t * VECS + v] = fma(xv, wv[v], acc[t * VECS + v]);
        }
      }
    }
    between();
    for (int v = 0; v < VECS; ++v) {
      float* to = b.to + (v * b.points + p) * kBlockWords;
#pragma GCC unroll 16
      for (int t = 0; t < TILES; ++t) store(to + t * kLanes, acc[t * VECS + v]);
    }
  }
}

template <int VECS, class F, int... T>
void multiply_broadcast(int tiles, const Products& b, F between, std::integer_sequence<int, T...>) {
  using Multiply = void (*)(const Products&, F);
  static constexpr Multiply kByTiles[] = {multiply_broadcast<T + 1, VECS, F>...};
  kByTiles[tiles - 1](b, between);
}

// Vectors of several groups of 8 channels.
template <int TILES>
[[gnu::always_inline]] inline void multiply_lane_tiles(const float* x, const Vec (&w)[8],
                                                       float* to) {
  Vec acc[TILES];
#pragma GCC unroll 16
  for (Vec& sum : acc) sum = zero();
  const auto half = [&]<int HALF>(std::integral_constant<int, HALF>) {
    Vec word[TILES];
#pragma GCC unroll 16
    for (int t = 0; t < TILES; ++t) word[t] = half_groups<HALF>(x + t * kLanes);
    const auto step = [&]<int STEP>(std::integral_constant<int, STEP>) {
#pragma GCC unroll 16
      for (int t = 0; t < TILES; ++t)
        acc[t] = fma(spread<4, STEP>(word[t]), w[4 * HALF + STEP], acc[t]);
    };
    step(std::integral_constant<int, 0>());
    step(std::integral_constant<int, 1>());
    step(std::integral_constant<int, 2>());
    step(std::integral_constant<int, 3>());
  };
  half(std::integral_constant<int, 0>());
  half(std::integral_constant<int, 1>());
#pragma GCC unroll 16
  for (int t = 0; t < TILES; ++t) store(to + t * kLanes, acc[t]);
}

// Not inlined: the caller's variables would take registers from its loops.
template <class F>
[[gnu::noinline]] void multiply_lane(int tiles, const Products& b, F between) {
  constexpr int kTogether = kTiles / 2;
  for (int p = 0; p < b.points; ++p) {
    const float* weights = b.weights + b.weight_of[p] * 8 * kLanes;
    Vec w[8];
    for (int c = 0; c < 8; ++c) w[c] = load(weights + c * kLanes);
    between();
    const float* x = b.patches + b.patch_of[p] * b.point_words;
    float* to = b.to + p * kBlockWords;
    int t = 0;
    for (; t + kTogether <= tiles; t += kTogether)
      multiply_lane_tiles<kTogether>(x + t * kLanes, w, to + t * kLanes);
    for (; t < tiles; ++t) multiply_lane_tiles<1>(x + t * kLanes, w, to + t * kLanes);
  }
}
