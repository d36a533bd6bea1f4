// The inner kernels of fprop and dgrad for one instruction set; included in its namespace.
//
// A tile holds source rows as 32-bit words, one float or one pair of bf16 each, compact by unit
// and padded with zeros, so that a kernel sees constant steps and no border. Both kernels keep one
// accumulator vector per destination column (and channel vector) over all taps:
//   lane      widths below the vector: a vector holds several groups; a shuffle inside quads
//             gives every output lane its own group's channel.
//   broadcast any width: a vector holds outputs of one group; the source word is broadcast.
#pragma once

struct F32 {
  static constexpr int kPerWord = 1;
  static Vec madd(Vec acc, Vec x, Vec w) { return fma(x, w, acc); }
};
#if RNK_BF16_DOT
struct Bf16Dot {
  static constexpr int kPerWord = 2;
  static Vec madd(Vec acc, Vec x, Vec w) { return dot_bf16(acc, x, w); }
};
#endif

// Where each tap of one destination row and column phase finds its source and weights.
struct TapList {
  int64_t count = 0;
  int64_t* source = nullptr;  // words from the unit's place in the tile
  int64_t* weight = nullptr;  // index of the tap
};

// Lane kernel: shuffle control and source vector of step `step` of a group of `width` words.
template <class Math, int WIDTH>
struct LaneSteps {
  static constexpr int kWords = WIDTH / Math::kPerWord;  // 32-bit words of a group, = steps
  static constexpr int kVectors = kWords > 4 ? kWords / 4 : 1;
  static constexpr int control(int step) {
    if (WIDTH == Math::kPerWord) return 0xE4;
    // A quad holds one group, or (w0 w0 w1 w1), or two groups of two words.
    if (kWords >= 4) return step % 4 * 0x55;
    if (Math::kPerWord == 2) return step ? 0xAA : 0x00;
    return step ? 0xF5 : 0xA0;
  }
};

template <class Math, int WIDTH, int COLS, int STEP>
inline void lane_step(const Vec (&x)[COLS], const float* weight, Vec (&acc)[COLS]) {
  using Steps = LaneSteps<Math, WIDTH>;
  constexpr int kGroup = 4;
  const Vec w = load(weight + STEP * kLanes);
  for (int t = 0; t < COLS; ++t) acc[t] = Math::madd(acc[t], shuffle_quads<Steps::control(STEP)>(x[t]), w);
  if constexpr ((STEP + 1) % kGroup != 0 && STEP + 1 < Steps::kWords)
    lane_step<Math, WIDTH, COLS, STEP + 1>(x, weight, acc);
}

template <class Math, int WIDTH, int COLS, int V>
inline void lane_vectors(const float* source, const float* weight, Vec (&acc)[COLS]) {
  using Steps = LaneSteps<Math, WIDTH>;
  Vec x[COLS];
  for (int t = 0; t < COLS; ++t) x[t] = load(source + (t * Steps::kVectors + V) * kLanes);
  lane_step<Math, WIDTH, COLS, V * 4>(x, weight, acc);
  if constexpr (V + 1 < Steps::kVectors) lane_vectors<Math, WIDTH, COLS, V + 1>(source, weight, acc);
}

template <class Math, int WIDTH, int COLS>
inline void lane_kernel(const float* unit, int64_t column, const TapList& taps, const float* weight,
                        Vec (&acc)[COLS]) {
  using Steps = LaneSteps<Math, WIDTH>;
  const float* base = unit + column * Steps::kVectors * kLanes;
  for (int64_t i = 0; i < taps.count; ++i)
    lane_vectors<Math, WIDTH, COLS, 0>(base + taps.source[i],
                                       weight + taps.weight[i] * Steps::kWords * kLanes, acc);
}

// `weight` of VECS channel vectors, `weight_step` words apart; `words` per tap and column.
template <class Math, int COLS, int VECS>
inline void broadcast_kernel(const float* unit, int64_t column, const TapList& taps, int64_t words,
                             int64_t col_words, const float* weight, int64_t weight_step,
                             Vec (&acc)[COLS * VECS]) {
  // Columns by fours: base + {0, 1, 2, 3} * step needs few address registers.
  constexpr int kFours = (COLS + 3) / 4;
  const int64_t step = col_words * static_cast<int64_t>(sizeof(float)), step3 = 3 * step;
  const float* base = unit + column * col_words;
  for (int64_t i = 0; i < taps.count; ++i) {
    const char* x[kFours];
    for (int f = 0; f < kFours; ++f)
      x[f] = reinterpret_cast<const char*>(base + taps.source[i]) + 4 * f * step;
    const float* w = weight + taps.weight[i] * words * kLanes;
    for (int64_t c = 0; c < words; ++c, w += kLanes) {
      Vec wv[VECS];
      for (int v = 0; v < VECS; ++v) wv[v] = load(w + v * weight_step);
      for (int t = 0; t < COLS; ++t) {
        const int64_t offset = t % 4 == 3 ? step3 : t % 4 * step;
        const Vec xv = broadcast(reinterpret_cast<const float*>(x[t / 4] + offset));
        for (int v = 0; v < VECS; ++v) acc[t * VECS + v] = Math::madd(acc[t * VECS + v], xv, wv[v]);
      }
      for (int f = 0; f < kFours; ++f) x[f] += sizeof(float);
    }
  }
}
