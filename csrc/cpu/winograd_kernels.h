// The inner kernels of Winograd's F(2x2, 3x3) for one instruction set; included in its namespace.
//
// A tile is 2x2 destination pixels, which read a patch of 4x4 source pixels. With
//       |1  0 -1  0|       | 1    0   0 |
// B^T = |0  1  1  0|   G = |1/2  1/2 1/2|   A^T = |1  1  1  0|
//       |0 -1  1  0|       |1/2 -1/2 1/2|         |0  1 -1 -1|
//       |0  1  0 -1|       | 0    0   1 |
// a patch d and a kernel g give A^T ((G g G^T) * (B^T d B)) A: 16 products, one at each *point*, in
// place of 36. (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, 4.1.)
//
// A block's patches lie as [point][channel vector][tile][lane], its products as
// [vector][point][tile][lane].
#pragma once

constexpr int kPoints = 16;
constexpr int kTiles = kMaxColumns;           // of a block: the sums of a vector fill the registers
constexpr int kBlockWords = kTiles * kLanes;  // of one vector at one point

// One column of a patch times B^T.
[[gnu::always_inline]] inline void transform_column(const Vec (&d)[4], Vec (&v)[4]) {
  v[0] = sub(d[0], d[2]);
  v[1] = add(d[1], d[2]);
  v[2] = sub(d[2], d[1]);
  v[3] = sub(d[1], d[3]);
}

// Four such columns times B; a point's result goes `step` words behind the last one's.
[[gnu::always_inline]] inline void transform_columns(const Vec (&v)[4][4], float* to,
                                                     int64_t step) {
  for (int i = 0; i < 4; ++i, to += 4 * step) {
    store(to, sub(v[0][i], v[2][i]));
    store(to + step, add(v[1][i], v[2][i]));
    store(to + 2 * step, sub(v[2][i], v[1][i]));
    store(to + 3 * step, sub(v[1][i], v[3][i]));
  }
}

// The four pixels of a tile whose products at the points lie `step` words apart.
[[gnu::always_inline]] inline void transform_products(const float* m, int64_t step, Vec (&y)[4]) {
  Vec s[2][4];
  for (int j = 0; j < 4; ++j) {
    const Vec m0 = load(m + j * step), m1 = load(m + (4 + j) * step);
    const Vec m2 = load(m + (8 + j) * step), m3 = load(m + (12 + j) * step);
    s[0][j] = add(add(m0, m1), m2);
    s[1][j] = sub(sub(m1, m2), m3);
  }
  for (int i = 0; i < 2; ++i) {
    y[2 * i] = add(add(s[i][0], s[i][1]), s[i][2]);
    y[2 * i + 1] = sub(sub(s[i][1], s[i][2]), s[i][3]);
  }
}

// The weights of the nine taps at the 16 points, `step` words apart.
[[gnu::always_inline]] inline void transform_taps(const Vec (&g)[9], float* to, int64_t step) {
  constexpr float kHalf = 0.5f;
  const Vec half = broadcast(&kHalf);
  Vec v[4][3];
  for (int j = 0; j < 3; ++j) {
    const Vec outer = add(g[j], g[6 + j]);
    v[0][j] = g[j];
    v[1][j] = mul(half, add(outer, g[3 + j]));
    v[2][j] = mul(half, sub(outer, g[3 + j]));
    v[3][j] = g[6 + j];
  }
  for (int i = 0; i < 4; ++i, to += 4 * step) {
    const Vec outer = add(v[i][0], v[i][2]);
    store(to, v[i][0]);
    store(to + step, mul(half, add(outer, v[i][1])));
    store(to + 2 * step, mul(half, sub(outer, v[i][1])));
    store(to + 3 * step, v[i][2]);
  }
}

// Where the operands of a block's products lie.
struct Products {
  const float* patches;
  const float* weights;  // [vector][point][source channel][lane]
  float* to;
  int64_t channels;     // source channels of a group
  int64_t point_words;  // from a point's patches to the next one's
  int64_t weight_step;  // from a vector's weights to the next one's
};

// A source channel of a group at a time is broadcast to VECS vectors of destination channels.
// `between` is called once a point: work for the memory while this is work for the arithmetic.
template <int TILES, int VECS, class F>
void multiply_broadcast(const Products& b, F between) {
  const float* w = b.weights;
  const int64_t channels = b.channels, weight_step = b.weight_step;
  for (int p = 0; p < kPoints; ++p) {
    Vec acc[TILES * VECS];
#pragma GCC unroll 32
    for (Vec& sum : acc) sum = zero();
    const float* from = b.patches + p * b.point_words;
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
      float* to = b.to + (v * kPoints + p) * kBlockWords;
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
  const float* weights = b.weights;
  for (int p = 0; p < kPoints; ++p, weights += 8 * kLanes) {
    Vec w[8];
    for (int c = 0; c < 8; ++c) w[c] = load(weights + c * kLanes);
    between();
    const float* x = b.patches + p * b.point_words;
    float* to = b.to + p * kBlockWords;
    int t = 0;
    for (; t + kTogether <= tiles; t += kTogether)
      multiply_lane_tiles<kTogether>(x + t * kLanes, w, to + t * kLanes);
    for (; t < tiles; ++t) multiply_lane_tiles<1>(x + t * kLanes, w, to + t * kLanes);
  }
}
