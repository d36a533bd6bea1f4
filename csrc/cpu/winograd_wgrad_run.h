// Runs the weight gradient of 3x3 taps a pixel apart Winograd's way for one instruction set: cuts
// grad_output into blocks of tiles, transforms a chunk's pixels once a block, sums their products,
// and turns these into taps at the end; included in its namespace.
#pragma once

template <class S, int STRIDE>
class WinogradWgradRunner {
  using E = typename S::Element;
  using W = Winograd<Along<STRIDE>>;
  using Taps = WinogradTaps<STRIDE>;

 public:
  // As WgradRunner's, but that splits are of blocks of tiles.
  static WgradPlan plan(const Wgrad& w, int64_t threads) {
    const ConvProblem& p = w.problem;
    WgradPlan plan;
    plan.units = S::units(p);
    plan.unit_weights = S::vectors(p) * p.taps() * p.in_width() * kLanes;
    const WinogradWgradRunner r(w, plan, nullptr);
    const Chunks chunks(plan.units, kMostWords / r.unit_sums_, threads);
    plan.chunk_units = chunks.units;
    plan.chunks = chunks.count;
    plan.splits = std::clamp<int64_t>(wanted_splits(chunks, threads), 1,
                                      std::max<int64_t>(1, r.blocks() / 2));
    plan.tasks = plan.chunks * plan.splits;
    plan.scratch_words =
        plan.chunk_units * (plan.unit_weights + r.unit_sums_) + W::kPoints * r.patch_words_ +
        Taps::kGrads * r.grad_words_ +
        round_up(plan.chunk_units * std::max(p.in_width(), p.out_width()) + kLanes, 16);
    return plan;
  }

  // Returns, like WgradRunner's, whether all sums that it wrote are finite.
  static bool run(const Wgrad& w, const WgradPlan& plan, float* partial, float* scratch,
                  int64_t begin, int64_t end) {
    WinogradWgradRunner runner(w, plan, partial);
    runner.lay_out(scratch);
    for (int64_t task = begin; task < end; ++task)
      runner.task(task / plan.splits, task % plan.splits);
    return passed(runner.check_);
  }

 private:
  static constexpr int kMostTiles = 28;             // of a block
  static constexpr int64_t kMostWords = 64 * 1024;  // of a chunk's sums

  struct Block {
    int64_t row, col;  // its first tile's; rows are of all images
  };

  WinogradWgradRunner(const Wgrad& w, const WgradPlan& plan, float* partial)
      : w_(w),
        p_(w.problem),
        plan_(plan),
        partial_(partial),
        tile_rows_((p_.out_h + 1) / 2),
        tile_cols_((p_.out_w + 1) / 2),
        cols_(tile_cols_, kMostTiles),
        rows_(p_.batch * tile_rows_, kMostTiles / cols_.size),
        block_words_(rows_.size * cols_.size * kLanes),
        patch_words_((p_.in_width() + kLanes - 1) / kLanes * block_words_),
        grad_words_(S::vectors(p_) * block_words_),
        unit_sums_(S::vectors(p_) * W::kWeights * p_.in_width() * kLanes) {}

  int64_t blocks() const { return rows_.count * cols_.count; }

  void lay_out(float* scratch) {
    weights_ = scratch;
    sums_ = weights_ + plan_.chunk_units * plan_.unit_weights;
    patches_ = sums_ + plan_.chunk_units * unit_sums_;
    grads_ = patches_ + W::kPoints * patch_words_;
    zeros_ = reinterpret_cast<E*>(grads_ + Taps::kGrads * grad_words_);
    std::fill_n(zeros_, plan_.chunk_units * std::max(p_.in_width(), p_.out_width()) + kLanes, E{0});
  }

  void task(int64_t chunk, int64_t split) {
    first_ = chunk * plan_.chunk_units;
    units_ = std::min(plan_.chunk_units, plan_.units - first_);
    const int64_t begin = split * blocks() / plan_.splits;
    const int64_t end = (split + 1) * blocks() / plan_.splits;
    for (int64_t b = begin; b < end; ++b) {
      list_pixels(block_of(b));
      for (int64_t u = 0; u < units_; ++u) {
        if (u + 1 < units_) {
          look_ahead(block_of(b), u + 1);
        } else if (b + 1 < end) {
          look_ahead(block_of(b + 1), 0);
        }
        unit(u, b == begin);
      }
    }
    // A chunk that no other task works on is finished here, while it lies in the cache.
    float* to =
        plan_.whole ? weights_ : partial_ + (split * plan_.units + first_) * plan_.unit_weights;
    for (int64_t u = 0; u < units_; ++u, to += plan_.unit_weights) {
      finish(u, to);
      if (plan_.whole) write_weights<S>(w_, first_ + u, to, 1, 0, &check_);
    }
  }

  Block block_of(int64_t b) const {
    return {b / cols_.count * rows_.size, b % cols_.count * cols_.size};
  }

  const E* input(int64_t n, int64_t row, int64_t col) const {
    const PixelStrides& s = w_.input_strides;
    return static_cast<const E*>(w_.input) + n * s.n + row * s.h + col * s.w +
           first_ * p_.in_width();
  }
  const E* grad_output(int64_t n, int64_t row, int64_t col) const {
    const PixelStrides& s = w_.grad_strides;
    return static_cast<const E*>(w_.grad_output) + n * s.n + row * s.h + col * s.w +
           first_ * p_.out_width();
  }

  // Zeros stand for what lies beside the images.
  void list_pixels(const Block& b) {
    rows_here_ = std::min(rows_.size, rows_all() - b.row);
    cols_here_ = std::min(cols_.size, tile_cols_ - b.col);
    input_cols_ = W::kStep * cols_here_ + W::kShared;
    const E **input_at = inputs_, **grad_at = grad_pixels_;
    for (int64_t y = b.row; y < b.row + rows_here_; ++y) {
      const int64_t n = y / tile_rows_, tile_row = y % tile_rows_;
      for (int64_t i = 0; i < W::kSide; ++i)
        for (int64_t j = 0; j < input_cols_; ++j) {
          const int64_t row = W::kStep * tile_row - p_.pad_h + i;
          const int64_t col = W::kStep * b.col - p_.pad_w + j;
          const bool there = row >= 0 && row < p_.in_h && col >= 0 && col < p_.in_w;
          *input_at++ = there ? input(n, row, col) : zeros_;
        }
      for (int64_t x = b.col; x < b.col + cols_here_; ++x)
        for (int i = 0; i < 4; ++i) {
          const int64_t row = 2 * tile_row + i / 2, col = 2 * x + i % 2;
          *grad_at++ = row < p_.out_h && col < p_.out_w ? grad_output(n, row, col) : zeros_;
        }
    }
  }
  int64_t rows_all() const { return p_.batch * tile_rows_; }

  // Turns to a unit's pixels of a block.
  void look_ahead(const Block& b, int64_t u) {
    const int64_t n = b.row / tile_rows_, tile_row = b.row % tile_rows_;
    const int64_t rows = std::min(rows_.size, rows_all() - b.row);
    const int64_t cols = std::min(cols_.size, tile_cols_ - b.col);
    const int64_t row = std::max<int64_t>(W::kStep * tile_row - p_.pad_h, 0);
    const int64_t col = std::max<int64_t>(W::kStep * b.col - p_.pad_w, 0);
    const int64_t side = W::kStep * cols + W::kShared;
    ahead_.input.start(input(n, row, col) + u * p_.in_width(), w_.input_strides,
                       W::kStep * rows + W::kShared, std::min(side, p_.in_w - col), p_.in_width(),
                       W::kWeights);
    ahead_.grad.start(grad_output(n, 2 * tile_row, 2 * b.col) + u * p_.out_width(), w_.grad_strides,
                      2 * rows, std::min(2 * cols, p_.out_w - 2 * b.col), p_.out_width(),
                      W::kWeights);
  }

  // Adds the products of a unit's tiles to its sums.
  void unit(int64_t u, bool first) {
    const int64_t in = p_.in_width(), out = p_.out_width();
    for (int64_t c = 0; c < in; c += kLanes) {
      const int n = static_cast<int>(std::min<int64_t>(kLanes, in - c));
      float* to = patches_ + c / kLanes * block_words_;
      const auto patch_row =
          n == kLanes ? W::template patch_row<kLanes, E> : W::template patch_row<0, E>;
      for (int64_t y = 0; y < rows_here_; ++y)
        patch_row(inputs_ + W::kSide * y * input_cols_, input_cols_, cols_here_, u * in + c, n,
                  to + y * cols_here_ * kLanes, patch_words_);
    }
    for (int64_t k = 0; k < out; k += kLanes) {
      const int n = static_cast<int>(std::min<int64_t>(kLanes, out - k));
      float* to = grads_ + k / kLanes * block_words_;
      if (n == kLanes) {
        grad_tiles<kLanes>(u * out + k, n, to);
      } else {
        grad_tiles<0>(u * out + k, n, to);
      }
    }
    TileSums sums = {.patches = patches_,
                     .grads = grads_,
                     .to = sums_ + u * unit_sums_,
                     .patch_words = patch_words_,
                     .grad_words = grad_words_,
                     .grad_step = block_words_,
                     .vector_step = in * kLanes,
                     .tiles = rows_here_ * cols_here_,
                     .first = first};
    const int64_t vectors = S::vectors(p_);
    for (const auto& pairs : Taps::kPairs) {
      ahead_.part();
      int64_t v = 0;
      for (; v + 2 <= vectors; v += 2) channels<kMostChannels / 2, 2>(sums, pairs, v);
      for (; v < vectors; ++v) channels<kMostChannels, 1>(sums, pairs, v);
      sums.to += vectors * sums.vector_step;
    }
  }

  static constexpr int kMostChannels = kLanes;

  template <int CHANNELS, int VECS, class Pairs>
  void channels(const TileSums& sums, const Pairs& pairs, int64_t v) {
    float* to = sums.to + v * sums.vector_step;
    const float* grads = sums.grads + v * sums.grad_step;
    const int64_t width = p_.in_width();
    int64_t c = 0;
    const auto call = [&]<int N>() {
      for (; c + N <= width; c += N)
        sum_tiles<N, VECS>(sums, pairs, sums.patches + c / kLanes * block_words_ + c % kLanes,
                           grads, to + c * kLanes);
    };
    call.template operator()<CHANNELS>();
    if constexpr (CHANNELS > 8) call.template operator()<8>();
    if constexpr (CHANNELS > 4) call.template operator()<4>();
    call.template operator()<1>();
  }

  template <int N>
  void grad_tiles(int64_t channel, int n, float* to) const {
    const int64_t tiles = rows_here_ * cols_here_, step = grad_words_;
    const E* const* at = grad_pixels_;
    for (int64_t t = 0; t < tiles; ++t, at += 4, to += kLanes) {
      Vec y[2][2];
      for (int i = 0; i < 4; ++i) y[i / 2][i % 2] = load_elements(at[i] + channel, N ? N : n);
      Taps::grads(y, to, step);
    }
  }

  // Turns a unit's sums into the gradient of its taps, [vector][tap][channel][lane].
  void finish(int64_t u, float* to) const {
    const int64_t words = p_.in_width() * kLanes;
    const float* sums = sums_ + u * unit_sums_;
    const int64_t step = S::vectors(p_) * words;
    for (int64_t v = 0; v < S::vectors(p_); ++v, sums += words, to += 9 * words)
      for (int64_t c = 0; c < words; c += kLanes) Taps::taps(sums + c, step, to + c, words);
  }

  const Wgrad& w_;
  const ConvProblem& p_;
  const WgradPlan& plan_;
  float* partial_;
  int64_t tile_rows_, tile_cols_;  // of an image
  Parts cols_, rows_;              // blocks of them
  int64_t block_words_;            // of one vector at one point
  int64_t patch_words_, grad_words_, unit_sums_;
  float *weights_ = nullptr, *sums_ = nullptr, *patches_ = nullptr, *grads_ = nullptr;
  E* zeros_ = nullptr;
  WgradAhead ahead_;
  Vec check_ = zero();
  int64_t first_ = 0, units_ = 0;
  int64_t rows_here_ = 0, cols_here_ = 0, input_cols_ = 0;  // of the block
  const E* inputs_[W::kSide * W::kSide * kMostTiles];
  const E* grad_pixels_[4 * kMostTiles];
};
