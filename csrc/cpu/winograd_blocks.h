// Cuts the tiles of Winograd's way into blocks; included in an instruction set's namespace.
#pragma once

// `all` cut into even parts of at most `most`.
struct Parts {
  int64_t count, size;

  Parts(int64_t all, int64_t most)
      : count((all + most - 1) / most), size((all + count - 1) / count) {}
};

// Tiles beside each other.
struct TileSegment {
  int64_t row, col, tiles;
};

struct TileBlock {
  int64_t row, col, rows, cols;  // the tiles whose pixels no block before it has asked for
  int64_t first, tiles;          // where tiles go in order
};

// The blocks of an image, of at most `most` tiles: some rows of some columns, or, if
// `may_go_in_order`, tiles row by row, where rows of few tiles would leave the sums of a block
// empty. These are asked for a row at a time, of wide images too much at once.
class TileBlocks {
 public:
  TileBlocks(int64_t rows, int64_t cols, int64_t most, bool may_go_in_order)
      : rows_(rows),
        cols_(cols),
        col_parts_(cols, most),
        row_parts_(rows, most / col_parts_.size),
        ordered_(rows * cols, most),
        in_order_(may_go_in_order && cols < 2 * most &&
                  4 * ordered_.count <= 3 * row_parts_.count * col_parts_.count) {}

  int64_t count() const { return in_order_ ? ordered_.count : row_parts_.count * col_parts_.count; }

  TileBlock block(int64_t index) const {
    TileBlock b = {};
    if (in_order_) {
      b.first = index * ordered_.size;
      b.tiles = std::min(ordered_.size, rows_ * cols_ - b.first);
      b.row = (b.first + cols_ - 1) / cols_;
      b.rows = (b.first + b.tiles - 1) / cols_ + 1 - b.row;
      b.cols = cols_;
    } else {
      b.row = index / col_parts_.count * row_parts_.size;
      b.col = index % col_parts_.count * col_parts_.size;
      b.rows = std::min(row_parts_.size, rows_ - b.row);
      b.cols = std::min(col_parts_.size, cols_ - b.col);
    }
    return b;
  }

  // Writes a block's segments, returns how many there are.
  int64_t segments(const TileBlock& b, TileSegment* to) const {
    int64_t count = 0;
    if (in_order_) {
      for (int64_t t = b.first, end = t + b.tiles; t < end; t += to[count++].tiles)
        to[count] = {t / cols_, t % cols_, std::min(end - t, cols_ - t % cols_)};
    } else {
      for (; count < b.rows; ++count) to[count] = {b.row + count, b.col, b.cols};
    }
    return count;
  }

 private:
  int64_t rows_, cols_;
  Parts col_parts_, row_parts_, ordered_;
  bool in_order_;
};
