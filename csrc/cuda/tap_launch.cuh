// Picks the kernel for a TapConv, plans its tiles and starts it.
#pragma once

#include "direct.cuh"
#include "launch.cuh"
#include "plan_cache.h"
#include "narrow.cuh"
#include "wide.cuh"

namespace rnk::cuda {

template <class Format, class Taps, class Shape>
const char* launch_narrow(TapConv conv, int tile_clocks, const Gpu& gpu, Stream stream) {
  conv.channel_blocks = ceil_div(conv.source_channels, Shape::channels);
  const TileShape shape{Taps::step, Taps::window, conv.anchor_h, conv.anchor_w, Shape::pixel_bytes};
  TileBudget budget;
  budget.images = conv.images;
  budget.channel_blocks = conv.channel_blocks;
  budget.most_blocks = Shape::blocks;
  budget.fixed_bytes = Shape::weight_bytes + kMostAnchors * 4;
  budget.warps_along = Shape::along;
  budget.tile_clocks = tile_clocks;
  budget.stored_bytes = Shape::channels * Shape::bytes * Taps::phases * Taps::phases;
  budget.block_bytes = Shape::channels * kTaps * conv.source_width * Shape::bytes;
  const Plan plan = plan_of(shape, budget, gpu);
  if (!plan.blocks) return kNoRoom;
  conv.tiles = plan.tiles;
  conv.units = static_cast<int>(plan.units);
  return launch(narrow_kernel<Format, Taps, Shape>, plan.blocks, Shape::threads, plan.shared_bytes,
                gpu, stream, conv);
}

struct WideChoice {
  int tiles = 0;
  Plan plan;
};

// Whether a block has 64, 48, 32 or 16 destination channels of `bytes` each.
template <class Taps>
WideChoice choose_wide(const TapConv& conv, int bytes, const Gpu& gpu) {
  WideChoice best;
  for (const int tiles : {8, 6, 4, 2}) {
    const int vectors = conv.source_width * bytes / kVectorBytes;
    const TileShape shape{
        Taps::step, Taps::window,  conv.anchor_h, conv.anchor_w, (vectors | 1) * kVectorBytes,
        0,          kWideLookahead};
    TileBudget budget;
    budget.images = conv.images;
    budget.channel_blocks =
        conv.source_channels / conv.source_width * ceil_div(conv.destination_width, tiles * 8);
    budget.most_blocks = 1;
    const int rows = conv.turned ? conv.source_width : tiles * 8;
    const int row_vectors = conv.turned ? tiles * 8 * bytes / kVectorBytes : vectors;
    budget.block_bytes = kTaps * rows * wide_pitch(row_vectors, conv.turned, bytes);
    budget.fixed_bytes = budget.block_bytes + kMostAnchors * 4;
    budget.warp_anchors = kWideRows * kRowTile;
    // A multiprocessor starts about 0.6 of the largest matrix instructions a clock.
    budget.tile_clocks = kTaps * ceil_div(vectors, 2) * kWideRows * tiles * 5 / 3;
    budget.stored_bytes =
        std::min(tiles * 8, conv.destination_width) * bytes * Taps::phases * Taps::phases;
    const Plan plan = plan_of(shape, budget, gpu);
    if (plan.blocks && (!best.tiles || plan.clocks < best.plan.clocks)) best = {tiles, plan};
  }
  return best;
}

template <class Format, class Taps, bool kTurned>
const char* launch_wide(TapConv conv, const Gpu& gpu, Stream stream) {
  const WideChoice choice = choose_wide<Taps>(conv, Format::bytes, gpu);
  if (!choice.tiles) return kNoRoom;
  const Plan& plan = choice.plan;
  conv.tiles = plan.tiles;
  conv.units = static_cast<int>(plan.units);
  conv.channel_blocks = plan.channel_blocks;
  const auto kernel = choice.tiles == 8   ? wide_kernel<Format, Taps, 8, kTurned>
                      : choice.tiles == 6 ? wide_kernel<Format, Taps, 6, kTurned>
                      : choice.tiles == 4 ? wide_kernel<Format, Taps, 4, kTurned>
                                          : wide_kernel<Format, Taps, 2, kTurned>;
  return launch(kernel, plan.blocks, kWideThreads, plan.shared_bytes, gpu, stream, conv);
}

// The clocks of 16 anchors: the latencies of nine taps' chained sums, with two warps on each
// scheduler to fill the gaps; in TF32 twice as many sums; for 32 channels what the block's 8 warps'
// instructions take. Tiles: as many weights and sums as registers hold.
template <class Format, class Taps>
const char* launch_format(const TapConv& conv, const Gpu& gpu, Stream stream) {
  const int width = conv.source_width == conv.destination_width ? conv.source_width : 0;
  if constexpr (Format::bytes == 2) {
    if (width && 8 % width == 0) {
      return launch_narrow<Format, Taps, Narrow<Format, 8, 2, 64, 256, 2>>(conv, 300, gpu, stream);
    }
    if (width == 16) {
      return launch_narrow<Format, Taps, Narrow<Format, 16, 2, 64, 256, 2>>(conv, 300, gpu, stream);
    }
  } else if (width == 16) {
    return launch_narrow<Format, Taps, Narrow<Format, 16, 2, 32, 256, 1>>(conv, 600, gpu, stream);
  }
  if (width == 32) {
    constexpr int kTiles = Taps::phases == 1 && Format::bytes == 2 ? 4 : 2;
    using Shape = Narrow<Format, 32, kTiles, 32, 256, 1>;
    return launch_narrow<Format, Taps, Shape>(conv, 960, gpu, stream);
  }
  if constexpr (Taps::step == 1) {  // never dgrad
    if (conv.turned) return launch_wide<Format, Taps, true>(conv, gpu, stream);
  }
  if constexpr (Taps::phases == 1) {  // always dgrad
    if (!conv.turned) return launch_wide<Format, Taps, false>(conv, gpu, stream);
  }
  return "taps and direction that do not go together";
}

template <class Taps>
const char* launch_direct(const TapConv& taps, const Gpu& gpu, Stream stream) {
  DirectConv conv{taps};
  const bool same = conv.source_width == conv.destination_width;
  const int width = std::max(conv.source_width, conv.destination_width);
  const int groups = conv.source_channels / conv.source_width;
  conv.block_groups = std::max(1, kDirectChannels / width);
  conv.shares = ceil_div(conv.destination_width, kDirectChannels);
  const int vectors = conv.block_groups * conv.source_width / 4;
  const TileShape shape{
      Taps::step, Taps::window,    conv.anchor_h, conv.anchor_w, (vectors | 1) * kVectorBytes,
      0,          kDirectLookahead};
  TileBudget budget;
  budget.images = conv.images;
  budget.channel_blocks = ceil_div(groups, conv.block_groups) * conv.shares;
  budget.most_blocks = 1;
  budget.block_bytes = kTaps * conv.source_width * kDirectChannels * 4;
  budget.fixed_bytes = budget.block_bytes + kMostAnchors * 4;
  budget.warp_anchors = kDirectRows * kDirectAnchors;
  // 4 * 128 sums a clock, of which shared memory lets about half begin.
  budget.tile_clocks = 20 * kTaps * conv.source_width / 4;
  budget.stored_bytes = kDirectChannels * 4 * Taps::phases * Taps::phases;
  const Plan plan = plan_of(shape, budget, gpu);
  if (!plan.blocks) return kNoRoom;
  conv.tiles = plan.tiles;
  conv.units = static_cast<int>(plan.units);
  conv.channel_blocks = plan.channel_blocks;
  const auto kernel = same && width == 1   ? direct_kernel<Taps, 1>
                      : same && width == 2 ? direct_kernel<Taps, 2>
                                           : direct_kernel<Taps, 4>;
  return launch(kernel, plan.blocks, kDirectThreads, plan.shared_bytes, gpu, stream, conv);
}

template <class Taps>
const char* launch_taps(const TapConv& conv, Element element, const Gpu& gpu, Stream stream) {
  // Up to 8 channels of a group exact sums are as fast as the memory.
  const bool wide = std::max(conv.source_width, conv.destination_width) > 8;
  if (element == Element::tf32 && wide) return launch_format<Tf32, Taps>(conv, gpu, stream);
  if (element_bytes(element) == 4) return launch_direct<Taps>(conv, gpu, stream);
  if (element == Element::bf16) return launch_format<Bf16, Taps>(conv, gpu, stream);
  return launch_format<Fp16, Taps>(conv, gpu, stream);
}

}  // namespace rnk::cuda
