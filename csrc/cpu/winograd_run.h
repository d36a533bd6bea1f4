// Runs a TapConv of 3x3 taps a pixel apart Winograd's way for one instruction set: cuts the
// destination into blocks of tiles, transforms a chunk's weights once and a unit's patches once a
// block; included in its namespace.
#pragma once

// Of a chunk, which every block reads: half of the second-level cache.
inline int64_t winograd_weight_words() {
  constexpr int64_t kFewest = 32 * 1024, kMost = 128 * 1024;
  return std::clamp(second_level_cache() / 8, kFewest, kMost);
}

template <class S, class One>
class WinogradRunner {
  using E = typename S::E;
  using W = Winograd<One>;
  static constexpr int kVecs = S::kIsLane ? 1 : 2;
  static constexpr int64_t kResults = W::kResults;

 public:
  // A task is a block of tiles of one image, for one chunk of units.
  static TapPlan plan(const TapConv& c, int64_t threads) {
    const WinogradRunner r(c);
    TapPlan p;
    p.units = S::units(c);
    p.unit_weights = S::dst_vectors(c) * r.vector_weights_;
    // A thread transforms weights for itself: blocks of the same units belong to few threads. Those
    // of lane kernels take less time than what threads lose that write to the same pixels.
    const int64_t blocks = c.batch * r.blocks_.count();
    const int64_t shared = p.units * blocks / ((S::kIsLane ? 1 : 4) * threads);
    const Chunks chunks(p.units, std::min(winograd_weight_words() / p.unit_weights, shared),
                        threads);
    p.chunk_units = chunks.units;
    p.chunks = chunks.count;
    // Half lines would come in bursts here, which takes longer than reading what they overwrite.
    p.stream = kLineVectors == 1 && streams<S>(c, p);
    p.tasks = p.chunks * blocks;
    p.scratch_words = p.chunk_units * p.unit_weights + r.tap_weights_ +
                      W::kPatches * r.point_words_ + W::kPoints * kVecs * kBlockWords +
                      round_up(p.chunk_units * r.channels_ + kLanes, 16);
    return p;
  }

  // Returns whether all sums are finite.
  static bool run(const TapConv& c, const TapPlan& p, float* scratch, int64_t begin, int64_t end) {
    WinogradRunner runner(c);
    runner.lay_out(p, scratch);
    if (begin < end) runner.look_ahead(runner.block_of(begin), 0);  // while it packs weights
    for (int64_t task = begin; task < end; ++task) runner.block(task, task + 1 < end);
    if (p.stream) stream_fence();
    return passed(runner.check_);
  }

 private:
  struct Block : TileBlock {
    int64_t chunk, n;
  };

  explicit WinogradRunner(const TapConv& c)
      : c_(c),
        blocks_(W::tiles(c.dst_rows), W::tiles(c.dst_cols), most_tiles(c), !S::kIsLane),
        channels_(S::unit_channels(c)),
        point_words_((channels_ + kLanes - 1) / kLanes * kBlockWords),
        tap_weights_(9 * S::tap_words(c) * kLanes),
        vector_weights_(W::kWeights * S::tap_words(c) * kLanes) {}

  // Where few products are made of many points, these have to stay in the first-level cache.
  static int64_t most_tiles(const TapConv& c) {
    if (S::dst_vectors(c) > 1) return kTilesOfTwo;
    return S::kIsLane && W::kPoints > 16 ? kTiles / 2 : kTiles;
  }

  void lay_out(const TapPlan& p, float* scratch) {
    plan_ = &p;
    weights_ = scratch;
    taps_ = weights_ + p.chunk_units * p.unit_weights;
    patches_ = taps_ + tap_weights_;
    products_ = patches_ + W::kPatches * point_words_;
    // Pixels are asked for while the units before compute: those that share cache lines at once.
    // Units of lane kernels take no time: all of them a block before.
    const int64_t units_of_a_line = kLineBytes / static_cast<int64_t>(channels_ * sizeof(E));
    ahead_units_ = S::kIsLane ? p.chunk_units : std::max<int64_t>(1, units_of_a_line);
    zeros_ = reinterpret_cast<E*>(products_ + W::kPoints * kVecs * kBlockWords);
    std::fill_n(zeros_, p.chunk_units * channels_ + kLanes, E{0});
  }

  Block block_of(int64_t task) const {
    const int64_t image = task / blocks_.count();
    return {blocks_.block(task % blocks_.count()), image / c_.batch, image % c_.batch};
  }

  void block(int64_t task, bool more) {
    const Block b = block_of(task);
    if (b.chunk != chunk_) start_chunk(b.chunk);
    list_pixels(b);
    for (int64_t u = 0; u < units_; ++u) {
      if (u % ahead_units_ == 0) {
        if (u + ahead_units_ < units_) {
          look_ahead(b, u + ahead_units_);
        } else if (more) {
          look_ahead(block_of(task + 1), 0);
        }
      }
      unit(u);
    }
  }

  void start_chunk(int64_t chunk) {
    chunk_ = chunk;
    first_ = chunk * plan_->chunk_units;
    units_ = std::min(plan_->chunk_units, plan_->units - first_);
    const int64_t words = S::tap_words(c_) * kLanes;
    // dgrad meets the pixels of a patch from the last tap to the first.
    const bool turned = c_.vertical.transposed;
    float* to = weights_;
    for (int64_t u = 0; u < units_; ++u)
      for (int64_t v = 0; v < S::dst_vectors(c_); ++v, to += vector_weights_) {
        WeightPacker<S>(c_, first_ + u, v).pack(taps_);
        for (int64_t w = 0; w < words; w += kLanes) {
          Vec g[3][3];
          for (int t = 0; t < 9; ++t)
            g[t / 3][t % 3] = load(taps_ + (turned ? 8 - t : t) * words + w);
          W::taps(g, to + w, words);
        }
        ask_ahead();
      }
  }

  const E* source(const Block& b, int64_t row, int64_t col) const {
    return static_cast<const E*>(c_.src) + b.n * c_.src_strides.n + row * c_.src_strides.h +
           col * c_.src_strides.w + b.chunk * plan_->chunk_units * channels_;
  }
  int64_t result(const Block& b, int64_t row, int64_t col) const {
    return ((b.n * c_.dst_rows + row) * c_.dst_cols + col) * c_.dst_channels();
  }
  int64_t source_row(int64_t tile_row) const {
    return W::kStep * tile_row + One::first_pixel(c_.vertical);
  }
  int64_t source_col(int64_t tile_col) const {
    return W::kStep * tile_col + One::first_pixel(c_.horizontal);
  }

  void list_pixels(const Block& b) {
    segments_here_ = blocks_.segments(b, segments_);
    const E** source_at = sources_;
    int64_t* result_at = results_;
    for (int64_t i = 0; i < segments_here_; ++i) {
      source_at = list_sources(b, segments_[i], source_at);
      result_at = list_results(b, segments_[i], result_at);
    }
    tiles_here_ = (result_at - results_) / W::kPixels;
  }

  // Zeros stand for what lies beside the source.
  const E** list_sources(const Block& b, const TileSegment& s, const E** at) const {
    const int64_t first_row = source_row(s.row), first_col = source_col(s.col);
    for (int64_t row = first_row; row < first_row + W::kSide; ++row)
      for (int64_t col = first_col; col < first_col + source_cols(s); ++col) {
        const bool there = row >= 0 && row < c_.src_rows && col >= 0 && col < c_.src_cols;
        *at++ = there ? source(b, row, col) : zeros_;
      }
    return at;
  }
  // Those beside the destination are at -1.
  int64_t* list_results(const Block& b, const TileSegment& s, int64_t* at) const {
    for (int64_t x = s.col; x < s.col + s.tiles; ++x)
      for (int i = 0; i < W::kPixels; ++i) {
        const int64_t row = kResults * s.row + i / kResults, col = kResults * x + i % kResults;
        *at++ = row < c_.dst_rows && col < c_.dst_cols ? result(b, row, col) : -1;
      }
    return at;
  }
  int64_t source_cols(const TileSegment& s) const { return W::kStep * s.tiles + W::kShared; }

  // Turns to the pixels that some units from u on of a block read, and blocks before it did not,
  // and to those they write.
  void look_ahead(const Block& b, int64_t u) {
    const int64_t units = ahead_units_;
    const int64_t parts = units * W::kPoints * ((S::dst_vectors(c_) + kVecs - 1) / kVecs);
    const int64_t row = std::max<int64_t>(source_row(b.row) + (b.row > 0 ? W::kShared : 0), 0);
    const int64_t col = std::max<int64_t>(source_col(b.col) + (b.col > 0 ? W::kShared : 0), 0);
    const int64_t rows = std::min(source_row(b.row + b.rows) + W::kShared, c_.src_rows) - row;
    const int64_t cols = std::min(source_col(b.col + b.cols) + W::kShared, c_.src_cols) - col;
    sources_ahead_.start(source(b, row, col) + u * channels_, c_.src_strides,
                         b.rows > 0 && cols > 0 ? rows : 0, cols, units * channels_, parts);
    if (plan_->stream) return;
    const PixelStrides dense = {0, c_.dst_cols * c_.dst_channels(), c_.dst_channels()};
    const E* to = static_cast<const E*>(c_.dst) + result(b, kResults * b.row, kResults * b.col) +
                  (b.chunk * plan_->chunk_units + u) * S::unit_dst(c_);
    results_ahead_.start(to, dense, std::min(kResults * b.rows, c_.dst_rows - kResults * b.row),
                         std::min(kResults * b.cols, c_.dst_cols - kResults * b.col),
                         units * S::unit_dst(c_), parts);
  }

  void ask_ahead() {
    sources_ahead_.part();
    results_ahead_.part();
  }

  void unit(int64_t u) {
    const int64_t here = std::min(channels_, c_.src_channels() - (first_ + u) * channels_);
    float* to = patches_;
    for (int64_t c = 0; c < here; c += kLanes, to += kBlockWords) {
      const int n = static_cast<int>(std::min<int64_t>(kLanes, here - c));
      const auto patch_row =
          n == kLanes ? W::template patch_row<kLanes, E> : W::template patch_row<0, E>;
      const E* const* sources = sources_;
      float* row_to = to;
      for (int64_t i = 0; i < segments_here_; ++i) {
        const TileSegment& s = segments_[i];
        patch_row(sources, source_cols(s), s.tiles, u * channels_ + c, n, row_to, point_words_);
        sources += W::kSide * source_cols(s);
        row_to += s.tiles * kLanes;
      }
    }
    const int64_t vectors = S::dst_vectors(c_);
    int64_t v = 0;
    for (; v + kVecs <= vectors; v += kVecs) multiply<kVecs>(u, v);
    for (; v < vectors; ++v) multiply<1>(u, v);
  }

  // VECS vectors of destination channels from v on.
  template <int VECS>
  void multiply(int64_t u, int64_t v) {
    const int tiles = static_cast<int>(tiles_here_);
    const float* weights = weights_ + u * plan_->unit_weights + v * vector_weights_;
    const Products operands = {.patches = patches_,
                               .weights = weights,
                               .to = products_,
                               .points = W::kPoints,
                               .patch_of = W::kPatchOf.data(),
                               .weight_of = W::kWeightOf.data(),
                               .channels = S::tap_words(c_),
                               .point_words = point_words_,
                               .weight_step = vector_weights_};
    const auto between = [this] { ask_ahead(); };
    if constexpr (S::kIsLane) {
      multiply_lane(tiles, operands, between);
    } else {
      constexpr int kMost = VECS == 1 ? kTiles : kTilesOfTwo;
      multiply_broadcast<VECS>(tiles, operands, between, std::make_integer_sequence<int, kMost>());
    }
    const int64_t unit = first_ + u, dst_unit = S::unit_dst(c_);
    const int64_t unit_end = std::min((unit + 1) * dst_unit, c_.dst_channels());
    for (int i = 0; i < VECS; ++i) {
      const int64_t channel = unit * dst_unit + (v + i) * kLanes;
      const int n = static_cast<int>(std::min<int64_t>(kLanes, unit_end - channel));
      const float* products = products_ + i * W::kPoints * kBlockWords;
      if (n == kLanes && !c_.bias && !c_.residual && !c_.relu) {
        finish<true>(tiles, products, channel, n);
      } else {
        finish<false>(tiles, products, channel, n);
      }
    }
  }

  // Turns products into results; PLAIN ones are whole vectors without an epilogue.
  template <bool PLAIN>
  void finish(int tiles, const float* products, int64_t channel, int n) {
    const Epilogue<E> epilogue(c_, channel, n);
    E* const dst = static_cast<E*>(c_.dst);
    const bool stream = plan_->stream;
    Vec check = check_;
    for (int t = 0; t < tiles; ++t, products += kLanes) {
      Vec y[W::kPixels];
      W::results(products, kBlockWords, y);
      for (int i = 0; i < W::kPixels; ++i) {
        const int64_t at = results_[W::kPixels * t + i] + channel;
        if (at < channel) continue;
        check = check_finite<F32>(check, y[i]);
        E* to = dst + at;
        const Vec result = PLAIN ? y[i] : epilogue(y[i], at);
        if (stream) {
          lines_.put(to, channel, W::kPixels * t + i, result);
        } else {
          store_elements(to, result, PLAIN ? kLanes : n);
        }
      }
    }
    check_ = check;
  }

  const TapConv& c_;
  const TapPlan* plan_ = nullptr;
  TileBlocks blocks_;        // of an image
  int64_t channels_;         // of a unit
  int64_t ahead_units_ = 1;  // whose pixels are asked for at once
  int64_t point_words_, tap_weights_, vector_weights_;
  float *weights_ = nullptr, *taps_ = nullptr, *patches_ = nullptr, *products_ = nullptr;
  E* zeros_ = nullptr;
  LookAhead sources_ahead_, results_ahead_;
  LineStream<W::kPixels * kTiles> lines_;
  Vec check_ = zero();
  int64_t chunk_ = -1, first_ = 0, units_ = 0;
  int64_t segments_here_ = 0, tiles_here_ = 0;  // of the block
  TileSegment segments_[kTiles];
  // As many as all tiles apart would have.
  const E* sources_[W::kSide * W::kSide * kTiles];
  int64_t results_[W::kPixels * kTiles];
};
