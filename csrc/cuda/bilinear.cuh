// Bilinear sampling of a map, shared by the operators that read between its cells.
#pragma once

#include "launch.cuh"

namespace mb {

/// The four cells around a position, row by row, with their weights and how these change with the position.
template <class A>
struct Corners {
  int64_t cell[4];  // y * width + x; 0 where there is no such cell
  bool inside[4];
  A weight[4], by_y[4], by_x[4];

  /// The four cells of ``map`` times ``factor``, one of the arrays above; ``step`` elements lie between two cells.
  template <class T>
  MB_DEVICE A sample(const T* map, int64_t step, const A (&factor)[4]) const {
    A sum = 0;
    for (int k = 0; k < 4; ++k) {
      if (inside[k]) sum += factor[k] * A(map[cell[k] * step]);
    }
    return sum;
  }
};

/// Cells outside of the map count as 0. False where all four are outside; the derivative is the right-sided one.
template <class A>
MB_DEVICE bool corners_in_zeros(A y, A x, int64_t height, int64_t width, Corners<A>& corners) {
  if (!(y > -1 && x > -1 && y < A(height) && x < A(width))) return false;  // so written, NaN is outside
  const A floor_y = std::floor(y), floor_x = std::floor(x);
  const A high_y = y - floor_y, high_x = x - floor_x;
  for (int k = 0; k < 4; ++k) {
    const int64_t row = int64_t(floor_y) + k / 2, column = int64_t(floor_x) + k % 2;
    const A part_y = k / 2 ? high_y : 1 - high_y, part_x = k % 2 ? high_x : 1 - high_x;
    corners.inside[k] = row >= 0 && row < height && column >= 0 && column < width;
    corners.cell[k] = corners.inside[k] ? row * width + column : 0;
    corners.weight[k] = part_y * part_x;
    corners.by_y[k] = k / 2 ? part_x : -part_x;
    corners.by_x[k] = k % 2 ? part_y : -part_y;
  }
  return true;
}

/// Positions up to one cell outside move to the border. False for those further out. The derivative is 0 on a cell.
template <class A>
MB_DEVICE bool corners_at_border(A y, A x, int64_t height, int64_t width, Corners<A>& corners) {
  if (!(y >= -1 && x >= -1 && y <= A(height) && x <= A(width))) return false;
  y = y > 0 ? y : A(0);
  x = x > 0 ? x : A(0);
  int64_t top = int64_t(y), left = int64_t(x), bottom = top + 1, right = left + 1;
  if (top >= height - 1) {
    top = bottom = height - 1;
    y = A(top);
  }
  if (left >= width - 1) {
    left = right = width - 1;
    x = A(left);
  }
  const A high_y = y - A(top), high_x = x - A(left);
  for (int k = 0; k < 4; ++k) {
    corners.inside[k] = true;
    corners.cell[k] = (k / 2 ? bottom : top) * width + (k % 2 ? right : left);
    const A part_y = k / 2 ? high_y : 1 - high_y, part_x = k % 2 ? high_x : 1 - high_x;
    corners.weight[k] = part_y * part_x;
    corners.by_y[k] = high_y > 0 ? (k / 2 ? part_x : -part_x) : A(0);
    corners.by_x[k] = high_x > 0 ? (k % 2 ? part_y : -part_y) : A(0);
  }
  return true;
}

}  // namespace mb
