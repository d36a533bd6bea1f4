// Which source rows (and columns) the taps of a 3x3 kernel read, and which destinations they feed.
//
// fprop and dgrad are one computation: each *anchor* (i, j) gathers a window of source pixels, rows
// i * step + r - pad for r < window, and feeds phases * phases destination pixels.
//
//   Unit     stride 1: fprop, anchor = output pixel; dgrad, anchor = input pixel, the taps turned
//            by 180 degrees and pad = 2 - padding.
//   Strided  fprop at stride 2: anchor = output pixel.
//   Phased   dgrad at stride 2: input row h = 2 * i + phase - padding reads output rows i and i - 1
//            through taps 0 and 2 where the phase is 0, and row i through tap 1 where it is 1.
//
// Columns are like rows.
#pragma once

#include "ptx.cuh"

namespace rnk::cuda {

constexpr int kKernel = 3;
constexpr int kTaps = kKernel * kKernel;

struct Unit {
  static constexpr int step = 1, window = 3, phases = 1;
  RNK_DEVICE static constexpr int shift(int tap) { return tap; }
  RNK_DEVICE static constexpr int phase(int) { return 0; }
};

struct Strided {
  static constexpr int step = 2, window = 3, phases = 1;
  RNK_DEVICE static constexpr int shift(int tap) { return tap; }
  RNK_DEVICE static constexpr int phase(int) { return 0; }
};

struct Phased {
  static constexpr int step = 1, window = 2, phases = 2;  // the window begins at row i - 1
  RNK_DEVICE static constexpr int shift(int tap) { return tap == 2 ? 0 : 1; }
  RNK_DEVICE static constexpr int phase(int tap) { return tap % 2; }
};

}  // namespace rnk::cuda
