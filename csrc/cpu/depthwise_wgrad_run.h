// Runs the weight gradient of one channel a group for one instruction set; included in its
// namespace. A pair of pixels makes one product a tap: to copy them into tiles would cost as much
// as the sums. They are read in place, a few vectors of their channels at a time.
#pragma once

// What RUN taps of one kernel row sum over: some columns of a few rows of grad_output, and the
// pixels of the input that the first of these taps meets there.
template <class E>
struct PixelsInPlace {
  int64_t rows = 0, columns = 0;
  const int64_t *input_rows = nullptr, *grad_rows = nullptr;  // elements from the first row
  const E *input = nullptr, *grad = nullptr;                  // the first column of that row
  int64_t input_step = 0, grad_step = 0;                      // elements from column to column
  int64_t tap_step = 0;                                       // and from tap to tap
};

// Adds to `to` the sums of RUN taps and VECS vectors of channels, which lie `vector_step` apart;
// `lanes` channels of a vector are there: an int, or a constant that spares the loads a test. Not
// inlined: next to each other not all would keep their sums in registers.
template <int RUN, int VECS, class E, class Lanes>
[[gnu::noinline]] void depthwise_wgrad_kernel(const PixelsInPlace<E>& pixels, int64_t channel,
                                              Lanes lanes, float* to, int64_t vector_step) {
  constexpr int kFours = (RUN + 3) / 4;
  const int64_t tap_step = pixels.tap_step, tap_step3 = 3 * tap_step;
  Vec acc[RUN * VECS];
#pragma GCC unroll 16
  for (Vec& sum : acc) sum = zero();
  for (int64_t row = 0; row < pixels.rows; ++row) {
    const E* x = pixels.input + pixels.input_rows[row] + channel;
    const E* g = pixels.grad + pixels.grad_rows[row] + channel;
    for (int64_t j = 0; j < pixels.columns; ++j, x += pixels.input_step, g += pixels.grad_step) {
      Vec gv[VECS];
#pragma GCC unroll 4
      for (int v = 0; v < VECS; ++v) gv[v] = load_elements(g + v * kLanes, lanes);
      // Taps by fours, for few address registers.
      const E* fours[kFours];
      for (int f = 0; f < kFours; ++f) fours[f] = x + 4 * f * tap_step;
#pragma GCC unroll 16
      for (int i = 0; i < RUN * VECS; ++i) {
        const int r = i / VECS, v = i % VECS;
        const E* tap = fours[r / 4] + (r % 4 == 3 ? tap_step3 : r % 4 * tap_step);
        acc[i] = fma(load_elements(tap + v * kLanes, lanes), gv[v], acc[i]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < RUN * VECS; ++i) {
    float* sum = to + i / VECS * kLanes + i % VECS * vector_step;
    store(sum, add(load(sum), acc[i]));
  }
}

template <class S>
class DepthwiseWgradRunner {
  using E = typename S::Element;
  static constexpr int kStrip = 4;  // units at a time

 public:
  static WgradPlan plan(const Wgrad& w, int64_t threads) {
    // Enough pixels a call to pay for loading and storing the accumulators; enough of them a split
    // to pay for its partial result. A few rows of all channels are to lie in the caches.
    constexpr int64_t kPixels = 56, kSplitPixels = 64, kRowWords = 4 * kTileWords;
    const ConvProblem& p = w.problem;
    WgradPlan plan;
    plan.units = S::units(p);
    plan.unit_weights = p.taps() * kLanes;
    plan.step_rows = std::clamp<int64_t>((kPixels + p.out_w - 1) / p.out_w, 1, p.out_h);
    const int64_t input_rows =
        std::min((p.kernel_h - 1) * p.dilation_h + (plan.step_rows - 1) * p.stride_h + 1, p.in_h);
    // Threads have pixels of their own, which they read as these lie in memory.
    plan.splits = std::clamp<int64_t>(p.batch * p.out_h * p.out_w / kSplitPixels, 1, threads);
    const int64_t sharing = threads / plan.splits;
    const int64_t row_words = (input_rows * p.in_w + plan.step_rows * p.out_w) * kLanes;
    const int64_t most = std::min(kRowWords / row_words, kChunkWeightWords / plan.unit_weights);
    const Chunks chunks(plan.units, std::min(most, (plan.units + sharing - 1) / sharing), sharing);
    plan.chunk_units = chunks.units;
    plan.chunks = chunks.count;
    plan.tasks = plan.chunks * plan.splits;
    plan.scratch_words = plan.chunk_units * plan.unit_weights + list_words(p, plan) + 64;
    return plan;
  }

  // Returns true: no product with a zero beside the image is in the sums.
  static bool run(const Wgrad& w, const WgradPlan& plan, float* partial, float* scratch,
                  int64_t begin, int64_t end) {
    DepthwiseWgradRunner runner(w, plan, partial, scratch);
    for (int64_t task = begin; task < end; ++task)
      runner.task(task % plan.chunks, task / plan.chunks);
    return true;
  }

 private:
  DepthwiseWgradRunner(const Wgrad& w, const WgradPlan& plan, float* partial, float* scratch)
      : w_(w), p_(w.problem), plan_(plan), partial_(partial) {
    columns_ = reinterpret_cast<Columns*>(scratch);
    input_rows_ = reinterpret_cast<int64_t*>(columns_ + p_.kernel_w);
    grad_rows_ = input_rows_ + plan.step_rows;
    sums_ = scratch + round_up(list_words(p_, plan), 16);
    list_columns();
  }

  static int64_t list_words(const ConvProblem& p, const WgradPlan& plan) {
    const int64_t bytes = p.kernel_w * sizeof(Columns) + 2 * plan.step_rows * sizeof(int64_t);
    return bytes / static_cast<int64_t>(sizeof(float));
  }

  // The columns of grad_output for which each tap reads a pixel, and those for which all do.
  void list_columns() {
    inside_ = {0, p_.out_w};
    for (int64_t s = 0; s < p_.kernel_w; ++s) {
      columns_[s] = columns_of_tap(p_, s);
      inside_.begin = std::max(inside_.begin, columns_[s].begin);
      inside_.end = std::min(inside_.end, columns_[s].end);
    }
    constexpr int64_t kFewest = 3;  // fewer go tap by tap, with the others
    if (inside_.end - inside_.begin < kFewest) inside_ = {p_.out_w, p_.out_w};
  }

  void task(int64_t chunk, int64_t split) {
    first_ = chunk * plan_.chunk_units;
    units_ = std::min(plan_.chunk_units, plan_.units - first_);
    float* partial =
        plan_.whole ? sums_ : partial_ + (split * plan_.units + first_) * plan_.unit_weights;
    std::memset(partial, 0, units_ * plan_.unit_weights * sizeof(float));
    const int64_t all = p_.batch * p_.out_h, end = (split + 1) * all / plan_.splits;
    int64_t at = split * all / plan_.splits, read = 0;  // rows of the batch, of an image's input
    while (at < end) {
      const int64_t n = at / p_.out_h, y = at % p_.out_h;
      const int64_t rows = std::min({end - at, p_.out_h - y, plan_.step_rows});
      at += rows;
      read = read_ahead(n, y, rows, y == 0 ? 0 : read);
      sum_rows(n, y, rows, partial);
    }
    if (!plan_.whole) return;
    Vec check = zero();
    for (int64_t u = 0; u < units_; ++u)
      write_weights<S>(w_, first_ + u, partial + u * plan_.unit_weights, 1, 0, &check);
  }

  // The chunk's channels of a row's first pixel.
  const E* pixel(const void* images, const PixelStrides& strides, int64_t n, int64_t row) const {
    return static_cast<const E*>(images) + n * strides.n + row * strides.h + first_ * kLanes;
  }

  // Brings output rows [y, y + rows) of image n, and the input rows that they meet, into the cache,
  // but for the `done` first ones of the input; returns how many are there then.
  int64_t read_ahead(int64_t n, int64_t y, int64_t rows, int64_t done) const {
    const int64_t first = y * p_.stride_h - p_.pad_h;
    const int64_t last = first + (rows - 1) * p_.stride_h + (p_.kernel_h - 1) * p_.dilation_h;
    const int64_t begin = std::clamp(first, done, p_.in_h);
    const int64_t end = std::clamp(last + 1, begin, p_.in_h);
    const int64_t channels = std::min(units_ * kLanes, p_.in_channels - first_ * kLanes);
    read_rows(pixel(w_.input, w_.input_strides, n, begin), w_.input_strides, end - begin, p_.in_w,
              channels);
    read_rows(pixel(w_.grad_output, w_.grad_strides, n, y), w_.grad_strides, rows, p_.out_w,
              channels);
    return end;
  }

  // Output rows [y, y + rows) of image n.
  void sum_rows(int64_t n, int64_t y, int64_t rows, float* partial) const {
    const int64_t whole = std::min(units_, p_.in_channels / kLanes - first_);
    constexpr std::integral_constant<int, kLanes> kWhole;
    const int rest = static_cast<int>(p_.in_channels % kLanes);
    int64_t u = 0;
    const auto next = [&]<int UNITS>(auto lanes) {
      strip<UNITS>(n, y, rows, u * kLanes, lanes, partial + u * plan_.unit_weights);
      u += UNITS;
    };
    while (u + kStrip <= whole) next.template operator()<kStrip>(kWhole);
    while (u < whole) next.template operator()<1>(kWhole);
    if (u < units_) next.template operator()<1>(rest);
  }

  // UNITS units from the chunk's `channel` on.
  template <int UNITS, class Lanes>
  void strip(int64_t n, int64_t y, int64_t rows, int64_t channel, Lanes lanes, float* to) const {
    PixelsInPlace<E> pixels;
    pixels.input_rows = input_rows_;
    pixels.grad_rows = grad_rows_;
    pixels.input_step = p_.stride_w * w_.input_strides.w;
    pixels.grad_step = w_.grad_strides.w;
    pixels.tap_step = p_.dilation_w * w_.input_strides.w;
    const E* input = pixel(w_.input, w_.input_strides, n, 0);
    const E* grad = pixel(w_.grad_output, w_.grad_strides, n, 0);
    for (int64_t r = 0; r < p_.kernel_h; ++r, to += p_.kernel_w * kLanes) {
      pixels.rows = 0;
      for (int64_t i = y; i < y + rows; ++i) {
        const int64_t in = i * p_.stride_h - p_.pad_h + r * p_.dilation_h;
        if (in < 0 || in >= p_.in_h) continue;
        input_rows_[pixels.rows] = in * w_.input_strides.h;
        grad_rows_[pixels.rows++] = i * w_.grad_strides.h;
      }
      // Columns [begin, end) for the taps from s on.
      const auto turn_to = [&](int64_t begin, int64_t end, int64_t s) {
        pixels.columns = end - begin;
        pixels.input =
            input + (begin * p_.stride_w - p_.pad_w) * w_.input_strides.w + s * pixels.tap_step;
        pixels.grad = grad + begin * pixels.grad_step;
        return pixels.columns > 0;
      };
      if (inside_.begin < inside_.end) {
        int64_t s = 0;
        const auto run = [&]<int RUN>() {
          constexpr int kVectors = std::min(UNITS, 2);
          for (; s + RUN <= p_.kernel_w; s += RUN)
            for (int64_t at = inside_.begin; at < inside_.end; at += kMostSummands) {
              turn_to(at, std::min(at + kMostSummands, inside_.end), s);
              for (int u = 0; u < UNITS; u += kVectors)
                depthwise_wgrad_kernel<RUN, kVectors>(pixels, channel + u * kLanes, lanes,
                                                      to + u * plan_.unit_weights + s * kLanes,
                                                      plan_.unit_weights);
            }
        };
        run.template operator()<7>();
        run.template operator()<5>();
        run.template operator()<3>();
        run.template operator()<1>();
      }
      for (int64_t s = 0; s < p_.kernel_w; ++s) {
        const Columns c = columns_[s];
        if (turn_to(c.begin, std::min(c.end, inside_.begin), s))
          depthwise_wgrad_kernel<1, UNITS>(pixels, channel, lanes, to + s * kLanes,
                                           plan_.unit_weights);
        if (turn_to(std::max(c.begin, inside_.end), c.end, s))
          depthwise_wgrad_kernel<1, UNITS>(pixels, channel, lanes, to + s * kLanes,
                                           plan_.unit_weights);
      }
    }
  }

  const Wgrad& w_;
  const ConvProblem& p_;
  const WgradPlan& plan_;
  float *partial_, *sums_;
  Columns* columns_;  // of each tap
  Columns inside_;    // of all taps
  int64_t *input_rows_, *grad_rows_;
  int64_t first_ = 0, units_ = 0;
};
