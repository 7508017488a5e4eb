// A query of one head reads a list of rows of its head; the gradients of the rows are added up head by head.
#include "ms_deform_attn.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "bilinear.h"
#include "common.h"
#include "parallel.h"

// A sum of products is one operation here, also where the rest is built without contraction.
#pragma GCC optimize("fp-contract=fast")

namespace mb::cpu {
namespace {

template <typename T>
struct Levels {
  MsDeformAttn p;
  const int64_t *shapes, *starts;
  const T *locations, *weights;

  int64_t samples() const { return p.levels * p.points; }

  // False where the sample is zero.
  MB_INLINE bool find(int64_t sample, int64_t height, int64_t width, Corners<T>& corners) const {
    const T* at = locations + 2 * sample;
    return find_corners(at[1] * T(height) - T(0.5), at[0] * T(width) - T(0.5), height, width, corners);
  }
};

template <typename T>
struct Read {
  const T* row;
  T weight;
};

// The levels of the samples of a query: sample i has element i, padded to whole vectors.
template <typename T>
struct SampleLevels {
  using Integer = std::remove_reference_t<decltype(std::declval<whole<T>>()[0])>;
  std::vector<Integer> height, width, start;

  explicit SampleLevels(const Levels<T>& s) {
    const int64_t padded = (s.samples() + Vec<T>::size - 1) / Vec<T>::size * Vec<T>::size;
    for (auto* values : {&height, &width, &start}) values->resize(padded);
    for (int64_t i = 0; i < s.samples(); ++i) {
      height[i] = static_cast<Integer>(s.shapes[2 * (i / s.p.points)]);
      width[i] = static_cast<Integer>(s.shapes[2 * (i / s.p.points) + 1]);
      start[i] = static_cast<Integer>(s.starts[i / s.p.points]);
    }
  }
};

template <typename T>
MB_INLINE whole<T> floor_of(const vec<T>& value) {
  const whole<T> cut = __builtin_convertvector(value, whole<T>);
  return cut + (__builtin_convertvector(cut, vec<T>) > value);  // a comparison that holds is -1
}

// The cells that the samples [first, first + samples) of one query and head read, in order; returns their number.
// `map` are the rows of the head, `step` apart.
template <typename T>
MB_INLINE int64_t list_reads(
    const Levels<T>& s, const SampleLevels<T>& levels, int64_t first, const T* map, int64_t step, Read<T>* reads) {
  constexpr int64_t size = Vec<T>::size;
  int64_t total = 0;
  for (int64_t from = 0; from < s.samples(); from += size) {
    const int64_t count = std::min(size, s.samples() - from);
    T x[size] = {}, y[size] = {}, factor[size] = {};
    for (int64_t i = 0; i < count; ++i) {
      x[i] = s.locations[2 * (first + from + i)];
      y[i] = s.locations[2 * (first + from + i) + 1];
      factor[i] = s.weights[first + from + i];
    }
    whole<T> height, width, start;
    std::memcpy(&height, levels.height.data() + from, sizeof(height));
    std::memcpy(&width, levels.width.data() + from, sizeof(width));
    std::memcpy(&start, levels.start.data() + from, sizeof(start));
    const vec<T> across = load(x) * __builtin_convertvector(width, vec<T>) - T(0.5);
    const vec<T> down = load(y) * __builtin_convertvector(height, vec<T>) - T(0.5);
    const whole<T> column = floor_of<T>(across), row = floor_of<T>(down);
    const vec<T> right = across - __builtin_convertvector(column, vec<T>), left = 1 - right;
    const vec<T> below = down - __builtin_convertvector(row, vec<T>);
    const vec<T> lower = below * load(factor), upper = (1 - below) * load(factor);
    const whole<T> in_upper = (row >= 0) & (row < height), in_lower = (row >= -1) & (row < height - 1);
    const whole<T> in_left = (column >= 0) & (column < width), in_right = (column >= -1) & (column < width - 1);
    const whole<T> cell = start + row * width + column;
    const whole<T> cells[4] = {
        cell | ~(in_upper & in_left), (cell + 1) | ~(in_upper & in_right), (cell + width) | ~(in_lower & in_left),
        (cell + width + 1) | ~(in_lower & in_right)};  // -1 outside
    const vec<T> weights[4] = {upper * left, upper * right, lower * left, lower * right};
    typename SampleLevels<T>::Integer cell_of[4][size];
    T weight_of[4][size];
    std::memcpy(cell_of, cells, sizeof(cells));
    std::memcpy(weight_of, weights, sizeof(weights));
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        reads[total] = {map + cell_of[k][i] * step, weight_of[k][i]};
        __builtin_prefetch(reads[total].row);  // most rows are not in the cache, and none is needed yet
        total += cell_of[k][i] >= 0;
      }
    }
  }
  return total;
}

// out = weighted sum of VECS vectors of each row.
template <typename T, int VECS>
MB_INLINE void sum_rows(const Read<T>* reads, int64_t count, int64_t offset, T* out) {
  vec<T> sum[VECS] = {};
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) sum[v] += reads[i].weight * load(reads[i].row + offset + v * Vec<T>::size);
  }
#pragma GCC unroll 4
  for (int v = 0; v < VECS; ++v) store<T>(out + offset + v * Vec<T>::size, sum[v]);
}

// Heads [begin, end) of all pictures and queries.
template <typename T>
MB_INLINE void attend_queries(
    const Levels<T>& s, const SampleLevels<T>& levels, const T* value, int64_t begin, int64_t end, Read<T>* reads,
    T* out) {
  constexpr int64_t size = Vec<T>::size;
  const MsDeformAttn& p = s.p;
  const int64_t step = p.heads * p.depth;
  for (int64_t item = begin; item < end; ++item) {
    const T* map = value + item / p.heads / p.queries * p.rows * step + item % p.heads * p.depth;
    const int64_t count = list_reads(s, levels, item * s.samples(), map, step, reads);
    T* to = out + item * p.depth;
    int64_t c = 0;
    for (; c + 4 * size <= p.depth; c += 4 * size) sum_rows<T, 4>(reads, count, c, to);
    for (; c + size <= p.depth; c += size) sum_rows<T, 1>(reads, count, c, to);
    for (; c < p.depth; ++c) {
      T sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += reads[i].weight * reads[i].row[c];
      to[c] = sum;
    }
  }
}

MB_CLONES void attend(
    const Levels<float>& s, const SampleLevels<float>& levels, const float* value, int64_t begin, int64_t end,
    Read<float>* reads, float* out) {
  attend_queries(s, levels, value, begin, end, reads, out);
}

MB_CLONES void attend(
    const Levels<double>& s, const SampleLevels<double>& levels, const double* value, int64_t begin, int64_t end,
    Read<double>* reads, double* out) {
  attend_queries(s, levels, value, begin, end, reads, out);
}

// dot[k] = sum of d * row[k], and d_row[k] += factor[k] * d, of `depth` values each.
template <typename T>
MB_INLINE void dot_and_add(
    int64_t depth, const T* d, const T* const row[4], const T factor[4], T dot[4], T* const d_row[4]) {
  constexpr int64_t size = Vec<T>::size;
  vec<T> sums[4] = {};
  int64_t c = 0;
  for (; c + size <= depth; c += size) {
    const vec<T> part = load(d + c);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      sums[k] += part * load(row[k] + c);
      store<T>(d_row[k] + c, load(d_row[k] + c) + factor[k] * part);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) dot[k] = total<T>(sums[k]);
  for (; c < depth; ++c) {
    for (int k = 0; k < 4; ++k) {
      dot[k] += d[c] * row[k][c];
      d_row[k][c] += factor[k] * d[c];
    }
  }
}

// All gradients of one head of one picture.
template <typename T>
MB_INLINE void head_gradients(
    const Levels<T>& s, const T* grad, const T* value, int64_t n, int64_t head, T* zeros, T* unused, T* d_value,
    T* d_locations, T* d_weights) {
  const MsDeformAttn& p = s.p;
  const int64_t step = p.heads * p.depth;
  for (int64_t query = 0; query < p.queries; ++query) {
    const int64_t place = (n * p.queries + query) * p.heads + head, first = place * s.samples();
    const T* d_out = grad + place * p.depth;
    for (int64_t level = 0, i = first; level < p.levels; ++level) {
      const int64_t height = s.shapes[2 * level], width = s.shapes[2 * level + 1];
      const int64_t start = (n * p.rows + s.starts[level]) * step + head * p.depth;
      for (const int64_t last = i + p.points; i < last; ++i) {
        Corners<T> at;
        if (!s.find(i, height, width, at)) {
          d_locations[2 * i] = d_locations[2 * i + 1] = d_weights[i] = 0;
          continue;
        }
        const T* row[4];
        T* d_row[4];
        T factor[4], dot[4];
        for (int k = 0; k < 4; ++k) {
          row[k] = at.cell[k] < 0 ? zeros : value + start + at.cell[k] * step;
          d_row[k] = at.cell[k] < 0 ? unused : d_value + start + at.cell[k] * step;
          factor[k] = at.weight[k] * s.weights[i];
        }
        dot_and_add(p.depth, d_out, row, factor, dot, d_row);
        d_locations[2 * i] = s.weights[i] * slope_x(at, dot) * T(width);
        d_locations[2 * i + 1] = s.weights[i] * slope_y(at, dot) * T(height);
        d_weights[i] =
            at.weight[0] * dot[0] + at.weight[1] * dot[1] + at.weight[2] * dot[2] + at.weight[3] * dot[3];
      }
    }
  }
}

MB_CLONES void head_backward(
    const Levels<float>& s, const float* grad, const float* value, int64_t n, int64_t head, float* zeros, float* unused,
    float* d_value, float* d_locations, float* d_weights) {
  head_gradients(s, grad, value, n, head, zeros, unused, d_value, d_locations, d_weights);
}

MB_CLONES void head_backward(
    const Levels<double>& s, const double* grad, const double* value, int64_t n, int64_t head, double* zeros,
    double* unused, double* d_value, double* d_locations, double* d_weights) {
  head_gradients(s, grad, value, n, head, zeros, unused, d_value, d_locations, d_weights);
}

}  // namespace

template <typename T>
void ms_deform_attn(
    const MsDeformAttn& p, const T* value, const int64_t* shapes, const int64_t* starts, const T* locations,
    const T* weights, T* out) {
  const Levels<T> s{p, shapes, starts, locations, weights};
  const SampleLevels<T> levels(s);
  parallel_for(0, p.n * p.heads * p.queries, 64, [&](int64_t begin, int64_t end) {
    std::vector<Read<T>> reads(4 * s.samples() + 1);
    attend(s, levels, value, begin, end, reads.data(), out);
  });
}

template <typename T>
void ms_deform_attn_backward(
    const MsDeformAttn& p, const T* grad, const T* value, const int64_t* shapes, const int64_t* starts,
    const T* locations, const T* weights, T* d_value, T* d_locations, T* d_weights) {
  const Levels<T> s{p, shapes, starts, locations, weights};
  std::fill(d_value, d_value + p.n * p.rows * p.heads * p.depth, T(0));
  parallel_for(0, p.n * p.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> zeros(p.depth), unused(p.depth);
    for (int64_t i = begin; i < end; ++i) {
      head_backward(
          s, grad, value, i / p.heads, i % p.heads, zeros.data(), unused.data(), d_value, d_locations, d_weights);
    }
  });
}

#define MB_INSTANTIATE(T)                                                                                              \
  template void ms_deform_attn<T>(                                                                                     \
      const MsDeformAttn&, const T*, const int64_t*, const int64_t*, const T*, const T*, T*);                          \
  template void ms_deform_attn_backward<T>(                                                                            \
      const MsDeformAttn&, const T*, const T*, const int64_t*, const int64_t*, const T*, const T*, T*, T*, T*);

MB_INSTANTIATE(float)
MB_INSTANTIATE(double)

}  // namespace mb::cpu
