// The inner kernels of fprop and dgrad for one instruction set; included in its namespace.
//
// A tile holds source rows as 32-bit words, one float or one pair of bf16 each, compact by unit
// and padded with zeros, so that a kernel sees constant steps and no border. Both kernels keep one
// accumulator vector per destination column (and channel vector) over all taps:
//   lane      widths below the vector: a vector holds several groups; a shuffle gives every output
//             lane its own group's channel.
//   broadcast any width: a vector holds outputs of one group; the source word is broadcast.
#pragma once

struct F32 {
  static constexpr int kPerWord = 1;
  static Vec madd(Vec acc, Vec x, Vec w) { return fma(x, w, acc); }
  template <int WIDTH, int STEP>
  static Vec spread_word(Vec x) {
    return spread<WIDTH, STEP>(x);
  }
};
#if RNK_BF16_DOT
struct Bf16Dot {
  static constexpr int kPerWord = 2;
  static Vec madd(Vec acc, Vec x, Vec w) { return dot_bf16(acc, x, w); }
  template <int WIDTH, int STEP>
  static Vec spread_word(Vec x) {
    return spread_pairs<WIDTH, STEP>(x);
  }
};
using Bf16Math = Bf16Dot;
#else
using Bf16Math = F32;
#endif

// Taps of one kernel row whose source columns are neighbours: what is loaded and shuffled for one
// serves all.
constexpr int kMaxRun = 3;
struct TapRun {
  int64_t source = 0;  // words from the unit's place in the tile to the first tap's source
  int64_t count = 0;
  int64_t tap[kMaxRun];
};

// Appends a tap to the run of runs[first, count) that it continues at either end, or starts one;
// returns the new count.
inline int64_t add_tap(TapRun* runs, int64_t first, int64_t count, int64_t source, int64_t tap,
                       int64_t col_words, int64_t longest) {
  for (int64_t i = first; i < count; ++i) {
    TapRun& run = runs[i];
    if (run.count == longest) continue;
    if (source == run.source + run.count * col_words) {
      run.tap[run.count++] = tap;
      return count;
    }
    if (source == run.source - col_words) {  // dgrad meets the taps from right to left
      std::copy_backward(run.tap, run.tap + run.count, run.tap + run.count + 1);
      run.source = source;
      run.tap[0] = tap;
      ++run.count;
      return count;
    }
  }
  runs[count] = TapRun{source, 1, {tap}};
  return count + 1;
}

struct TapRuns {
  int64_t count = 0;
  TapRun* runs = nullptr;
  LookAhead* ahead = nullptr;  // what is asked for between them, see ASKS
};

template <class Math, int WIDTH, int COLS, int RUN, int STEP>
[[gnu::always_inline]] inline void lane_steps(const float* source,
                                              const float* const (&weight)[RUN], Vec (&acc)[COLS]) {
  // Hides that every step loads the same columns: kept in registers they would push out sums.
  asm("" : "+r"(source));
  Vec w[RUN];
  for (int r = 0; r < RUN; ++r) w[r] = load(weight[r] + STEP * kLanes);
#pragma GCC unroll 16
  for (int j = 0; j < COLS + RUN - 1; ++j) {
    Vec x = Math::template spread_word<WIDTH, STEP>(load(source + j * kLanes));
    // Loaded once, not by every multiply-add.
    if constexpr (RUN > 1) asm("" : RNK_VECTOR_OPERAND(x));
#pragma GCC unroll 3
    for (int r = 0; r < RUN; ++r)
      if (j - r >= 0 && j - r < COLS) acc[j - r] = Math::madd(acc[j - r], x, w[r]);
  }
  if constexpr (STEP + 1 < WIDTH / Math::kPerWord)
    lane_steps<Math, WIDTH, COLS, RUN, STEP + 1>(source, weight, acc);
}

template <class Math, int WIDTH, int COLS, int RUN>
[[gnu::always_inline]] inline void lane_run(const float* base, const TapRun& run,
                                            const float* weight, Vec (&acc)[COLS]) {
  const float* w[RUN];
  for (int r = 0; r < RUN; ++r) w[r] = weight + run.tap[r] * (WIDTH / Math::kPerWord) * kLanes;
  lane_steps<Math, WIDTH, COLS, RUN, 0>(base + run.source, w, acc);
}

template <class Math, int WIDTH, int COLS, bool ASKS>
[[gnu::always_inline]] inline void lane_kernel(const float* unit, int64_t column,
                                               const TapRuns& taps, const float* weight,
                                               Vec (&acc)[COLS]) {
  const float* base = unit + column * kLanes;
  for (int64_t i = 0; i < taps.count; ++i) {
    const TapRun& run = taps.runs[i];
    if constexpr (ASKS) taps.ahead->part();
    if (run.count == 3) {
      lane_run<Math, WIDTH, COLS, 3>(base, run, weight, acc);
    } else if (run.count == 2) {
      lane_run<Math, WIDTH, COLS, 2>(base, run, weight, acc);
    } else {
      lane_run<Math, WIDTH, COLS, 1>(base, run, weight, acc);
    }
  }
}

// One channel vector, RUN taps: every source word is broadcast once for all of them.
template <class Math, int COLS, int RUN>
[[gnu::always_inline]] inline void broadcast_run(const float* base, const TapRun& run,
                                                 int64_t words, const float* weight,
                                                 Vec (&acc)[COLS]) {
  constexpr int kColumns = COLS + RUN - 1;
  constexpr int kFours = (kColumns + 3) / 4;
  // Columns by fours: base + {0, 1, 2, 3} * step needs few address registers.
  const int64_t step = words * static_cast<int64_t>(sizeof(float)), step3 = 3 * step;
  const char* x[kFours];
  for (int f = 0; f < kFours; ++f)
    x[f] = reinterpret_cast<const char*>(base + run.source) + 4 * f * step;
  const float* w[RUN];
  for (int r = 0; r < RUN; ++r) w[r] = weight + run.tap[r] * words * kLanes;
  for (int64_t c = 0; c < words; ++c) {
    Vec wv[RUN];
    for (int r = 0; r < RUN; ++r) wv[r] = load(w[r] + c * kLanes);
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) {
      const int64_t offset = j % 4 == 3 ? step3 : j % 4 * step;
      const Vec xv = broadcast(reinterpret_cast<const float*>(x[j / 4] + offset) + c);
#pragma GCC unroll 3
      for (int r = 0; r < RUN; ++r)
        if (j - r >= 0 && j - r < COLS) acc[j - r] = Math::madd(acc[j - r], xv, wv[r]);
    }
  }
}

// VECS channel vectors `weight_step` words apart, tap after tap.
template <class Math, int COLS, int VECS>
[[gnu::always_inline]] inline void broadcast_tap(const float* source, int64_t words, const float* w,
                                                 int64_t weight_step, Vec (&acc)[COLS * VECS]) {
  constexpr int kFours = (COLS + 3) / 4;
  const int64_t step = words * static_cast<int64_t>(sizeof(float)), step3 = 3 * step;
  const char* x[kFours];
  for (int f = 0; f < kFours; ++f) x[f] = reinterpret_cast<const char*>(source) + 4 * f * step;
  for (int64_t c = 0; c < words; ++c, w += kLanes) {
    Vec wv[VECS];
    for (int v = 0; v < VECS; ++v) wv[v] = load(w + v * weight_step);
#pragma GCC unroll 16
    for (int t = 0; t < COLS; ++t) {
      const int64_t offset = t % 4 == 3 ? step3 : t % 4 * step;
      const Vec xv = broadcast(reinterpret_cast<const float*>(x[t / 4] + offset) + c);
      for (int v = 0; v < VECS; ++v) acc[t * VECS + v] = Math::madd(acc[t * VECS + v], xv, wv[v]);
    }
  }
}

template <class Math, int COLS, int VECS, bool ASKS>
[[gnu::always_inline]] inline void broadcast_kernel(const float* unit, int64_t column,
                                                    const TapRuns& taps, int64_t words,
                                                    const float* weight, int64_t weight_step,
                                                    Vec (&acc)[COLS * VECS]) {
  const float* base = unit + column * words;
  for (int64_t i = 0; i < taps.count; ++i) {
    const TapRun& run = taps.runs[i];
    if constexpr (ASKS) taps.ahead->part();
    if constexpr (VECS == 1) {
      if (run.count == 3) {
        broadcast_run<Math, COLS, 3>(base, run, words, weight, acc);
      } else if (run.count == 2) {
        broadcast_run<Math, COLS, 2>(base, run, words, weight, acc);
      } else {
        broadcast_run<Math, COLS, 1>(base, run, words, weight, acc);
      }
    } else {
      for (int64_t r = 0; r < run.count; ++r)
        broadcast_tap<Math, COLS, VECS>(base + run.source + r * words, words,
                                        weight + run.tap[r] * words * kLanes, weight_step, acc);
    }
  }
}
