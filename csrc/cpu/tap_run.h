// Runs a TapConv for one instruction set: packs weights, keeps a ring of source rows per thread,
// calls the kernels, applies the epilogue.
#pragma once

template <class S>
class TapRunner {
  using E = typename S::E;
  using Math = typename S::Math;

 public:
  static TapPlan plan(const TapConv& c, int64_t threads) { return tap_plan<S>(c, threads); }

  static bool run(const TapConv& c, const TapPlan& p, float* scratch, int64_t begin, int64_t end) {
    TapRunner runner(c, p, scratch);
    for (int64_t task = begin; task < end; ++task) {
      const Task here = runner.task_of(task);
      runner.start_chunk(here.first);
      runner.image(here, task + 1 < end ? runner.task_of(task + 1) : Task{});
    }
    if (p.stream) stream_fence();
    return true;
  }

 private:
  // Destination rows [row, row_end) of image n, units from `first` on.
  struct Task {
    int64_t first = 0, n = 0, row = 0, row_end = 0;
  };

  TapRunner(const TapConv& c, const TapPlan& p, float* scratch)
      : c_(c), p_(p), window_(c.vertical.window()) {
    phases_ = c.horizontal.phases();
    taps_.runs = reinterpret_cast<TapRun*>(scratch);
    taps_.ahead = &ahead_;
    packed_ = scratch + round_up(list_words(c), 16);
    tile_ = packed_ + p.chunk_units * p.unit_weights;
  }

  Task task_of(int64_t task) const {
    const int64_t parts = c_.batch * p_.row_bands / p_.shares;
    const int64_t chunk = task / parts % p_.chunks;
    const int64_t part = task / (parts * p_.chunks) * parts + task % parts;
    const int64_t row = part % p_.row_bands * p_.band_rows;
    return {chunk * p_.chunk_units, part / p_.row_bands, row,
            std::min(c_.dst_rows, row + p_.band_rows)};
  }

  // Turns to the units from `first` on: packs their weights, which stay in the cache.
  void start_chunk(int64_t first) {
    if (first == first_ && units_ > 0) return;
    first_ = first;
    units_ = std::min(p_.chunk_units, p_.units - first);
    slot_words_ = p_.slot_words(units_);
    const int64_t vectors = S::dst_vectors(c_), words = c_.taps() * S::tap_words(c_) * kLanes;
    Vec check = zero();
    for (int64_t u = 0; u < units_; ++u)
      for (int64_t v = 0; v < vectors; ++v) {
        const WeightPacker<S> packer(c_, first + u, v);
        check = bit_or(check, packer.pack(packed_ + u * p_.unit_weights + v * words));
      }
    finite_ = passed(check);
  }

  // `next_task`, whose row_end is 0 where there is none, is what is done then.
  void image(const Task& task, const Task& next_task) {
    n_ = task.n;
    row_end_ = task.row_end;
    const TapAxis& rows = c_.vertical;
    const int64_t phase_cols = (c_.dst_cols + phases_ - 1) / phases_;
    for (int64_t j = 0; j < phase_cols; j += p_.columns) {
      column_ = j;
      int64_t next = std::max<int64_t>(rows.first_source(task.row), 0);
      for (int64_t y = task.row; y < task.row_end; ++y) {
        const int64_t last = std::min(rows.last_source(y), c_.src_rows - 1);
        for (; next <= last; ++next) load_row(next);
        if (y + 1 < task.row_end) {
          look_ahead(y, task, rows.last_source(y) + 1, rows.last_source(y + 1) + 1);
        } else {
          const int64_t row = next_task.row;
          const int64_t end = next_task.row_end > 0 ? rows.last_source(row) + 1 : 0;
          look_ahead(y, next_task, rows.first_source(row), end);
        }
        if (between_runs_) {
          compute_row<true>(y);
        } else {
          compute_row<false>(y);
        }
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

  // Turns to source rows [row, row_end) of a task's image, while row y is computed.
  void look_ahead(int64_t y, const Task& task, int64_t row, int64_t row_end) {
    row = std::clamp<int64_t>(row, 0, c_.src_rows);
    const int64_t rows = std::min(row_end, c_.src_rows) - row;
    const int64_t channels = S::unit_channels(c_);
    const int64_t start = p_.col_lo + column_ * c_.horizontal.source_step();
    const int64_t from = std::max<int64_t>(start, 0);
    const int64_t to = std::min(start + p_.tile_cols, c_.src_cols);
    const E* first = static_cast<const E*>(c_.src) + task.n * c_.src_strides.n +
                     row * c_.src_strides.h + from * c_.src_strides.w + task.first * channels;
    const int64_t vectors = S::dst_vectors(c_), together = S::kIsLane ? 1 : kBlockVectors;
    const int64_t blocks = units_ * (vectors / together + vectors % together) * phases_ *
                           ((p_.columns + kMaxColumns - 1) / kMaxColumns);
    const int64_t lines = rows * (to - from) * lines_of<E>(units_ * channels);
    between_runs_ = lines > S::kMostLinesAtOnce * blocks;
    // A row beside the image has no runs.
    const int64_t parts = between_runs_ ? std::max<int64_t>(1, blocks * runs(y) / phases_) : blocks;
    ahead_.start(first, c_.src_strides, rows, to - from, units_ * channels, parts);
  }

  // Taps of row y and of the phase's columns from column_ + j on. Those that read a zero beside the
  // image add nothing, but for a weight that is not finite: then they are left out.
  void list_taps(int64_t y, int64_t phase, int64_t j) {
    const TapAxis &vertical = c_.vertical, &horizontal = c_.horizontal;
    const int64_t step = horizontal.source_step(), ahead = (column_ + j) * step;
    const TileRow tile_row{p_.tile_cols, p_.col_words, step};
    taps_.count = 0;
    for (int64_t r = 0; r < vertical.taps; ++r) {
      int64_t row;
      if (!vertical.source(y, r, &row) || row < 0 || row >= c_.src_rows) continue;
      const int64_t row_words = row % window_ * slot_words_, first = taps_.count;
      for (int64_t s = 0; s < horizontal.taps; ++s) {
        int64_t col;
        if (!horizontal.source(phase, s, &col)) continue;
        if (!finite_ && (col + ahead < 0 || col + ahead >= c_.src_cols)) continue;
        const int64_t source = row_words + tile_row.place(col - p_.col_lo) * p_.col_words;
        taps_.count = add_tap(taps_.runs, first, taps_.count, source, r * horizontal.taps + s,
                              p_.col_words, kMaxRun);
      }
    }
  }

  // Of row y's taps, for all phases.
  int64_t runs(int64_t y) {
    int64_t count = 0;
    for (int64_t phase = 0; phase < phases_; ++phase) {
      list_taps(y, phase, 0);
      count += taps_.count;
    }
    return count;
  }

  template <bool ASKS>
  void compute_row(int64_t y) {
    // All channels of a few columns before the next columns: whole pixels are written, in order.
    // With a weight that is not finite each column has taps of its own.
    const int64_t together = finite_ ? kGroupColumns : 1;
    const int64_t vectors = S::dst_vectors(c_);
    for (int64_t phase = 0; phase < phases_; ++phase) {
      const int64_t all = (c_.dst_cols - phase + phases_ - 1) / phases_;
      const int64_t columns = std::min(p_.columns, all - column_);
      for (int64_t j = 0; j < columns; j += together) {
        if (j == 0 || !finite_) list_taps(y, phase, j);
        const int64_t end = std::min(columns, j + together);
        for (int64_t u = 0; u < units_; ++u) {
          int64_t v = 0;
          if constexpr (!S::kIsLane && kBlockVectors > 1)
            for (; v + kBlockVectors <= vectors; v += kBlockVectors)
              blocks<kBlockVectors, ASKS>(y, u, phase, j, end, v);
          for (; v < vectors; ++v) blocks<1, ASKS>(y, u, phase, j, end, v);
        }
      }
    }
  }

  template <int VECS, bool ASKS>
  void blocks(int64_t y, int64_t u, int64_t phase, int64_t j, int64_t end, int64_t v) {
    for (; j + kMaxColumns <= end; j += kMaxColumns)
      block<kMaxColumns, VECS, ASKS>(y, u, phase, j, v);
    if constexpr (kMaxColumns > 7)
      for (; j + 7 <= end; j += 7) block<7, VECS, ASKS>(y, u, phase, j, v);
    for (; j + 4 <= end; j += 4) block<4, VECS, ASKS>(y, u, phase, j, v);
    for (; j + 2 <= end; j += 2) block<2, VECS, ASKS>(y, u, phase, j, v);
    for (; j < end; ++j) block<1, VECS, ASKS>(y, u, phase, j, v);
  }

  // COLS destination columns from the phase's column_ + j on, VECS channel vectors from v on.
  template <int COLS, int VECS, bool ASKS>
  void block(int64_t y, int64_t u, int64_t phase, int64_t j, int64_t v) {
    const int64_t unit = first_ + u;
    const float* weight = packed_ + u * p_.unit_weights + v * c_.taps() * S::tap_words(c_) * kLanes;
    Vec acc[COLS * VECS];
#pragma GCC unroll 32
    for (int i = 0; i < COLS * VECS; ++i) acc[i] = zero();
    const float* tile = tile_ + u * p_.tile_cols * p_.col_words;
    const TapRuns taps = taps_;
    S::template run<COLS, VECS, ASKS>(c_, tile, j, taps, weight, acc);
    const int64_t dst_unit = S::unit_dst(c_), channel = unit * dst_unit + v * kLanes;
    const int64_t col = phase + (column_ + j) * phases_;
    const int64_t at = ((n_ * c_.dst_rows + y) * c_.dst_cols + col) * c_.dst_channels() + channel;
    if constexpr (!ASKS) ahead_.part();
    if (!p_.stream && y + 1 < row_end_) own_next_row<COLS, VECS>(at);
    const int64_t unit_end = std::min((unit + 1) * dst_unit, c_.dst_channels());
#pragma GCC unroll 2
    for (int i = 0; i < VECS; ++i) {
      const int64_t first = channel + i * kLanes;
      const int n = static_cast<int>(std::min<int64_t>(kLanes, unit_end - first));
      finish<COLS, VECS>(acc, i, first, at + i * kLanes, n, j % kGroupColumns);
    }
  }

  // Asks for what a block writes in the next row. Inline: the compiler would take a function of
  // nothing else for one without effect, and drop the call.
  template <int COLS, int VECS>
  [[gnu::always_inline]] void own_next_row(int64_t at) const {
    const E* next = static_cast<const E*>(c_.dst) + at + c_.dst_cols * c_.dst_channels();
    constexpr int64_t kBytes = kLanes * sizeof(E);
    if (kBytes < kLineBytes && reinterpret_cast<uintptr_t>(next) % kLineBytes >= kBytes) return;
    const int64_t step = phases_ * c_.dst_channels();
    for (int t = 0; t < COLS; ++t)
      for (int i = 0; i < VECS; ++i) __builtin_prefetch(next + t * step + i * kLanes, 1);
  }

  // Inline and unrolled, so that sums stay in registers. `place`: of the first column in its group.
  template <int COLS, int VECS>
  [[gnu::always_inline]] void finish(Vec (&acc)[COLS * VECS], int i, int64_t channel, int64_t at,
                                     int n, int64_t place) {
    const int64_t step = phases_ * c_.dst_channels();
    E* to = static_cast<E*>(c_.dst) + at;
    const auto each = [&](auto f) {
#pragma GCC unroll 16
      for (int t = 0; t < COLS; ++t) f(t, acc[t * VECS + i]);
    };
    if (c_.bias || c_.residual || c_.relu) {
      const Epilogue<E> apply(c_, channel, n);
      each([&](int t, Vec& sums) { sums = apply(sums, at + t * step); });
    }
    if (p_.stream) {
      each([&](int t, Vec sums) { lines_.put(to + t * step, channel, place + t, sums); });
    } else if (n == kLanes) {  // apart, so that the common case has no test a vector
      each([&](int t, Vec sums) { store_elements(to + t * step, sums, kLanes); });
    } else {
      each([&](int t, Vec sums) { store_elements(to + t * step, sums, n); });
    }
  }

  const TapConv& c_;
  const TapPlan& p_;
  float *packed_, *tile_;
  TapRuns taps_;
  LookAhead ahead_;
  bool between_runs_ = false;  // of taps is asked ahead, not only between blocks
  LineStream<kGroupColumns> lines_;
  bool finite_ = true;  // all weights of the chunk
  int64_t window_, phases_;
  int64_t n_ = 0, row_end_ = 0, first_ = 0, units_ = 0, slot_words_ = 0, column_ = 0;
};
