// Products of small matrices that stay in the cache, for use inside a thread.
#pragma once

#include <cstdint>

namespace mb::cpu {

constexpr int64_t PANEL_BYTES = 128;  // of a row of a panel: two of the largest registers

// Columns of one panel of the right-hand matrix.
template <typename T>
constexpr int64_t panel = PANEL_BYTES / sizeof(T);

// Left-hand matrix: element (i, k) is at data[i * row + k * step].
template <typename T>
struct Left {
  const T* data;
  int64_t row, step;
};

// Right-hand matrix, cut into panels of `panel<T>` columns, the last one padded: element (k, j) is at
// data[(j / panel) * next + k * row + j % panel].
template <typename T>
struct Right {
  const T* data;
  int64_t row, next;
};

// c (rows x columns, rows `stride` apart) += a (rows x depth) * b (depth x columns). The sums over `depth` are made in
// the same order whatever the sizes of rows and columns are.
void add_product(int64_t rows, int64_t columns, int64_t depth, Left<float> a, Right<float> b, float* c, int64_t stride);
void add_product(
    int64_t rows, int64_t columns, int64_t depth, Left<double> a, Right<double> b, double* c, int64_t stride);

}  // namespace mb::cpu
