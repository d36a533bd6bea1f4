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

// Which of 16 anchors and which of 16 channels, the first of eight, this lane stores.
RNK_DEVICE int epilogue_pixel() { return threadIdx.x % 32 / 4 + threadIdx.x % 2 * 8; }
RNK_DEVICE int epilogue_channel() { return threadIdx.x % 4 / 2 * 8; }

// A destination pixel.
struct Place {
  int n, y, x;
  bool inside;

  RNK_DEVICE int64_t offset(const PixelStrides& s) const { return n * s.n + y * s.h + x * s.w; }
};

// Where the anchors of a chunk lie in the destination.
class Placement {
 public:
  template <class Taps>
  RNK_DEVICE Placement(const TapConv& conv, const Walk<Taps>& walk)
      : conv_(conv),
        image_(walk.image),
        image_end_(walk.image + walk.images),
        row_(walk.row + walk.chunk * conv.tiles.chunk_h),
        row_end_(walk.row + walk.rows),
        column_(walk.column) {}

  RNK_DEVICE Place find(const Anchor& anchor, int phases, int phase_h, int phase_w) const {
    const int i = row_ + anchor.row, j = column_ + anchor.column, n = image_ + anchor.image;
    const int y = phases * i + phase_h - conv_.shift_h, x = phases * j + phase_w - conv_.shift_w;
    const bool inside = n < image_end_ && i < row_end_ && within(y, conv_.destination_h) &&
                        within(x, conv_.destination_w);
    return {n, y, x, inside};
  }

 private:
  const TapConv& conv_;
  int image_, image_end_;  // the chunk's first, and the one after its last
  int row_, row_end_;      // the chunk's first anchor, and the one after the strip's last
  int column_;
};

// Finishes 16 anchors x 16 channels, the sums of two matrix instructions: adds bias and residual,
// applies ReLU, rounds and stores. The instructions leave a lane two channels of two pixels, twice;
// transposing among four lanes makes that eight channels of one pixel, one 16-byte store.
template <class Format>
class Epilogue {
 public:
  template <class Taps>
  RNK_DEVICE Epilogue(const TapConv& conv, const Walk<Taps>& walk)
      : conv_(conv), placement_(conv, walk) {}

  // The bias of `channel` and the next, zeros where there is none.
  RNK_DEVICE void load_bias(int channel, float& lo, float& hi) const {
    const bool exists = conv_.bias && channel < conv_.destination_channels;
    unpack(Format{}, exists ? ld_global_4(conv_.bias + channel * 2) : 0, lo, hi);
  }

  // `channel`: the first of this lane's eight; `bias`: of channels 2t, 2t+1 of both instructions.
  RNK_DEVICE void store(const float (&lo)[4], const float (&hi)[4], const float (&bias)[4],
                        const Anchor& anchor, bool exists, int channel, int phases, int phase_h,
                        int phase_w) const {
    const Place place = placement_.find(anchor, phases, phase_h, phase_w);
    const bool inside = exists && place.inside && channel < conv_.destination_channels;
    Vec16 v = {};
    if (conv_.residual) {
      const unsigned char* from =
          conv_.residual + place.offset(conv_.residual_strides) + channel * 2;
      if (inside) v = ld_global_16(from);
      transpose_quad(v.x);
    }
    float r[8];
#pragma unroll
    for (int k = 0; k < 4; ++k) unpack(Format{}, v.x[k], r[2 * k], r[2 * k + 1]);
    const float sums[8] = {
        lo[0] + bias[0] + r[0], lo[1] + bias[1] + r[1], lo[2] + bias[0] + r[2],
        lo[3] + bias[1] + r[3], hi[0] + bias[2] + r[4], hi[1] + bias[3] + r[5],
        hi[2] + bias[2] + r[6], hi[3] + bias[3] + r[7],
    };
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float a = sums[2 * k], b = sums[2 * k + 1];
      if (conv_.relu) a = a < 0 ? 0 : a, b = b < 0 ? 0 : b;  // a NaN stays
      v.x[k] = pack(Format{}, a, b);
    }
    transpose_quad(v.x);
    if (inside) {
      st_global_16(conv_.destination + place.offset(conv_.destination_strides) + channel * 2, v);
    }
  }

 private:
  const TapConv& conv_;
  Placement placement_;
};

}  // namespace rnk::cuda
