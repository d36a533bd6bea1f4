// fprop and dgrad are one computation: every destination pixel is a sum over the taps of the
// kernel of (source pixel) x (matrix of one group). They differ in which source pixel a tap reads
// and in which way the weight matrix is turned; this header describes that, free of any ISA.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../conv_problem.h"

namespace rnk::cpu {

constexpr int64_t kLineBytes = 64;  // of the caches

enum class Element { f32, bf16 };

constexpr int64_t element_bytes(Element element) { return element == Element::f32 ? 4 : 2; }

// One axis of the mapping from destination index to source index.
struct TapAxis {
  int64_t taps, stride, pad, dilation;
  bool transposed;  // dgrad

  // Distinct column patterns: a strided dgrad reads other taps for each destination parity.
  int64_t phases() const { return transposed ? stride : 1; }
  // Source steps from one destination of a phase to the next.
  int64_t source_step() const { return transposed ? 1 : stride; }

  // Source index that destination `i` reads through `tap`; false where there is none.
  bool source(int64_t i, int64_t tap, int64_t* index) const {
    if (!transposed) {
      *index = i * stride - pad + tap * dilation;
      return true;
    }
    const int64_t scaled = i + pad - tap * dilation;
    *index = floor_div(scaled, stride);
    return *index * stride == scaled;
  }
  // Least source index that destination `i` or any later one may read (may be negative).
  int64_t first_source(int64_t i) const {
    return transposed ? floor_div(i + pad - (taps - 1) * dilation, stride) : i * stride - pad;
  }
  // Greatest source index that destination `i` or any earlier one may read.
  int64_t last_source(int64_t i) const {
    return transposed ? floor_div(i + pad, stride) : i * stride - pad + (taps - 1) * dilation;
  }
  // Source indices alive at the same time while destinations are visited in order.
  int64_t window() const {
    const int64_t extent = (taps - 1) * dilation;
    return (transposed ? extent / stride : extent) + 1;
  }

 private:
  static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
};

struct TapConv {
  Element element = Element::f32;
  int64_t batch = 0, groups = 0;
  int64_t src_width = 0, dst_width = 0;  // channels of one group
  int64_t src_rows = 0, src_cols = 0, dst_rows = 0, dst_cols = 0;
  TapAxis vertical{}, horizontal{};

  const void* src = nullptr;
  PixelStrides src_strides{};
  void* dst = nullptr;             // dense NHWC
  const void* residual = nullptr;  // dense NHWC like dst, or null
  const void* bias = nullptr;      // dst channels, or null
  bool relu = false;
  bool exact = false;  // sums of products of weights and pixels only

  // weight element (group, dst channel d, src channel s, tap t) lies at
  // group * weight_group + d * weight_dst + s * weight_src + t * weight_tap
  const void* weight = nullptr;
  int64_t weight_group = 0, weight_dst = 0, weight_src = 0, weight_tap = 0;

  int64_t taps() const { return vertical.taps * horizontal.taps; }
  int64_t src_channels() const { return groups * src_width; }
  int64_t dst_channels() const { return groups * dst_width; }
};

// Cuts `units` into even chunks of at most `most`, where there are several a multiple of `threads`.
struct Chunks {
  int64_t units = 0, count = 0;

  Chunks() = default;
  Chunks(int64_t all, int64_t most, int64_t threads) {
    most = std::clamp<int64_t>(most, 1, all);
    count = (all + most - 1) / most;
    if (count > 1) count = std::min((count + threads - 1) / threads * threads, all);
    units = (all + count - 1) / count;
    count = (all + units - 1) / units;
  }
};

// How a TapConv is cut into tasks and what memory it needs; made by the ISA that runs it.
struct TapPlan {
  int64_t units = 0;        // lane kernels: blocks of channels; broadcast kernels: groups
  int64_t chunk_units = 0;  // units whose rows and weights are worked on together
  int64_t chunks = 0, row_bands = 0, band_rows = 0;
  int64_t shares = 0;   // of images and bands, by threads: all chunks of one before the next one
  int64_t columns = 0;  // destination columns (of one phase) worked on together
  int64_t col_lo = 0, tile_cols = 0;  // source columns of a tile, from col_lo
  int64_t col_words = 0;              // 32-bit words of one column of one unit in the tile
  int64_t unit_weights = 0;           // 32-bit words of one unit's packed weights
  int64_t scratch_words = 0;          // per thread
  int64_t tasks = 0;
  bool stream = false;  // results go past the caches

  int64_t slot_words(int64_t units_here) const { return units_here * tile_cols * col_words; }
};

}  // namespace rnk::cpu
