// Asks the memory for what is needed next while the kernels compute; one instruction set's version,
// included in its namespace. The hardware does not foresee rows that are read in short pieces, nor
// what is going to be written.
#pragma once

// The hardware runs too short a way ahead of a copy that scatters.
inline void prefetch_ahead(const void* pixel) {
  constexpr int64_t kBytes = 8192;
  __builtin_prefetch(static_cast<const char*>(pixel) + kBytes);
}

// That many elements of a pixel take, at most one more.
template <class E>
constexpr int64_t lines_of(int64_t channels) {
  return (channels * static_cast<int64_t>(sizeof(E)) + kLineBytes - 1) / kLineBytes;
}

// Some rows of pixels, of which each of many parts of a computation asks for its share.
class LookAhead {
 public:
  // `rows` rows from `first` on, `pixels` pixels in each, `channels` elements of every pixel; asked
  // for in `parts` parts.
  template <class E>
  void start(const E* first, const PixelStrides& strides, int64_t rows, int64_t pixels,
             int64_t channels, int64_t parts) {
    constexpr int64_t kBytes = sizeof(E);
    row_ = reinterpret_cast<const char*>(first);
    row_step_ = strides.h * kBytes;
    rows_ = rows;
    left_ = 0;
    if (rows <= 0) return;
    lines_ = lines_of<E>(channels);
    pixel_ends_ = strides.w * kBytes - (lines_ - 1) * kLineBytes;
    row_parts_ = (parts + rows - 1) / rows;
    share_ = (pixels * lines_ + row_parts_ - 1) / row_parts_;
  }

  // Inline: kernels ask with their sums in registers.
  [[gnu::always_inline]] void part() {
    if (left_ == 0) {
      if (rows_ <= 0) return;
      at_ = row_;
      row_ += row_step_;
      --rows_;
      line_ = 0;
      left_ = row_parts_;
    }
    --left_;
    const char* at = at_;
    int64_t line = line_;
    for (int64_t i = 0; i < share_; ++i) {
      __builtin_prefetch(at);
      const bool last = ++line == lines_;
      at += last ? pixel_ends_ : kLineBytes;
      line = last ? 0 : line;
    }
    at_ = at;
    line_ = line;
  }

 private:
  const char *row_ = nullptr, *at_ = nullptr;  // the next row, the next line
  int64_t row_step_ = 0, rows_ = 0;            // rows still to come
  int64_t row_parts_ = 0, left_ = 0;           // parts that share a row, of them still to come
  int64_t share_ = 0;                          // lines a part
  int64_t lines_ = 0, line_ = 0;               // of a pixel
  int64_t pixel_ends_ = 0;                     // bytes from a pixel's last line to the next pixel
};

// Reads all lines of some rows of pixels in the order in which they lie in memory, which the
// hardware foresees, so that what comes next may read them in any other.
template <class E>
void read_rows(const E* first, const PixelStrides& strides, int64_t rows, int64_t pixels,
               int64_t channels) {
  constexpr int64_t kLine = kLineBytes / sizeof(E);
  for (int64_t r = 0; r < rows; ++r, first += strides.h)
    for (int64_t j = 0; j < pixels; ++j) {
      const E* pixel = first + j * strides.w;
      for (int64_t c = 0; c < channels; c += kLine) {
        prefetch_ahead(pixel + c);
        static_cast<void>(*static_cast<const volatile E*>(pixel + c));
      }
    }
}
