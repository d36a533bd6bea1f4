// How rows of pixels become words of the weight gradient's tiles; one instruction set's version,
// included in its namespace. A word is one channel of one pixel, widened to a float; with the
// bfloat16 dot product that of two pixels, which lie one above the other: rows in pairs leave all
// that is done along a row as it is.
#pragma once

template <class Math, class E>
struct WgradRows {
  // Pixels of row `first`, and of that `step` elements further on where rows go in pairs.
  static const E* rows(const E* first, int64_t, bool, bool) { return first; }

  template <bool IS_LANE>
  struct Fill : std::conditional_t<IS_LANE, LaneStrategy<F32, E, 1>, BroadcastStrategy<F32, E>> {};
};

#if RNK_BF16_DOT
// Elements at the same place of two rows; a row that is not there counts as zeros.
struct RowPair {
  const uint16_t* rows[2];
  bool present[2];

  RowPair operator+(int64_t elements) const {
    return {{rows[0] + elements, rows[1] + elements}, {present[0], present[1]}};
  }
  Vec words(int n) const {
    return pair_words(load_elements(rows[0], present[0] ? n : 0),
                      load_elements(rows[1], present[1] ? n : 0));
  }
};

inline void prefetch_ahead(const RowPair& pair) { prefetch_ahead(pair.rows[1]); }

template <>
struct WgradRows<Bf16Dot, uint16_t> {
  static RowPair rows(const uint16_t* first, int64_t step, bool has_first, bool has_second) {
    return {{first, first + step}, {has_first, has_second}};
  }

  template <bool IS_LANE>
  struct Fill {
    static constexpr bool kIsLane = IS_LANE;

    static void fill_column(float* to, const RowPair& from, int64_t channels) {
      int64_t c = 0;
      for (; c + kLanes <= channels; c += kLanes) store(to + c, (from + c).words(kLanes));
      const int rest = static_cast<int>(channels - c);
      if (rest) store_elements(to + c, (from + c).words(rest), kIsLane ? kLanes : rest);
    }
  };
};
#endif
