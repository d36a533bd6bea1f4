// Images from one memory format to the other: the matrix of channels by pixels, turned.
#pragma once

#include "tap_conv.h"

namespace rnk::cpu {

// A dst matrix's row is a src matrix's column; all steps in elements, within a row 1.
struct Relayout {
  static constexpr int64_t kBlock = 64;  // rows and columns of a task

  Element element = Element::f32;
  int64_t images = 0, rows = 0, columns = 0;  // of src
  const void* src = nullptr;
  void* dst = nullptr;
  int64_t src_image = 0, src_row = 0, dst_image = 0, dst_row = 0;

  int64_t row_blocks() const { return (rows + kBlock - 1) / kBlock; }
  int64_t column_blocks() const { return (columns + kBlock - 1) / kBlock; }
  // Of `count` images from `first` on.
  Relayout part(int64_t first, int64_t count) const {
    const int64_t bytes = element_bytes(element);
    Relayout r = *this;
    r.images = count;
    if (src) r.src = static_cast<const char*>(src) + first * src_image * bytes;
    if (dst) r.dst = static_cast<char*>(dst) + first * dst_image * bytes;
    return r;
  }

  int64_t tasks() const { return images * row_blocks() * column_blocks(); }
};

}  // namespace rnk::cpu
