// How the images of a convolution are cut into the work of blocks.
//
// The anchors of an image (taps.cuh) are cut into strips of columns and of rows. A block takes one
// strip after another, and each strip in *chunks* of a few rows of anchors, whose source rows it
// keeps in a ring in shared memory: a row is read once for all the chunks of a strip that use it.
// Images that are small go several to a chunk, as if above each other.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>

#include "kernels.h"

namespace rnk::cuda {

constexpr int kMostAnchors = 256;  // of a chunk
constexpr int kFineChunks = 32;    // strips of fewer chunks are all considered
constexpr int64_t kMostUnits = 1 << 30;
constexpr int kRowTile = 16;      // pixels that one matrix instruction takes
constexpr int kVectorBytes = 16;  // what a thread reads and writes at a time

struct TileShape {
  int step = 1, window = 3;  // of the taps: source rows from anchor to anchor, and of one anchor
  int anchor_h = 0, anchor_w = 0;  // anchors of an image
  int pixel_bytes = 0;             // of a source pixel in the ring, an odd number of vectors
  int anchor_bytes = 0;            // of what is staged for each anchor beside the ring (wgrad)
  int lookahead = 2;               // chunks whose rows are under way while one is computed

  auto operator<=>(const TileShape&) const = default;
};

struct Tiles {
  int strip_w = 0, strips_w = 0;       // columns of anchors of a strip; strips side by side
  int strip_h = 0, strips_h = 0;       // rows of anchors of a strip; strips above each other
  int chunk_h = 0, chunks = 0;         // rows of anchors of a chunk; chunks of a strip
  int images = 0;                      // of a chunk; several only where they are a chunk each
  int anchors = 0;                     // of a chunk
  int columns = 0;                     // source columns of a strip
  int plane_bytes = 0;                 // of the even source columns where step is 2
  int row_bytes = 0, pitch_bytes = 0;  // of a source row; from a row to the next but `step - 1`
  int image_rows = 0, image_pad = 0;   // of the ring from one image of a chunk to the next; bytes
  int chunk_rows = 0, last_rows = 0;   // of the ring to the next chunk; to that of the next strip
  int ring_rows = 0, ring_bytes = 0;
  int pixel_bytes = 0, anchor_bytes = 0;  // as in the TileShape
  int stage_bytes = 0;                    // of a chunk's anchors, up to a multiple of 16 of them
};

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int round_up(int a, int b) { return ceil_div(a, b) * b; }

// The sizes of a ring for strips of strip_h x strip_w anchors in chunks of chunk_h rows of
// `images`.
//
// Banks: eight pixels beside each other in the list of a chunk's anchors must lie in different
// vectors modulo 128 bytes. A pixel is an odd number of vectors, so they do inside a row; the pitch
// continues the count from the last pixel of a row to the first of the next one.
inline Tiles tiles_of(const TileShape& shape, int strip_h, int strip_w, int chunk_h, int images) {
  Tiles t;
  t.strip_w = strip_w;
  t.strips_w = ceil_div(shape.anchor_w, strip_w);
  t.strip_h = strip_h;
  t.strips_h = ceil_div(shape.anchor_h, strip_h);
  t.chunk_h = chunk_h;
  t.chunks = ceil_div(strip_h, chunk_h);
  t.images = images;
  t.anchors = images * chunk_h * strip_w;
  t.pixel_bytes = shape.pixel_bytes, t.anchor_bytes = shape.anchor_bytes;
  t.stage_bytes = round_up(t.anchors, kRowTile) * shape.anchor_bytes;
  t.columns = (strip_w - 1) * shape.step + shape.window;
  t.plane_bytes = ceil_div(t.columns, shape.step) * shape.pixel_bytes;
  t.row_bytes = t.columns * shape.pixel_bytes;
  t.pitch_bytes = t.row_bytes * shape.step;
  while ((t.pitch_bytes - strip_w * shape.pixel_bytes) % 128) t.pitch_bytes += kVectorBytes;
  // A multiple of `step`, so that a strip begins with an even slot at step 2.
  const int halo = round_up(shape.window - shape.step, shape.step);
  t.chunk_rows = chunk_h * shape.step;
  t.image_rows = t.chunk_rows + halo;
  // Continues the count from image to image, in the room of more rows at the end.
  while (images > 1 && (halo / shape.step * t.pitch_bytes + t.image_pad) % 128) {
    t.image_pad += kVectorBytes;
  }
  t.last_rows = images * t.image_rows;
  t.last_rows += ceil_div((images - 1) * t.image_pad, t.pitch_bytes) * shape.step;
  const int lookahead = shape.lookahead;
  t.ring_rows = images > 1
                    ? (lookahead + 1) * t.last_rows
                    : (lookahead + 1) * t.chunk_rows + (1 + ceil_div(lookahead, t.chunks)) * halo;
  // Whole multiples of 128 bytes, so that the count goes on where the ring begins anew.
  t.ring_bytes = t.ring_rows / shape.step * t.pitch_bytes;
  while (images == 1 && t.ring_bytes % 128)
    t.ring_rows += shape.step, t.ring_bytes += t.pitch_bytes;
  return t;
}

// What a kernel tells for the choice of its tiles.
struct TileBudget {
  int64_t images = 0;
  int channel_blocks = 1;  // that each image is cut into
  int most_blocks = 1;     // on a multiprocessor at a time
  int fixed_bytes = 0;     // of shared memory beside the ring
  int threads = 256;       // of a block
  int warps_along = 1;     // that share the pixels of a chunk
  int warp_anchors = 16;   // that a warp takes at a time
  int tile_clocks = 0;     // that it takes for them
  int stored_bytes = 0;    // for each anchor
  int block_bytes = 0;     // that a block moves once: its weights, its sums
  int least_ring = 0;      // bytes that the ring has at the least

  auto operator<=>(const TileBudget&) const = default;
};

struct Plan {
  Tiles tiles;
  int blocks = 0;  // of the launch; 0 where no tiles fit the GPU
  int shared_bytes = 0;
  int64_t units = 0;       // strips of all images
  int channel_blocks = 0;  // kinds of blocks
  double clocks = 0;       // estimated
};

constexpr double kBytesPerClock = 13;  // 3 TB/s over 132 multiprocessors at 1.7 GHz
constexpr char kNoRoom[] = "a strip of the image takes more than the GPU's shared memory";

// The clocks in which a multiprocessor works off a strip of each of its `resident` blocks: what
// their bytes take at the memory's speed, or what one block takes for its chunks, whichever is
// longer.
inline double strip_clocks(const TileShape& shape, const TileBudget& budget, const Tiles& t,
                           int resident) {
  constexpr double kBytesUnderWay = 40960;  // that keep the memory busy, on each of them
  constexpr double kChunkClocks = 300;      // to meet at the barrier
  constexpr double kCopyClocks = 60;        // of a thread, two warps on each scheduler
  const double rows = (t.strip_h - 1) * shape.step + shape.window;
  const double bytes = t.images * (rows * t.columns * shape.pixel_bytes +
                                   1.0 * t.strip_h * t.strip_w * budget.stored_bytes);
  const double under_way = static_cast<double>(resident) * shape.lookahead * t.images *
                           t.chunk_rows * t.columns * shape.pixel_bytes;
  const double memory =
      resident * bytes / kBytesPerClock * std::max(1.0, kBytesUnderWay / under_way);
  const int row_tiles = ceil_div(ceil_div(t.anchors, budget.warp_anchors), budget.warps_along);
  const double copies = static_cast<double>(t.images) * t.chunk_rows * t.columns *
                        (shape.pixel_bytes / kVectorBytes) / budget.threads;
  const double block =
      t.chunks * (kChunkClocks + copies * kCopyClocks + row_tiles * budget.tile_clocks);
  return std::max(memory, block) + 0.1 * std::min(memory, block);
}

// Picks strips, chunks and the number of blocks with which the slowest multiprocessor is done
// first.
class Planner {
 public:
  Planner(const TileShape& shape, const TileBudget& budget, const Gpu& gpu)
      : shape_(shape), budget_(budget), gpu_(gpu) {}

  Plan plan() {
    for (per_multiprocessor_ = budget_.most_blocks; per_multiprocessor_; --per_multiprocessor_) {
      for (int strips_w = 1; strips_w <= shape_.anchor_w; ++strips_w) {
        const int strip_w = ceil_div(shape_.anchor_w, strips_w);
        if (strip_w > kMostAnchors) continue;
        if (best_.blocks && strips_w > 1 && strip_w < kRowTile) break;
        strips_of_width(strip_w);
      }
      const int image_anchors = shape_.anchor_h * shape_.anchor_w;
      for (int images = 2; images * image_anchors <= kMostAnchors; ++images) {
        if (images > budget_.images) break;
        consider(tiles_of(shape_, shape_.anchor_h, shape_.anchor_w, shape_.anchor_h, images));
      }
    }
    return best_;
  }

 private:
  void strips_of_width(int strip_w) {
    const int most_rows = std::min(shape_.anchor_h, kMostAnchors / strip_w);
    for (int chunk_h = 1; chunk_h <= most_rows; ++chunk_h) {
      // Of tall images every strip is much like the next: a part of them is enough to choose from.
      const int most_chunks = ceil_div(shape_.anchor_h, chunk_h);
      for (int chunks = most_chunks; chunks; chunks -= 1 + chunks / kFineChunks) {
        const int strip_h = std::min(shape_.anchor_h, chunks * chunk_h);
        if (!consider(tiles_of(shape_, strip_h, strip_w, chunk_h, 1))) break;
      }
    }
  }

  // Takes these tiles if they are the best so far; false where they do not fit.
  bool consider(const Tiles& t) {
    const int block_bytes = std::min(gpu_.shared_per_block,
                                     gpu_.shared_per_multiprocessor / per_multiprocessor_ - 1024);
    const int shared_bytes = budget_.fixed_bytes + std::max(t.ring_bytes, budget_.least_ring) +
                             (shape_.lookahead + 1) * t.stage_bytes;
    if (shared_bytes > block_bytes) return false;
    const int64_t units = (budget_.images + t.images - 1) / t.images * t.strips_w * t.strips_h;
    if (units > kMostUnits) return true;
    const int slots = gpu_.multiprocessors * per_multiprocessor_, kinds = budget_.channel_blocks;
    // Where the kinds of blocks alone exceed the GPU, several of each even out the last wave.
    const int64_t fill = std::max(1, slots / kinds), most = kinds > slots / 2 ? 4 : fill;
    for (int64_t lanes = std::min(fill, units); lanes <= std::min(most, units); ++lanes) {
      const int64_t blocks = lanes * kinds, waves = (blocks + slots - 1) / slots;
      const int resident = static_cast<int>(std::min<int64_t>(
          per_multiprocessor_, (blocks + gpu_.multiprocessors - 1) / gpu_.multiprocessors));
      const double clocks = waves * (static_cast<double>((units + lanes - 1) / lanes) *
                                         strip_clocks(shape_, budget_, t, resident) +
                                     resident * budget_.block_bytes / kBytesPerClock);
      if (best_.blocks && clocks >= best_.clocks) continue;
      best_ = {t, static_cast<int>(blocks), shared_bytes, units, kinds, clocks};
    }
    return true;
  }

  const TileShape& shape_;
  const TileBudget& budget_;
  const Gpu& gpu_;
  int per_multiprocessor_ = 0;
  Plan best_;
};

}  // namespace rnk::cuda
