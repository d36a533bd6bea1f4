// Runs the weight gradient for one instruction set: cuts it into tasks, keeps a ring of input rows
// and a few grad_output rows per thread, calls the kernels, writes the sums out.
#pragma once

// Weights of one unit from `splits` partial results `split_step` words apart.
template <class S>
void write_weights(const Wgrad& w, int64_t unit, const float* partial, int64_t splits,
                   int64_t split_step, Vec* check) {
  const ConvProblem& p = w.problem;
  const int64_t taps = p.taps(), filter = p.in_width() * taps;
  const int64_t channels = S::out_channels(p);
  const int64_t present = std::min(channels, p.out_channels - unit * channels);
  for (int64_t k = 0; k < present; k += kLanes, partial += filter * kLanes) {
    auto* rows = static_cast<typename S::Element*>(w.grad_weight) + (unit * channels + k) * filter;
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, present - k));
    // Kept as [tap][channel][lane], wanted as [lane][channel][tap] or [lane][tap][channel].
    for (int64_t i = 0; i < filter; i += kLanes) {
      const int n = static_cast<int>(std::min<int64_t>(kLanes, filter - i));
      Vec columns[kLanes] = {};
      int64_t tap = i % taps, channel = i / taps;
      for (int j = 0; j < n; ++j) {
        const int64_t element = w.taps_inside ? tap * p.in_width() + channel : i + j;
        const float* sums = partial + element * kLanes;
        for (int64_t s = 0; s < splits; ++s, sums += split_step)
          columns[j] = add(columns[j], load(sums));
        if (++tap < taps) continue;
        tap = 0;
        ++channel;
      }
      *check = check_finite<F32>(*check, columns);
      transpose(columns);
      for (int lane = 0; lane < lanes; ++lane)
        store_elements(rows + lane * filter + i, columns[lane], n);
    }
  }
}

template <class S>
class WgradRunner {
  using E = typename S::Element;
  static constexpr int64_t kRows = S::Math::kPerWord;  // rows of pixels in a row of words

 public:
  static WgradPlan plan(const Wgrad& w, int64_t threads) {
    const ConvProblem& p = w.problem;
    WgradPlan plan;
    plan.units = S::units(p);
    plan.unit_weights = S::vectors(p) * p.taps() * p.in_width() * kLanes;
    plan.col_words = S::col_words(p);
    plan.grad_col_words = S::grad_col_words(p);
    // Enough pixels a call to pay for loading and storing the accumulators.
    constexpr int64_t kPixels = 56;
    plan.step_rows = std::clamp<int64_t>(kPixels / p.out_w, 1, (p.out_h + kRows - 1) / kRows);
    plan.window = (p.kernel_h - 1) * p.dilation_h + (plan.step_rows - 1) * kRows * p.stride_h + 1;
    const int64_t span = (p.out_w - 1) * p.stride_w + (p.kernel_w - 1) * p.dilation_w + 1;
    plan.tile_cols = round_up(span, p.stride_w);
    plan.grad_cols = p.out_w + 2 * (kMaxRun - 1);
    const int64_t unit_words = plan.window * plan.tile_cols * plan.col_words +
                               plan.step_rows * plan.grad_cols * plan.grad_col_words;
    const Chunks chunks(
        plan.units, std::min(kChunkWeightWords / plan.unit_weights, 2 * kTileWords / unit_words),
        threads);
    // A run costs a few columns a row where not all of its taps meet a pixel.
    plan.longest_run = !w.exact && p.out_w >= S::kRunColumns ? S::kRun : 1;
    plan.chunk_units = chunks.units;
    plan.chunks = chunks.count;
    const int64_t rows = p.batch * p.out_h;
    plan.splits =
        std::clamp<int64_t>(wanted_splits(chunks, threads), 1, std::max<int64_t>(1, rows / 4));
    plan.tasks = plan.chunks * plan.splits;
    plan.scratch_words =
        plan.chunk_units * (unit_words + plan.unit_weights) + list_words(p, plan) + 64;
    return plan;
  }

  // Returns, like `reduce`, whether all sums that it wrote are finite.
  static bool run(const Wgrad& w, const WgradPlan& plan, float* partial, float* scratch,
                  int64_t begin, int64_t end) {
    WgradRunner runner(w, plan, partial, scratch);
    for (int64_t task = begin; task < end; ++task)
      runner.task(task / plan.splits, task % plan.splits);
    return passed(runner.check_);
  }

  // Sums the splits of units [begin, end) and writes their weights.
  static bool reduce(const Wgrad& w, const WgradPlan& plan, const float* partial, int64_t begin,
                     int64_t end) {
    Vec check = zero();
    for (int64_t unit = begin; unit < end; ++unit)
      write_weights<S>(w, unit, partial + unit * plan.unit_weights, plan.splits,
                       plan.units * plan.unit_weights, &check);
    return passed(check);
  }

 private:
  WgradRunner(const Wgrad& w, const WgradPlan& plan, float* partial, float* scratch)
      : w_(w), p_(w.problem), plan_(plan), partial_(partial) {
    runs_ = reinterpret_cast<TapRun*>(scratch);
    columns_ = reinterpret_cast<Columns*>(runs_ + p_.kernel_w);
    input_rows_ = reinterpret_cast<int64_t*>(columns_ + p_.kernel_w);
    grad_rows_ = input_rows_ + plan.step_rows;
    sums_ = scratch + round_up(list_words(p_, plan), 16);
    tile_ = sums_ + plan.chunk_units * plan.unit_weights;
  }

  static int64_t list_words(const ConvProblem& p, const WgradPlan& plan) {
    const int64_t taps = p.kernel_w * (sizeof(TapRun) + sizeof(Columns));
    return (taps + 2 * plan.step_rows * sizeof(int64_t)) / sizeof(float);
  }

  void task(int64_t chunk, int64_t split) {
    first_ = chunk * plan_.chunk_units;
    units_ = std::min(plan_.chunk_units, plan_.units - first_);
    slot_words_ = units_ * plan_.tile_cols * plan_.col_words;
    grad_unit_words_ = plan_.step_rows * plan_.grad_cols * plan_.grad_col_words;
    grads_ = tile_ + plan_.window * slot_words_;
    std::memset(grads_, 0, units_ * grad_unit_words_ * sizeof(float));
    // A chunk that no other task works on is finished here, while it lies in the cache.
    float* partial =
        plan_.whole ? sums_ : partial_ + (split * plan_.units + first_) * plan_.unit_weights;
    std::memset(partial, 0, units_ * plan_.unit_weights * sizeof(float));
    list_taps();
    const int64_t rows = p_.batch * p_.out_h;
    int64_t at = split * rows / plan_.splits;
    const int64_t end = (split + 1) * rows / plan_.splits;
    while (at < end) {
      const int64_t n = at / p_.out_h, y = at % p_.out_h;
      const int64_t here = std::min(end - at, p_.out_h - y);
      at += here;
      image(n, y, y + here, std::min(end - at, p_.out_h), partial);
    }
    if (!plan_.whole) return;
    for (int64_t u = 0; u < units_; ++u)
      write_weights<S>(w_, first_ + u, partial + u * plan_.unit_weights, 1, 0, &check_);
  }

  // Runs of taps, and the columns of grad_output for which each tap reads a pixel.
  void list_taps() {
    const TileRow row{plan_.tile_cols, plan_.col_words, p_.stride_w};
    run_count_ = 0;
    for (int64_t s = 0; s < p_.kernel_w; ++s) {
      const int64_t col = s * p_.dilation_w;
      run_count_ = add_tap(runs_, 0, run_count_, row.place(col) * plan_.col_words, s,
                           plan_.col_words, plan_.longest_run);
      columns_[s] = columns_of_tap(p_, s);
    }
  }

  // Output rows [row, row_end) of image n; the first `after` ones of the next image come then.
  void image(int64_t n, int64_t row, int64_t row_end, int64_t after, float* partial) {
    int64_t next = std::max(row * p_.stride_h - p_.pad_h, first_row());
    const int64_t step = plan_.step_rows * kRows;
    for (int64_t y = row; y < row_end; y += step) {
      const int64_t rows = (std::min(step, row_end - y) + kRows - 1) / kRows;
      const int64_t last = input_row(y, rows - 1) + (p_.kernel_h - 1) * p_.dilation_h;
      for (; next <= std::min(last, p_.in_h - 1); ++next) load_input(n, next);
      for (int64_t r = 0; r < rows; ++r) load_grad(n, y + r * kRows, row_end, r);
      if (y + step < row_end) {
        look_ahead(rows, n, next, y + step, std::min(step, row_end - y - step));
      } else {
        look_ahead(rows, n + 1, 0, 0, std::min(step, after));
      }
      sum_rows(y, rows, partial);
    }
  }

  // Turns to `rows` output rows from y on, for which the input rows from `next` on are needed,
  // while as many rows of words as `now` are summed.
  void look_ahead(int64_t now, int64_t n, int64_t next, int64_t y, int64_t rows) {
    // Of lines asked for at once. More of them would make a run of taps wait.
    constexpr int64_t kMostLines = 16;
    const int64_t input_rows = std::min(rows * p_.stride_h, p_.in_h - next);
    const int64_t input_channels = units_ * S::in_channels(p_);
    const int64_t grad_channels = units_ * S::out_channels(p_);
    const int64_t lines = input_rows * p_.in_w * lines_of<E>(input_channels) +
                          rows * p_.out_w * lines_of<E>(grad_channels);
    int64_t parts = p_.kernel_h * units_ * run_count_;
    asked_by_rows_ = lines > kMostLines * parts;
    if (asked_by_rows_) parts *= now;
    ahead_.input.start(pixel(w_.input, w_.input_strides, n, next, S::in_channels(p_)),
                       w_.input_strides, input_rows, p_.in_w, input_channels, parts);
    ahead_.grad.start(pixel(w_.grad_output, w_.grad_strides, n, y, S::out_channels(p_)),
                      w_.grad_strides, rows, p_.out_w, grad_channels, parts);
  }

  // The chunk's channels of a row's first pixel.
  const E* pixel(const void* images, const PixelStrides& strides, int64_t n, int64_t row,
                 int64_t channels) const {
    return static_cast<const E*>(images) + n * strides.n + row * strides.h + first_ * channels;
  }

  // The first input row that row r of words from output row y on meets.
  int64_t input_row(int64_t y, int64_t r) const { return (y + r * kRows) * p_.stride_h - p_.pad_h; }
  // The first input row whose words hold a row of the image.
  int64_t first_row() const { return (1 - kRows) * p_.stride_h; }

  // Words of the input row's place in the tile.
  int64_t input_slot(int64_t row) const { return (row - first_row()) % plan_.window * slot_words_; }

  // The words of input row `row` and, where rows go in pairs, of that which the next output row
  // meets in its place.
  void load_input(int64_t n, int64_t row) {
    const int64_t channels = S::in_channels(p_), step = p_.stride_h * w_.input_strides.h;
    const E* from = pixel(w_.input, w_.input_strides, n, row, channels);
    fill_row<typename S::Fill>(S::Rows::rows(from, step, row >= 0, row + p_.stride_h < p_.in_h),
                               w_.input_strides.w, -p_.pad_w, p_.in_w, channels,
                               p_.in_channels - first_ * channels, units_, tile_ + input_slot(row),
                               TileRow{plan_.tile_cols, plan_.col_words, p_.stride_w});
  }

  void load_grad(int64_t n, int64_t row, int64_t row_end, int64_t slot) {
    const int64_t channels = S::out_channels(p_);
    const E* from = pixel(w_.grad_output, w_.grad_strides, n, row, channels);
    // Rows of one unit lie together: a unit's step_rows rows, then the next unit.
    for (int64_t u = 0; u < units_; ++u)
      fill_row<typename S::Fill>(
          S::Rows::rows(from + u * channels, w_.grad_strides.h, true, row + 1 < row_end),
          w_.grad_strides.w, 0, p_.out_w, channels, p_.out_channels - (first_ + u) * channels, 1,
          grads_ + u * grad_unit_words_ + grad_row(slot),
          TileRow{p_.out_w, plan_.grad_col_words, 1});
  }

  // First pixel of a grad_output row, behind its zeros.
  int64_t grad_row(int64_t slot) const {
    return (slot * plan_.grad_cols + kMaxRun - 1) * plan_.grad_col_words;
  }

  void sum_rows(int64_t y, int64_t rows, float* partial) {
    for (int64_t vertical = 0; vertical < p_.kernel_h; ++vertical) {
      int64_t count = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t in = input_row(y, r) + vertical * p_.dilation_h;
        if (in < first_row() || in >= p_.in_h) continue;
        input_rows_[count] = input_slot(in);
        grad_rows_[count++] = grad_row(r);
      }
      WgradAhead* const ahead = asked_by_rows_ ? &ahead_ : nullptr;
      const PixelRows pixels{count, p_.out_w, input_rows_, grad_rows_, ahead};
      for (int64_t u = 0; u < units_; ++u) {
        float* sums = partial + u * plan_.unit_weights;
        for (int64_t i = 0; i < run_count_; ++i) {
          if (!asked_by_rows_) ahead_.part();
          if constexpr (S::kRun == 3) {
            if (runs_[i].count == 3) sum_run<3>(pixels, 0, u, vertical, runs_[i], sums);
            if (runs_[i].count == 2) sum_run<2>(pixels, 0, u, vertical, runs_[i], sums);
          }
          if (runs_[i].count == 1) {
            const Columns columns = columns_[runs_[i].tap[0]];
            const PixelRows met{count, columns.end - columns.begin, input_rows_, grad_rows_, ahead};
            sum_run<1>(met, columns.begin, u, vertical, runs_[i], sums);
          }
        }
      }
    }
  }

  // Columns from `begin` on. The last taps of a run are done with them a few steps after the first.
  template <int RUN>
  void sum_run(const PixelRows& pixels, int64_t begin, int64_t u, int64_t vertical,
               const TapRun& run, float* sums) const {
    float* to[RUN];
    for (int r = 0; r < RUN; ++r)
      to[r] = sums + (vertical * p_.kernel_w + run.tap[r]) * p_.in_width() * kLanes;
    const float* input = tile_ + (u * plan_.tile_cols + begin) * plan_.col_words + run.source;
    const float* grad = grads_ + u * grad_unit_words_ + begin * plan_.grad_col_words;
    const int64_t steps = pixels.columns + RUN - 1;
    for (int64_t at = 0; at < steps; at += kMostSummands) {
      const int64_t here = std::min(kMostSummands, steps - at);
      const PixelRows piece{pixels.rows, here - (RUN - 1), pixels.input, pixels.grad, pixels.ahead};
      S::template run<RUN>(p_, plan_, piece, input + at * plan_.col_words,
                           grad + at * plan_.grad_col_words, to);
    }
  }

  const Wgrad& w_;
  const ConvProblem& p_;
  const WgradPlan& plan_;
  float* partial_;
  float *sums_ = nullptr, *tile_ = nullptr, *grads_ = nullptr;
  TapRun* runs_;
  Columns* columns_;  // of each tap
  WgradAhead ahead_;
  bool asked_by_rows_ = false;  // not only by runs
  Vec check_ = zero();
  int64_t run_count_ = 0;
  int64_t *input_rows_, *grad_rows_;
  int64_t first_ = 0, units_ = 0, slot_words_ = 0, grad_unit_words_ = 0;
};
