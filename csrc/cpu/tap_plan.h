// How a TapConv is cut into tasks in the plain way; one instruction set's version, included in its
// namespace.
#pragma once

// Sizes that keep a chunk's weights and rows in the second-level cache.
constexpr int64_t kChunkWeightWords = 64 * 1024;
constexpr int64_t kTileWords = 64 * 1024;
constexpr int64_t kGroupColumns = 4 * kMaxColumns;
constexpr int64_t kSharePixels = 256;  // enough of them pay for packing all weights

constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
constexpr int64_t round_down(int64_t value, int64_t step) { return value / step * step; }

// The hardware fetches on along what a thread writes of a pixel, and what it fetches to be
// written is taken from the thread that writes the next channels of that pixel: up to 2.4 times
// as slow. So threads have pixels of their own, unless these are too few for the weights.
inline int64_t shares(const TapConv& c, int64_t threads) {
  const int64_t most = c.batch * c.dst_rows * c.dst_cols / kSharePixels;
  int64_t shares = threads;
  while (shares > 1 && (shares > most || threads % shares != 0)) --shares;
  return shares;
}

inline int64_t list_words(const TapConv& c) { return c.taps() * sizeof(TapRun) / sizeof(float); }

template <class S>
TapPlan tap_plan(const TapConv& c, int64_t threads) {
  TapPlan p;
  p.units = S::units(c);
  p.col_words = S::col_words(c);
  p.unit_weights = S::dst_vectors(c) * c.taps() * S::tap_words(c) * kLanes;
  const int64_t phases = c.horizontal.phases(), step = c.horizontal.source_step();
  const int64_t dst_cols = (c.dst_cols + phases - 1) / phases;
  p.col_lo = c.horizontal.first_source(0);
  const int64_t halo = c.horizontal.last_source(phases - 1) - p.col_lo + 1;
  const int64_t window = c.vertical.window();

  // As many channels at once as the cache holds weights for, so that memory is read in long
  // runs; then as many columns as the cache holds rows for; then fewer channels.
  const int64_t few = std::min<int64_t>(dst_cols, kMaxColumns);
  p.shares = shares(c, threads);
  const int64_t sharing = threads / p.shares;
  Chunks chunks(p.units, kChunkWeightWords / p.unit_weights, sharing);
  const int64_t col_words = window * chunks.units * p.col_words;
  p.columns = round_down(std::max<int64_t>(kTileWords / col_words - halo, 0) / step, kMaxColumns);
  p.columns = std::clamp(p.columns, few, dst_cols);
  // Columns are stored by residue of the source step, so that kernels see a step of one.
  p.tile_cols = round_up((p.columns - 1) * step + halo, step);
  const int64_t row_words = window * p.tile_cols * p.col_words;
  chunks = Chunks(p.units, std::min(chunks.units, kTileWords / row_words), sharing);
  p.chunk_units = chunks.units;
  p.chunks = chunks.count;

  p.stream = streams<S>(c, p);

  // Bands of rows only where chunks and images do not give all threads the same, and no more of
  // them than do: each reads rows of its neighbours, too.
  const int64_t bands = std::max(p.shares / std::gcd(p.shares, c.batch),
                                 threads / std::gcd(threads, p.chunks * c.batch));
  p.band_rows = std::max<int64_t>((c.dst_rows + bands - 1) / bands,
                                  std::min<int64_t>(c.dst_rows, c.vertical.taps));
  p.row_bands = (c.dst_rows + p.band_rows - 1) / p.band_rows;
  p.shares = std::gcd(p.shares, c.batch * p.row_bands);
  p.tasks = p.chunks * c.batch * p.row_bands;
  p.scratch_words = p.chunk_units * (row_words + p.unit_weights) + list_words(c) + 64;
  return p;
}
