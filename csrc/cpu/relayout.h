// Turns matrices for one instruction set; included in its namespace.
#pragma once

// As many rows as columns as a vector has lanes; fewer of either at the end of a matrix.
template <class E, class Count>
[[gnu::always_inline]] inline void turn_tile(const E* from, int64_t from_row, Count rows,
                                             Count columns, E* to, int64_t to_row) {
  Vec tile[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    tile[i] = i < rows ? load_elements(from + i * from_row, columns) : zero();
  transpose(tile);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (i < columns) store_loaded(to + i * to_row, tile[i], rows);
}

template <class E>
void turn_block(const E* from, int64_t from_row, int64_t rows, int64_t columns, E* to,
                int64_t to_row) {
  constexpr std::integral_constant<int, kLanes> kWhole;
  for (int64_t c = 0; c < columns; c += kLanes)
    for (int64_t r = 0; r < rows; r += kLanes) {
      const E* const tile = from + r * from_row + c;
      E* const turned = to + c * to_row + r;
      const int rows_here = static_cast<int>(std::min<int64_t>(kLanes, rows - r));
      const int columns_here = static_cast<int>(std::min<int64_t>(kLanes, columns - c));
      if (rows_here == kLanes && columns_here == kLanes) {
        turn_tile(tile, from_row, kWhole, kWhole, turned, to_row);
      } else {
        turn_tile(tile, from_row, rows_here, columns_here, turned, to_row);
      }
    }
}

template <class E>
void relayout(const Relayout& r, int64_t task) {
  const int64_t row = task % r.row_blocks() * Relayout::kBlock;
  task /= r.row_blocks();
  const int64_t column = task % r.column_blocks() * Relayout::kBlock;
  const int64_t image = task / r.column_blocks();
  turn_block(static_cast<const E*>(r.src) + image * r.src_image + row * r.src_row + column,
             r.src_row, std::min(Relayout::kBlock, r.rows - row),
             std::min(Relayout::kBlock, r.columns - column),
             static_cast<E*>(r.dst) + image * r.dst_image + column * r.dst_row + row, r.dst_row);
}

// Tasks [begin, end): of one image, of some of its columns, row by row.
inline void run_relayout(const Relayout& r, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    if (r.element == Element::f32) {
      relayout<float>(r, task);
    } else {
      relayout<uint16_t>(r, task);
    }
  }
}
