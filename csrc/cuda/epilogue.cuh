// From the sums of matrix instructions to pixels in memory.
#pragma once

#include "ring.cuh"

namespace rnk::cuda {

// Four lanes side by side transpose a 4 x 4 matrix of which each holds a row; its own inverse.
RNK_DEVICE void transpose_quad(uint32_t (&r)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32_t a = shfl_xor(odd ? r[0] : r[1], 1), b = shfl_xor(odd ? r[2] : r[3], 1);
  const uint32_t p0 = odd ? a : r[0], p1 = odd ? r[1] : a;
  const uint32_t q0 = odd ? b : r[2], q1 = odd ? r[3] : b;
  const uint32_t c = shfl_xor(high ? p0 : q0, 2), d = shfl_xor(high ? p1 : q1, 2);
  r[0] = high ? c : p0;
  r[1] = high ? d : p1;
  r[2] = high ? q0 : c;
  r[3] = high ? q1 : d;
}

// A destination pixel, counted from the one of the chunk's first anchor.
struct Place {
  int image, row, column;
  bool inside;
};

// Where the anchors of a chunk lie in the destination.
class Placement {
 public:
  template <class Taps>
  RNK_DEVICE Placement(const TapConv& conv, const Walk<Taps>& walk)
      : conv_(conv),
        image_(walk.image),
        images_(walk.images),
        rows_(walk.rows - walk.chunk * conv.tiles.chunk_h),
        y_(Taps::phases * (walk.row + walk.chunk * conv.tiles.chunk_h) - conv.shift_h),
        x_(Taps::phases * walk.column - conv.shift_w) {}

  RNK_DEVICE Place find(const Anchor& anchor, int phases, int phase_h, int phase_w) const {
    const int row = phases * anchor.row + phase_h, column = phases * anchor.column + phase_w;
    const bool inside = anchor.image < images_ && anchor.row < rows_ &&
                        within(y_ + row, conv_.destination_h) &&
                        within(x_ + column, conv_.destination_w);
    return {anchor.image, row, column, inside};
  }

  // The bytes from the first pixel of a tensor to that of the chunk's first anchor.
  RNK_DEVICE int64_t first(const PixelStrides& s) const {
    return image_ * s.n + y_ * s.h + x_ * s.w;
  }

 private:
  const TapConv& conv_;
  int image_, images_;  // of the chunk
  int rows_;            // of anchors from the chunk's first to the strip's end
  int y_, x_;           // of the chunk's first anchor
};

// The pixels of a chunk in a tensor. Offsets are products of 32 bits, so an instruction each:
// strides are multiples of 16 bytes, and less than 2^35.
template <class Byte>
class ChunkPixels {
 public:
  RNK_DEVICE ChunkPixels(Byte* data, const PixelStrides& s, const Placement& placement)
      : first_(computed_here(data + placement.first(s))),
        n_(vectors(s.n)),
        h_(vectors(s.h)),
        w_(vectors(s.w)) {}

  RNK_DEVICE Byte* at(const Place& place) const {
    return first_ + product(place.image, n_) + product(place.row, h_) + product(place.column, w_);
  }

 private:
  RNK_DEVICE static uint32_t vectors(int64_t stride) { return static_cast<uint32_t>(stride >> 4); }
  RNK_DEVICE static uint64_t product(uint32_t count, uint32_t stride) {
    return static_cast<uint64_t>(count * kVectorBytes) * stride;
  }
  Byte* first_;
  uint32_t n_, h_, w_;
};

// The bias of those of 16 channels, from `first` on, that the instructions leave this lane: zeros
// where there is none.
template <class Format>
RNK_DEVICE void load_bias(const TapConv& conv, int first, float (&bias)[4]) {
  const auto exists = [&](int channel) { return conv.bias && channel < conv.destination_channels; };
  if constexpr (Format::bytes == 4) {
    const int channel = first + threadIdx.x % 4 * 4;
    const Vec16 v = exists(channel) ? ld_global_16(conv.bias + channel * 4) : Vec16{};
#pragma unroll
    for (int j = 0; j < 4; ++j) bias[j] = bits_float(v.x[j]);
  } else {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int channel = first + k * 8 + threadIdx.x % 4 * 2;
      const uint32_t pair = exists(channel) ? ld_global_4(conv.bias + channel * 2) : 0;
      unpack(Format{}, pair, bias[2 * k], bias[2 * k + 1]);
    }
  }
}

// Which of 16 channels is column `column` of tile `tile` of two matrix instructions: in TF32 even
// ones are in the first, odd ones in the second, so that a lane's sums of a pixel are neighbours.
template <class Format>
RNK_DEVICE int tile_channel(int tile, int column) {
  return Format::bytes == 4 ? column * 2 + tile : tile * 8 + column;
}

// Finishes 16 anchors x 16 channels, the sums of two matrix instructions: adds bias and residual,
// applies ReLU, rounds and stores. The instructions leave a lane two channels of two pixels, twice.
// In TF32 those are four neighbours of each pixel, two 16-byte stores; else transposing among four
// lanes makes that eight channels of one pixel, one store.
template <class Format>
class Epilogue {
 public:
  static constexpr int kPixels = Format::bytes == 4 ? 2 : 1;  // that a lane stores

  // Which of 16 anchors is the k-th that this lane stores, and the first of its channels of 16.
  RNK_DEVICE static int pixel(int k) {
    return threadIdx.x % 32 / 4 + (kPixels == 2 ? k : threadIdx.x % 2) * 8;
  }
  RNK_DEVICE static int channel() {
    return kPixels == 2 ? threadIdx.x % 4 * 4 : threadIdx.x % 4 / 2 * 8;
  }

  template <class Taps>
  RNK_DEVICE Epilogue(const TapConv& conv, const Walk<Taps>& walk)
      : conv_(conv),
        placement_(conv, walk),
        residual_(conv.residual, conv.residual_strides, placement_),
        destination_(conv.destination, conv.destination_strides, placement_) {}

  // Stores the k-th pixel. `channel`: the first of this lane's; `bias`: see load_bias.
  RNK_DEVICE void store(int k, const float (&lo)[4], const float (&hi)[4], const float (&bias)[4],
                        const Anchor& anchor, bool exists, int channel, int phases, int phase_h,
                        int phase_w) const {
    if constexpr (Format::bytes == 4) {
      const float sums[4] = {lo[2 * k], hi[2 * k], lo[2 * k + 1], hi[2 * k + 1]};
      store_quad(sums, bias, anchor, exists, channel, phases, phase_h, phase_w);
    } else {
      store_eight(lo, hi, bias, anchor, exists, channel, phases, phase_h, phase_w);
    }
  }

  // Finishes four float32 channels of an anchor.
  RNK_DEVICE void store_quad(const float (&sums)[4], const float (&bias)[4], const Anchor& anchor,
                             bool exists, int channel, int phases, int phase_h, int phase_w) const {
    const Place place = placement_.find(anchor, phases, phase_h, phase_w);
    if (!exists || !place.inside || channel >= conv_.destination_channels) return;
    Vec16 v = {};
    if (conv_.residual) v = ld_global_16(residual_.at(place) + channel * 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float sum = sums[j] + bias[j] + bits_float(v.x[j]);
      v.x[j] = float_bits(conv_.relu && sum < 0 ? 0 : sum);  // a NaN stays
    }
    st_global_16(destination_.at(place) + channel * 4, v);
  }

 private:
  RNK_DEVICE void store_eight(const float (&lo)[4], const float (&hi)[4], const float (&bias)[4],
                              const Anchor& anchor, bool exists, int channel, int phases,
                              int phase_h, int phase_w) const {
    const Place place = placement_.find(anchor, phases, phase_h, phase_w);
    const bool inside = exists && place.inside && channel < conv_.destination_channels;
    float sums[8] = {lo[0] + bias[0], lo[1] + bias[1], lo[2] + bias[0], lo[3] + bias[1],
                     hi[0] + bias[2], hi[1] + bias[3], hi[2] + bias[2], hi[3] + bias[3]};
    Vec16 v = {};
    if (conv_.residual) {
      if (inside) v = ld_global_16(residual_.at(place) + channel * 2);
      transpose_quad(v.x);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float a, b;
        unpack(Format{}, v.x[k], a, b);
        sums[2 * k] += a, sums[2 * k + 1] += b;
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) v.x[k] = pack(Format{}, sums[2 * k], sums[2 * k + 1]);
    if (conv_.relu) {
#pragma unroll
      for (int k = 0; k < 4; ++k) v.x[k] = relu(Format{}, v.x[k]);
    }
    transpose_quad(v.x);
    if (inside) st_global_16(destination_.at(place) + channel * 2, v);
  }

  const TapConv& conv_;
  Placement placement_;
  ChunkPixels<const unsigned char> residual_;
  ChunkPixels<unsigned char> destination_;
};

}  // namespace rnk::cuda
