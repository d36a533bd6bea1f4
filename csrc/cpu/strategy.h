// What the loops need to know of a combination of arithmetic, element type and group width; one
// instruction set's version, included in its namespace.
#pragma once

// Of memory, asked for in a burst between two blocks: the next block waits until the memory has
// taken them all. More are asked for a few at a time, between the block's runs of taps.
constexpr int64_t kFewLines = 4;

// Everything the loops need that is known when element type, arithmetic and width are.
template <class MathT, class ElementT, int WIDTH>
struct LaneStrategy {
  using Math = MathT;
  using E = ElementT;
  static constexpr bool kIsLane = true;
  static constexpr int kWidth = WIDTH;
  // Narrow groups' runs take too little time to ask often.
  static constexpr int64_t kMostLinesAtOnce = WIDTH < 4 ? 4 * kFewLines : kFewLines;

  static int64_t units(const TapConv& c) { return (c.src_channels() + kLanes - 1) / kLanes; }
  static int64_t unit_channels(const TapConv&) { return kLanes; }
  static int64_t col_words(const TapConv&) { return kLanes; }
  static int64_t tap_words(const TapConv&) { return WIDTH / Math::kPerWord; }
  static int64_t dst_vectors(const TapConv&) { return 1; }
  static int64_t unit_dst(const TapConv&) { return kLanes; }

  static void fill_column(float* to, const E* from, int64_t channels) {
    const int n = static_cast<int>(channels);
#if RNK_BF16_DOT
    if constexpr (Math::kPerWord == 2) {
      store(to, unfold_pairs<WIDTH>(load_bf16(from, n)));
      return;
    }
#endif
    store(to, load_elements(from, n));
  }

  // Inlined for wide groups, whose sums must stay in registers; narrow ones leave it to the
  // compiler, which then has more registers for addresses.
  template <int COLS, int VECS, bool ASKS>
  [[gnu::always_inline]] static void run(const TapConv&, const float* unit, int64_t column,
                                         const TapRuns& taps, const float* weight,
                                         Vec (&acc)[COLS * VECS]) {
    static_assert(VECS == 1);
    if constexpr (WIDTH < 4) {
      run_narrow<COLS, ASKS>(unit, column, taps, weight, acc);
    } else {
      lane_kernel<Math, WIDTH, COLS, ASKS>(unit, column, taps, weight, acc);
    }
  }

  template <int COLS, bool ASKS>
  static void run_narrow(const float* unit, int64_t column, const TapRuns& taps,
                         const float* weight, Vec (&acc)[COLS]) {
    lane_kernel<Math, WIDTH, COLS, ASKS>(unit, column, taps, weight, acc);
  }
};

template <class MathT, class ElementT>
struct BroadcastStrategy {
  using Math = MathT;
  using E = ElementT;
  static constexpr bool kIsLane = false;
  static constexpr int kWidth = 0;  // known when it runs
  static constexpr int64_t kMostLinesAtOnce = kFewLines;

  static int64_t units(const TapConv& c) { return c.groups; }
  static int64_t unit_channels(const TapConv& c) { return c.src_width; }
  static int64_t tap_words(const TapConv& c) {
    return (c.src_width + Math::kPerWord - 1) / Math::kPerWord;
  }

  static int64_t col_words(const TapConv& c) { return tap_words(c); }
  static int64_t dst_vectors(const TapConv& c) { return (c.dst_width + kLanes - 1) / kLanes; }
  static int64_t unit_dst(const TapConv& c) { return c.dst_width; }

  static void fill_column(float* to, const E* from, int64_t channels) {
    if constexpr (Math::kPerWord == 2) {
      const float* pairs = reinterpret_cast<const float*>(from);
      copy_words<float>(to, pairs, channels / 2);
      if (channels % 2) {
        uint16_t* last = reinterpret_cast<uint16_t*>(to + channels / 2);
        last[0] = from[channels - 1];
        last[1] = 0;
      }
    } else {
      copy_words<E>(to, from, channels);
    }
  }

  // One column of `units` whole units at once; false for widths that are left to fill_column.
  static bool fill_units(float* to, const E* from, int64_t channels, int64_t units,
                         int64_t unit_words)
    requires(Math::kPerWord == 2)
  {
    if (channels == 16) return copy_units<8>(to, from, units, unit_words);
    if (channels == 32) return copy_units<16>(to, from, units, unit_words);
    if (channels == 64) return copy_units<32>(to, from, units, unit_words);
    return false;
  }

  template <int WORDS>
  static bool copy_units(float* to, const E* from, int64_t units, int64_t unit_words) {
    const float* pairs = reinterpret_cast<const float*>(from);
#pragma GCC unroll 4
    for (int64_t u = 0; u < units; ++u, pairs += WORDS, to += unit_words) {
      prefetch_ahead(pairs);
      if constexpr (WORDS < kLanes) std::memcpy(to, pairs, WORDS * sizeof(float));
      for (int w = 0; w + kLanes <= WORDS; w += kLanes) store(to + w, load(pairs + w));
    }
    return true;
  }

  template <class From>
  static void copy_words(float* to, const From* from, int64_t count) {
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes) store(to + c, load_elements(from + c, kLanes));
    const int rest = static_cast<int>(count - c);
    if (rest) store_elements(to + c, load_elements(from + c, rest), rest);
  }

  // Inlined, so that what is asked ahead cannot change the sums for all that the compiler knows.
  template <int COLS, int VECS, bool ASKS>
  [[gnu::always_inline]] static void run(const TapConv& conv, const float* unit, int64_t column,
                                         const TapRuns& taps, const float* weight,
                                         Vec (&acc)[COLS * VECS]) {
    const int64_t words = tap_words(conv), weight_step = conv.taps() * words * kLanes;
    if constexpr (Math::kPerWord == 1 && kLanes == 16) {
      if (words == 16)
        return run_known<16, COLS, VECS, ASKS>(unit, column, taps, weight, weight_step, acc);
      if (words == 32)
        return run_known<32, COLS, VECS, ASKS>(unit, column, taps, weight, weight_step, acc);
    }
    broadcast_kernel<Math, COLS, VECS, ASKS>(unit, column, taps, words, weight, weight_step, acc);
  }

  // Steps that are known when it is compiled need no registers for addresses. Not inlined: next to
  // another kernel the compiler would not keep the sums of both in registers.
  template <int WORDS, int COLS, int VECS, bool ASKS>
  [[gnu::noinline]] static void run_known(const float* unit, int64_t column, const TapRuns& taps,
                                          const float* weight, int64_t weight_step,
                                          Vec (&acc)[COLS * VECS]) {
    Vec sums[COLS * VECS];
#pragma GCC unroll 32
    for (Vec& sum : sums) sum = zero();
    broadcast_kernel<Math, COLS, VECS, ASKS>(unit, column, taps, WORDS, weight, weight_step, sums);
#pragma GCC unroll 32
    for (int i = 0; i < COLS * VECS; ++i) acc[i] = sums[i];
  }
};

template <class Math, class E, class F>
auto with_width(int64_t width, F f) {
  if (width == 2) return f.template operator()<LaneStrategy<Math, E, 2>>();
  if constexpr (kLanes > 4)
    if (width == 4) return f.template operator()<LaneStrategy<Math, E, 4>>();
  if constexpr (kLanes > 8)
    if (width == 8) return f.template operator()<LaneStrategy<Math, E, 8>>();
  return f.template operator()<BroadcastStrategy<Math, E>>();
}

// Calls `f.template operator()<Strategy>()` with the strategy that serves `c`.
template <class F>
auto with_strategy(const TapConv& c, F f) {
  const int64_t width = c.src_width == c.dst_width ? c.src_width : 0;
  if (c.element == Element::f32) {
    if (width == 1) return f.template operator()<LaneStrategy<F32, float, 1>>();
    return with_width<F32, float>(width, f);
  }
  // Of one channel a group no dot product has two.
  if (width == 1) return f.template operator()<LaneStrategy<F32, uint16_t, 1>>();
  return with_width<Bf16Math, uint16_t>(width, f);
}

inline void clear_words(float* to, int64_t count) {
  for (; count > kLanes; count -= kLanes, to += kLanes) store(to, zero());
  store_elements(to, zero(), static_cast<int>(count));
}

// One row of a tile: columns lie by residue of the source step, so that kernels see a step of one.
struct TileRow {
  int64_t cols, col_words, step;

  // Place of the column `i` columns after the tile's first.
  int64_t place(int64_t i) const { return step == 1 ? i : i % step * (cols / step) + i / step; }
};

// Copies one source row into a tile: `units` units of `channels` channels (fewer where `present`
// ends), columns from `start` on, zeros outside [0, src_cols). `Pixels` points to elements, or to
// those of two rows at once.
template <class S, class Pixels>
[[gnu::noinline]] void fill_row(Pixels from, int64_t pixel_stride, int64_t start, int64_t src_cols,
                                int64_t channels, int64_t present, int64_t units, float* to,
                                const TileRow& row) {
  const int64_t unit_words = row.cols * row.col_words;
  const int64_t whole = std::min(units, present / channels);
  for (int64_t i = 0; i < row.cols; ++i) {
    const int64_t col = start + i;
    float* column = to + row.place(i) * row.col_words;
    if (col < 0 || col >= src_cols) {
      for (int64_t u = 0; u < units; ++u) clear_words(column + u * unit_words, row.col_words);
      continue;
    }
    Pixels pixel = from + col * pixel_stride;
    if constexpr (requires { S::fill_units(column, pixel, channels, units, unit_words); })
      if (S::fill_units(column, pixel, channels, units, unit_words)) continue;
    for (int64_t u = 0; u < whole; ++u, pixel = pixel + channels, column += unit_words) {
      prefetch_ahead(pixel);
      S::fill_column(column, pixel, S::kIsLane ? kLanes : channels);
    }
    if (whole < units) S::fill_column(column, pixel, present - whole * channels);
  }
}
