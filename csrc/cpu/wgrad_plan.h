// The weight gradient: for every tap, sum over pixels of (grad_output pixel) x (input pixel).
#pragma once

#include "tap_conv.h"

namespace rnk::cpu {

struct Wgrad {
  ConvProblem problem;
  Element element = Element::f32;
  const void* input = nullptr;
  PixelStrides input_strides{};
  const void* grad_output = nullptr;
  PixelStrides grad_strides{};
  void* grad_weight = nullptr;  // dense
  bool exact = false;           // leave out products with the zeros beside rows and images
  bool taps_inside = true;      // contiguous: the taps of a channel side by side; or channels_last
};

// Of one float32 sum over the pixels of a row: one of many more would lose too much to rounding.
constexpr int64_t kMostSummands = 512;

// The columns of grad_output for which a tap reads a pixel.
struct Columns {
  int64_t begin, end;
};

inline Columns columns_of_tap(const ConvProblem& p, int64_t tap) {
  const int64_t column = tap * p.dilation_w;
  const int64_t before = std::max<int64_t>(p.pad_w - column, 0);
  const int64_t until = std::max<int64_t>(p.pad_w + p.in_w - column, 0);
  return {std::min((before + p.stride_w - 1) / p.stride_w, p.out_w),
          std::min((until + p.stride_w - 1) / p.stride_w, p.out_w)};
}

// Work is cut by chunks of units (as in TapPlan) and by splits of the batch's output rows; every
// split has a partial result of its own, summed in a fixed order, so runs repeat bitwise.
struct WgradPlan {
  int64_t units = 0, chunk_units = 0, chunks = 0;
  int64_t splits = 0;
  bool whole = false;       // one split, whose weights are written at once
  int64_t step_rows = 0;    // rows of words of grad_output worked on together
  int64_t window = 0;       // rows of words of the input in the ring
  int64_t longest_run = 1;  // neighbouring taps worked on together
  int64_t tile_cols = 0;    // input columns of a tile, from -pad_w
  int64_t grad_cols = 0;    // grad_output columns with the zeros at either end
  int64_t col_words = 0, grad_col_words = 0;
  int64_t unit_weights = 0;   // floats of one unit's partial result
  int64_t scratch_words = 0;  // per thread
  int64_t tasks = 0;

  // Partial results to be summed; none where every chunk is one task's own.
  int64_t partial_words() const { return whole ? 0 : splits * units * unit_weights; }
};

// Splits that give every thread as much to do as the others.
inline int64_t wanted_splits(const Chunks& chunks, int64_t threads) {
  return chunks.count % threads == 0 ? 1 : (2 * threads + chunks.count - 1) / chunks.count;
}

}  // namespace rnk::cpu
