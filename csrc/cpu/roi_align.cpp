#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "common.h"
#include "layout.h"
#include "parallel.h"
#include "roi.h"
#include "vec.h"

namespace mb::cpu {
namespace {

constexpr int64_t SLAB_BYTES = 16 << 20;

// The samples of one bin along one axis, as cells of the map and their weights.
template <typename T>
struct Cell {
  int64_t index;
  T weight;
};

// All bins of a region along one axis; bin i has the cells [first[i], first[i + 1]).
template <typename T>
struct Axis {
  std::vector<Cell<T>> cells;
  std::vector<int64_t> first;

  void clear() {
    cells.clear();
    first.assign(1, 0);
  }

  // Samples of a bin share cells with the one before.
  void add(int64_t index, T weight) {
    const int64_t low = first.back(), end = cells.size();
    for (int64_t i = end - 1; i >= std::max(low, end - 2); --i) {
      if (cells[i].index == index) {
        cells[i].weight += weight;
        return;
      }
    }
    cells.push_back({index, weight});
  }
};

// `start` and `extent` of the region in cells. Positions more than one cell outside count as zero, others are moved to
// the border; a region of no size has no samples when their number follows its size.
template <typename T>
void lay_out(T start, T extent, int64_t bins, int64_t sampling_ratio, int64_t size, Axis<T>& axis) {
  const T bin = extent / T(bins);
  const int64_t grid = sampling_ratio > 0 ? sampling_ratio : static_cast<int64_t>(std::ceil(bin));
  axis.clear();
  for (int64_t b = 0; b < bins; ++b) {
    for (int64_t i = 0; i < grid; ++i) {
      T position = start + T(b) * bin + (T(i) + T(0.5)) * bin / T(grid);
      if (!(position >= -1 && position <= T(size))) {
        continue;
      }
      position = std::max(position, T(0));
      const int64_t low = static_cast<int64_t>(position);
      if (low >= size - 1) {
        axis.add(size - 1, T(1) / T(grid));
      } else {
        axis.add(low, (T(1) - (position - T(low))) / T(grid));
        axis.add(low + 1, (position - T(low)) / T(grid));
      }
    }
    axis.first.push_back(axis.cells.size());
  }
}

template <typename T>
struct Layout {
  Axis<T> x, y;

  void lay(const Regions& p, int64_t sampling_ratio, bool aligned, const T* roi) {
    const T scale = T(p.spatial_scale), half = aligned ? T(0.5) : T(0);
    const T x1 = roi[1] * scale - half, y1 = roi[2] * scale - half;
    T width = roi[3] * scale - half - x1, height = roi[4] * scale - half - y1;
    if (!aligned) {
      width = std::max(width, T(1));
      height = std::max(height, T(1));
    }
    lay_out(x1, width, p.pooled_w, sampling_ratio, p.w, x);
    lay_out(y1, height, p.pooled_h, sampling_ratio, p.h, y);
  }
};

// The cells that one bin reads: all pairs of a row and a column, with the products of their weights.
template <typename T>
struct Bin {
  const Cell<T>*rows, *rows_end, *columns, *columns_end;
  int64_t row_step, step;  // from one row of the map, and from one cell, to the next

  Bin(const Layout<T>& layout, int64_t ph, int64_t pw, int64_t width, int64_t step)
      : rows(layout.y.cells.data() + layout.y.first[ph]),
        rows_end(layout.y.cells.data() + layout.y.first[ph + 1]),
        columns(layout.x.cells.data() + layout.x.first[pw]),
        columns_end(layout.x.cells.data() + layout.x.first[pw + 1]),
        row_step(width * step),
        step(step) {}
};

// out[0 .. channels) = weighted sum of the cells; a few vectors of channels at a time stay in registers.
template <typename T>
MB_INLINE void gather_bin(const T* map, const Bin<T>& bin, int64_t channels, T* out) {
  constexpr int64_t W = Vec<T>::size;
  int64_t c = 0;
  for (; c + 4 * W <= channels; c += 4 * W) {
    vec<T> a{}, b{}, d{}, e{};
    for (const Cell<T>* y = bin.rows; y != bin.rows_end; ++y) {
      const T* row = map + y->index * bin.row_step + c;
      for (const Cell<T>* x = bin.columns; x != bin.columns_end; ++x) {
        const T weight = y->weight * x->weight;
        const T* cell = row + x->index * bin.step;
        a += weight * load(cell);
        b += weight * load(cell + W);
        d += weight * load(cell + 2 * W);
        e += weight * load(cell + 3 * W);
      }
    }
    store<T>(out + c, a);
    store<T>(out + c + W, b);
    store<T>(out + c + 2 * W, d);
    store<T>(out + c + 3 * W, e);
  }
  for (; c < channels; ++c) {
    T sum = 0;
    for (const Cell<T>* y = bin.rows; y != bin.rows_end; ++y) {
      for (const Cell<T>* x = bin.columns; x != bin.columns_end; ++x) {
        sum += y->weight * x->weight * map[y->index * bin.row_step + x->index * bin.step + c];
      }
    }
    out[c] = sum;
  }
}

// The transpose of gather_bin.
template <typename T>
MB_INLINE void scatter_bin(T* map, const Bin<T>& bin, int64_t channels, const T* grad) {
  for (const Cell<T>* y = bin.rows; y != bin.rows_end; ++y) {
    for (const Cell<T>* x = bin.columns; x != bin.columns_end; ++x) {
      T* cell = map + y->index * bin.row_step + x->index * bin.step;
      const T weight = y->weight * x->weight;
      for (int64_t c = 0; c < channels; ++c) {
        cell[c] += weight * grad[c];
      }
    }
  }
}

MB_CLONES void gather(const float* map, const Bin<float>& bin, int64_t channels, float* out) {
  gather_bin(map, bin, channels, out);
}
MB_CLONES void gather(const double* map, const Bin<double>& bin, int64_t channels, double* out) {
  gather_bin(map, bin, channels, out);
}
MB_CLONES void scatter(float* map, const Bin<float>& bin, int64_t channels, const float* grad) {
  scatter_bin(map, bin, channels, grad);
}
MB_CLONES void scatter(double* map, const Bin<double>& bin, int64_t channels, const double* grad) {
  scatter_bin(map, bin, channels, grad);
}

// Channels of a map that are brought into channels-last order at a time: so many that they stay in the cache.
template <typename T>
int64_t slab_channels(const Regions& p) {
  const int64_t vectors = SLAB_BYTES / (p.n * p.h * p.w * int64_t(sizeof(T)) + 1) / Vec<T>::size;
  return std::clamp<int64_t>(vectors, 1, 4) * Vec<T>::size;
}

}  // namespace

template <typename T>
void roi_align(
    const Regions& p, int64_t sampling_ratio, bool aligned, const T* input, bool planar, const T* rois, T* out) {
  const int64_t cells = p.h * p.w, bins = p.pooled_h * p.pooled_w;
  const int64_t step = planar ? slab_channels<T>(p) : p.channels;
  const std::unique_ptr<T[]> slab(planar ? new T[p.n * cells * step] : nullptr);
  for (int64_t first = 0; first < p.channels; first += step) {
    const int64_t channels = std::min(step, p.channels - first);
    if (planar) {
      to_channels_last(p.n, channels, cells, p.channels * cells, input + first * cells, slab.get());
    }
    const T* maps = planar ? slab.get() : input;
    parallel_for(0, p.count, 1, [&](int64_t begin, int64_t end) {
      Layout<T> layout;
      for (int64_t r = begin; r < end; ++r) {
        layout.lay(p, sampling_ratio, aligned, rois + 5 * r);
        const T* map = maps + static_cast<int64_t>(rois[5 * r]) * cells * channels;
        for (int64_t bin = 0; bin < bins; ++bin) {
          const Bin<T> cells_of(layout, bin / p.pooled_w, bin % p.pooled_w, p.w, channels);
          gather(map, cells_of, channels, out + (r * bins + bin) * p.channels + first);
        }
      }
    });
  }
}

// Each thread has channels of its own and takes the regions in order: the sums do not depend on the number of threads.
template <typename T>
void roi_align_backward(
    const Regions& p, int64_t sampling_ratio, bool aligned, const T* grad, const T* rois, T* d_input) {
  parallel_for(0, p.n * p.h * p.w, 1024, [&](int64_t begin, int64_t end) {
    std::fill(d_input + begin * p.channels, d_input + end * p.channels, T(0));
  });
  constexpr int64_t W = Vec<T>::size;
  parallel_for(0, (p.channels + W - 1) / W, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * W, channels = std::min(end * W, p.channels) - first;
    Layout<T> layout;
    for (int64_t r = 0; r < p.count; ++r) {
      layout.lay(p, sampling_ratio, aligned, rois + 5 * r);
      T* map = d_input + static_cast<int64_t>(rois[5 * r]) * p.h * p.w * p.channels + first;
      for (int64_t bin = 0; bin < p.pooled_h * p.pooled_w; ++bin) {
        const Bin<T> cells_of(layout, bin / p.pooled_w, bin % p.pooled_w, p.w, p.channels);
        scatter(map, cells_of, channels, grad + (r * p.pooled_h * p.pooled_w + bin) * p.channels + first);
      }
    }
  });
}

#define MB_INSTANTIATE(T)                                                                          \
  template void roi_align<T>(const Regions&, int64_t, bool, const T*, bool, const T*, T*);         \
  template void roi_align_backward<T>(const Regions&, int64_t, bool, const T*, const T*, T*);
MB_INSTANTIATE(float)
MB_INSTANTIATE(double)

}  // namespace mb::cpu
