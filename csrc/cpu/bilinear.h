// Bilinear sampling between the cells of a map, with zeros outside of it.
#pragma once

#include <cstdint>

#include "vec.h"

namespace mb::cpu {

// The four cells around a position: the upper two, then the lower two.
template <typename T>
struct Corners {
  int64_t cell[4];  // y * width + x, -1 outside
  T weight[4];
  T down, right;  // how far the position lies below and to the right of the first cell, in 0..1
};

// std::floor is a call where the processor has no instruction for it.
template <typename T>
MB_INLINE int64_t floor_of(T value) {
  const auto whole = static_cast<int64_t>(value);
  return whole - (value < T(whole));
}

// False (and nothing written) where all four lie outside, and for NaN.
template <typename T>
MB_INLINE bool find_corners(T y, T x, int64_t height, int64_t width, Corners<T>& found) {
  if (!(y > -1 && x > -1 && y < T(height) && x < T(width))) return false;
  const int64_t row = floor_of(y), column = floor_of(x);
  const T down = y - T(row), right = x - T(column);
  const bool above = row >= 0, below = row + 1 < height, before = column >= 0, after = column + 1 < width;
  const int64_t first = row * width + column;
  found.cell[0] = above && before ? first : -1;
  found.cell[1] = above && after ? first + 1 : -1;
  found.cell[2] = below && before ? first + width : -1;
  found.cell[3] = below && after ? first + width + 1 : -1;
  found.weight[0] = (1 - down) * (1 - right);
  found.weight[1] = (1 - down) * right;
  found.weight[2] = down * (1 - right);
  found.weight[3] = down * right;
  found.down = down;
  found.right = right;
  return true;
}

// How the sample changes with y and with x, where the corners have these values. At a cell it is the right-sided slope.
template <typename T>
MB_INLINE T slope_y(const Corners<T>& at, const T value[4]) {
  return (1 - at.right) * (value[2] - value[0]) + at.right * (value[3] - value[1]);
}

template <typename T>
MB_INLINE T slope_x(const Corners<T>& at, const T value[4]) {
  return (1 - at.down) * (value[1] - value[0]) + at.down * (value[3] - value[2]);
}

}  // namespace mb::cpu
