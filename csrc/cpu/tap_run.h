// Runs a TapConv for one instruction set: cuts it into tasks, packs weights, keeps a ring of
// source rows per thread, calls the kernels, applies the epilogue.
#pragma once

// Sizes that keep a chunk's weights and rows in the second-level cache.
constexpr int64_t kChunkWeightWords = 48 * 1024;
constexpr int64_t kTileWords = 48 * 1024;

template <class S>
class TapRunner {
  using E = typename S::E;
  using Math = typename S::Math;

 public:
  static TapPlan plan(const TapConv& c, int64_t threads) {
    TapPlan p;
    p.units = S::units(c);
    p.col_words = S::col_words(c);
    p.unit_weights = S::dst_vectors(c) * c.taps() * S::tap_words(c) * kLanes;
    const int64_t phases = c.horizontal.phases(), step = c.horizontal.source_step();
    const int64_t dst_cols = (c.dst_cols + phases - 1) / phases;
    p.col_lo = c.horizontal.first_source(0);
    const int64_t halo = c.horizontal.last_source(phases - 1) - p.col_lo + 1;
    const int64_t window = c.vertical.window();

    const int64_t wanted_cols = kTileWords / (window * p.col_words) - halo;
    p.columns = std::clamp<int64_t>(wanted_cols / step, std::min<int64_t>(dst_cols, 4 * kMaxColumns),
                                    dst_cols);
    // Columns are stored by residue of the source step, so that kernels see a step of one.
    p.tile_cols = ((p.columns - 1) * step + halo + step - 1) / step * step;
    const int64_t row_words = window * p.tile_cols * p.col_words;
    p.chunk_units = std::min(kChunkWeightWords / p.unit_weights, kTileWords / row_words);
    p.chunk_units = std::clamp<int64_t>(p.chunk_units, 1, p.units);
    p.chunks = (p.units + p.chunk_units - 1) / p.chunk_units;
    p.chunk_units = (p.units + p.chunks - 1) / p.chunks;
    p.chunks = (p.units + p.chunk_units - 1) / p.chunk_units;

    // Bands of rows only where chunks and images do not give every thread a few tasks.
    const int64_t bands = (4 * threads + p.chunks * c.batch - 1) / (p.chunks * c.batch);
    p.band_rows = std::max<int64_t>((c.dst_rows + bands - 1) / bands,
                                    std::min<int64_t>(c.dst_rows, 2 * c.vertical.taps));
    p.row_bands = (c.dst_rows + p.band_rows - 1) / p.band_rows;
    p.tasks = p.chunks * c.batch * p.row_bands;
    const int64_t lists = 2 * (2 * c.taps() * phases + phases);
    p.scratch_words = p.chunk_units * row_words + lists + 64;
    return p;
  }

  static void pack(const TapConv& c, const TapPlan& p, float* packed, int64_t begin, int64_t end) {
    const int64_t vectors = S::dst_vectors(c), words = S::tap_words(c), taps = c.taps();
    for (int64_t u = begin; u < end; ++u) {
      float* to = packed + u * p.unit_weights;
      for (int64_t v = 0; v < vectors; ++v)
        for (int64_t t = 0; t < taps; ++t)
          for (int64_t s = 0; s < words; ++s, to += kLanes)
            for (int64_t lane = 0; lane < kLanes; ++lane) pack_word(c, u, v, t, s, lane, to + lane);
    }
  }

  static void run(const TapConv& c, const TapPlan& p, const float* packed, float* scratch,
                  int64_t begin, int64_t end) {
    TapRunner runner(c, p, packed, scratch);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t band = task % p.row_bands, rest = task / p.row_bands;
      const int64_t first = rest / c.batch * p.chunk_units;
      runner.chunk(rest % c.batch, first, std::min(p.chunk_units, p.units - first),
                   band * p.band_rows, std::min(c.dst_rows, (band + 1) * p.band_rows));
    }
  }

 private:
  TapRunner(const TapConv& c, const TapPlan& p, const float* packed, float* scratch)
      : c_(c), p_(p), packed_(packed), window_(c.vertical.window()) {
    phases_ = c.horizontal.phases();
    auto* lists = reinterpret_cast<int64_t*>(scratch);
    sources_ = lists;
    weights_ = lists + c.taps() * phases_;
    counts_ = weights_ + c.taps() * phases_;
    const int64_t used = 2 * (2 * c.taps() * phases_ + phases_);
    tile_ = scratch + (used + 15) / 16 * 16;
  }

  static void pack_word(const TapConv& c, int64_t unit, int64_t vector, int64_t tap, int64_t word,
                        int64_t lane, float* to) {
    int64_t group = unit, dst = vector * kLanes + lane;
    bool real = dst < c.dst_width;
    if constexpr (S::kIsLane) {
      const int64_t channel = unit * kLanes + lane;
      group = channel / c.dst_width;
      dst = channel % c.dst_width;
      real = channel < c.dst_channels();
    }
    const E* weight = static_cast<const E*>(c.weight) + group * c.weight_group +
                      dst * c.weight_dst + tap;
    if constexpr (Math::kPerWord == 2) {
      auto* pair = reinterpret_cast<uint16_t*>(to);
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t src = 2 * word + i;
        pair[i] = real && src < c.src_width ? weight[src * c.weight_src] : 0;
      }
    } else {
      *to = real ? to_float(weight[word * c.weight_src]) : 0.f;
    }
  }

  static float to_float(float v) { return v; }
  static float to_float(uint16_t v) { return bf16_to_float(v); }

  // Units [first, first + units) of image n, destination rows [row, row_end).
  void chunk(int64_t n, int64_t first, int64_t units, int64_t row, int64_t row_end) {
    n_ = n;
    first_ = first;
    units_ = units;
    slot_words_ = p_.slot_words(units);
    const int64_t phase_cols = (c_.dst_cols + phases_ - 1) / phases_;
    for (int64_t j = 0; j < phase_cols; j += p_.columns) {
      column_ = j;
      int64_t next = std::max<int64_t>(c_.vertical.first_source(row), 0);
      for (int64_t y = row; y < row_end; ++y) {
        const int64_t last = std::min(c_.vertical.last_source(y), c_.src_rows - 1);
        for (; next <= last; ++next) load_row(next);
        compute_row(y);
      }
    }
  }

  float* slot(int64_t src_row) const { return tile_ + src_row % window_ * slot_words_; }

  void load_row(int64_t src_row) {
    const int64_t channels = S::unit_channels(c_), step = c_.horizontal.source_step();
    const E* from = static_cast<const E*>(c_.src) + n_ * c_.src_strides.n +
                    src_row * c_.src_strides.h + first_ * channels;
    fill_row<S>(from, c_.src_strides.w, p_.col_lo + column_ * step, c_.src_cols, channels,
                c_.src_channels() - first_ * channels, units_, slot(src_row),
                TileRow{p_.tile_cols, p_.col_words, step});
  }

  TapList taps(int64_t phase) const {
    return {counts_[phase], sources_ + phase * c_.taps(), weights_ + phase * c_.taps()};
  }

  void list_taps(int64_t y) {
    const TapAxis &vertical = c_.vertical, &horizontal = c_.horizontal;
    const TileRow tile_row{p_.tile_cols, p_.col_words, horizontal.source_step()};
    for (int64_t phase = 0; phase < phases_; ++phase) {
      int64_t count = 0;
      for (int64_t r = 0; r < vertical.taps; ++r) {
        int64_t row;
        if (!vertical.source(y, r, &row) || row < 0 || row >= c_.src_rows) continue;
        const int64_t row_words = row % window_ * slot_words_;
        for (int64_t s = 0; s < horizontal.taps; ++s) {
          int64_t col;
          if (!horizontal.source(phase, s, &col)) continue;
          const int64_t at = phase * c_.taps() + count++;
          sources_[at] = row_words + tile_row.place(col - p_.col_lo) * p_.col_words;
          weights_[at] = r * horizontal.taps + s;
        }
      }
      counts_[phase] = count;
    }
  }

  void compute_row(int64_t y) {
    list_taps(y);
    for (int64_t u = 0; u < units_; ++u) {
      for (int64_t phase = 0; phase < phases_; ++phase) {
        const int64_t all = (c_.dst_cols - phase + phases_ - 1) / phases_;
        const int64_t columns = std::min(p_.columns, all - column_);
        int64_t v = 0;
        const int64_t vectors = S::dst_vectors(c_);
        if constexpr (!S::kIsLane && kBlockVectors > 1)
          for (; v + kBlockVectors <= vectors; v += kBlockVectors)
            columns_of<kBlockVectors>(y, u, phase, columns, v);
        for (; v < vectors; ++v) columns_of<1>(y, u, phase, columns, v);
      }
    }
  }

  template <int VECS>
  void columns_of(int64_t y, int64_t u, int64_t phase, int64_t columns, int64_t v) {
    int64_t j = 0;
    for (; j + kMaxColumns <= columns; j += kMaxColumns) block<kMaxColumns, VECS>(y, u, phase, j, v);
    if constexpr (kMaxColumns > 7)
      for (; j + 7 <= columns; j += 7) block<7, VECS>(y, u, phase, j, v);
    for (; j + 4 <= columns; j += 4) block<4, VECS>(y, u, phase, j, v);
    for (; j + 2 <= columns; j += 2) block<2, VECS>(y, u, phase, j, v);
    for (; j < columns; ++j) block<1, VECS>(y, u, phase, j, v);
  }

  // COLS destination columns from the phase's column_ + j on, VECS channel vectors from v on.
  template <int COLS, int VECS>
  void block(int64_t y, int64_t u, int64_t phase, int64_t j, int64_t v) {
    const int64_t unit = first_ + u;
    const float* weight = packed_ + unit * p_.unit_weights +
                          v * c_.taps() * S::tap_words(c_) * kLanes;
    Vec acc[COLS * VECS];
    for (int i = 0; i < COLS * VECS; ++i) acc[i] = zero();
    S::template run<COLS, VECS>(c_, p_, tile_ + u * p_.tile_cols * p_.col_words, j, taps(phase),
                                weight, acc);
    const int64_t dst_unit = S::kIsLane ? kLanes : c_.dst_width;
    const int64_t unit_end = std::min((unit + 1) * dst_unit, c_.dst_channels());
    const int64_t col = phase + (column_ + j) * phases_;
    for (int i = 0; i < VECS; ++i) {
      const int64_t channel = unit * dst_unit + (v + i) * kLanes;
      const int n = static_cast<int>(std::min<int64_t>(kLanes, unit_end - channel));
      const int64_t at = ((n_ * c_.dst_rows + y) * c_.dst_cols + col) * c_.dst_channels() + channel;
      finish<COLS, VECS>(acc, i, channel, at, n);
    }
  }

  template <int COLS, int VECS>
  void finish(Vec (&acc)[COLS * VECS], int i, int64_t channel, int64_t at, int n) {
    const int64_t step = phases_ * c_.dst_channels();
    E* to = static_cast<E*>(c_.dst) + at;
    if (!c_.bias && !c_.residual && !c_.relu) {
      for (int t = 0; t < COLS; ++t) store_elements(to + t * step, acc[t * VECS + i], n);
      return;
    }
    const Vec bias =
        c_.bias ? load_elements(static_cast<const E*>(c_.bias) + channel, n) : zero();
    const E* residual = static_cast<const E*>(c_.residual);
    for (int t = 0; t < COLS; ++t) {
      Vec out = add(acc[t * VECS + i], bias);
      if (residual) out = add(out, load_elements(residual + at + t * step, n));
      store_elements(to + t * step, c_.relu ? relu(out) : out, n);
    }
  }

  const TapConv& c_;
  const TapPlan& p_;
  const float* packed_;
  float* tile_;
  int64_t *sources_, *weights_, *counts_;
  int64_t window_, phases_;
  int64_t n_ = 0, first_ = 0, units_ = 0, slot_words_ = 0, column_ = 0;
};

inline TapPlan plan_taps(const TapConv& c, int64_t threads) {
  return with_strategy(c, [&]<class S>() { return TapRunner<S>::plan(c, threads); });
}
inline void pack_weights(const TapConv& c, const TapPlan& p, float* packed, int64_t begin,
                         int64_t end) {
  with_strategy(c, [&]<class S>() { TapRunner<S>::pack(c, p, packed, begin, end); });
}
inline void run_taps(const TapConv& c, const TapPlan& p, const float* packed, float* scratch,
                     int64_t begin, int64_t end) {
  with_strategy(c, [&]<class S>() { TapRunner<S>::run(c, p, packed, scratch, begin, end); });
}
