#include "product.h"

#include <algorithm>
#include <cstring>

#include "vec.h"

// A sum of products is one operation here, also where the rest is built without contraction.
#pragma GCC optimize("fp-contract=fast")

namespace mb::cpu {
namespace {

constexpr int64_t DEPTH = 256;  // rows of a panel that are used together: 32 KB stay in the first cache

// ROWS x (VECS vectors of BYTES, the size of a register) of c, in registers. `valid` columns of them exist.
template <typename T, int BYTES, int ROWS, int VECS>
MB_INLINE void tile(int64_t depth, Left<T> a, const T* b, int64_t b_row, T* c, int64_t stride, int64_t valid) {
  typedef T V __attribute__((vector_size(BYTES)));
  constexpr int64_t size = BYTES / sizeof(T);
  V sum[ROWS][VECS] = {};
  const T* quad[(ROWS + 3) / 4];
  for (int q = 0; q < (ROWS + 3) / 4; ++q) quad[q] = a.data + 4 * q * a.row;
  for (int64_t k = 0; k < depth; ++k) {
    V right[VECS];
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v) std::memcpy(&right[v], b + v * size, BYTES);
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) {
      const T left = quad[i / 4][(i % 4) * a.row];
#pragma GCC unroll 2
      for (int v = 0; v < VECS; ++v) sum[i][v] += left * right[v];
    }
#pragma GCC unroll 3
    for (int q = 0; q < (ROWS + 3) / 4; ++q) quad[q] += a.step;
    b += b_row;
  }
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i) {
    if (valid == VECS * size) {
#pragma GCC unroll 2
      for (int v = 0; v < VECS; ++v) {
        V value;
        std::memcpy(&value, c + v * size, BYTES);
        value += sum[i][v];
        std::memcpy(c + v * size, &value, BYTES);
      }
    } else {
      T edge[VECS * size];
#pragma GCC unroll 2
      for (int v = 0; v < VECS; ++v) std::memcpy(edge + v * size, &sum[i][v], BYTES);
      for (int64_t j = 0; j < valid; ++j) c[j] += edge[j];
    }
    c += stride;
  }
}

// The rows of c from `first` on in tiles of ROWS, what is left in smaller ones.
template <typename T, int BYTES, int ROWS, int VECS>
MB_INLINE void tiles(
    int64_t first, int64_t rows, int64_t depth, Left<T> a, const T* b, int64_t b_row, T* c, int64_t stride,
    int64_t valid) {
  for (; first + ROWS <= rows; first += ROWS) {
    tile<T, BYTES, ROWS, VECS>(depth, {a.data + first * a.row, a.row, a.step}, b, b_row, c + first * stride, stride, valid);
  }
  if constexpr (ROWS > 1) tiles<T, BYTES, ROWS / 2, VECS>(first, rows, depth, a, b, b_row, c, stride, valid);
}

template <typename T, int BYTES, int ROWS, int VECS>
MB_INLINE void blocked(int64_t rows, int64_t columns, int64_t depth, Left<T> a, Right<T> b, T* c, int64_t stride) {
  constexpr int64_t width = VECS * BYTES / sizeof(T);
  for (int64_t k = 0; k < depth; k += DEPTH) {
    const int64_t part = std::min(DEPTH, depth - k);
    for (int64_t j = 0; j < columns; j += width) {
      const T* right = b.data + j / panel<T> * b.next + j % panel<T> + k * b.row;
      const int64_t valid = std::min(width, columns - j);
      tiles<T, BYTES, ROWS, VECS>(0, rows, part, {a.data + k * a.step, a.row, a.step}, right, b.row, c + j, stride, valid);
    }
  }
}

#define MB_ARGS(T) int64_t rows, int64_t columns, int64_t depth, Left<T> a, Right<T> b, T *c, int64_t stride

// The sums of a tile fill the registers: 32 of 64 bytes, 16 of 32 bytes, or 16 of 16 bytes.
#if defined(__x86_64__) && defined(__GNUC__)
template <typename T>
__attribute__((target("avx512f"))) void product_avx512(MB_ARGS(T)) {
  blocked<T, 64, 12, 2>(rows, columns, depth, a, b, c, stride);
}

template <typename T>
__attribute__((target("avx2,fma"))) void product_avx2(MB_ARGS(T)) {
  blocked<T, 32, 6, 2>(rows, columns, depth, a, b, c, stride);
}
#endif

template <typename T>
void product_plain(MB_ARGS(T)) {
  blocked<T, 16, 4, 2>(rows, columns, depth, a, b, c, stride);
}

template <typename T>
void dispatch(MB_ARGS(T)) {
#if defined(__x86_64__) && defined(__GNUC__)
  static const int level = __builtin_cpu_supports("avx512f")                                    ? 2
                           : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1
                                                                                                : 0;
  if (level == 2) return product_avx512<T>(rows, columns, depth, a, b, c, stride);
  if (level == 1) return product_avx2<T>(rows, columns, depth, a, b, c, stride);
#endif
  product_plain<T>(rows, columns, depth, a, b, c, stride);
}

}  // namespace

void add_product(MB_ARGS(float)) { dispatch(rows, columns, depth, a, b, c, stride); }
void add_product(MB_ARGS(double)) { dispatch(rows, columns, depth, a, b, c, stride); }

}  // namespace mb::cpu
