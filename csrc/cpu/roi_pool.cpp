#include <algorithm>
#include <cmath>
#include <limits>

#include "common.h"
#include "parallel.h"
#include "roi.h"

namespace mb::cpu {
namespace {

// A region on the map, both ends included, at least one cell wide; the coordinates are rounded half away from zero.
template <typename T>
struct Span {
  int64_t start;
  T bin;

  Span(T low, T high, double scale, int64_t bins)
      : start(std::lround(low * T(scale))),
        bin(T(std::max<int64_t>(std::lround(high * T(scale)) - start + 1, 1)) / T(bins)) {}

  int64_t first(int64_t i, int64_t size) const {
    return std::clamp<int64_t>(static_cast<int64_t>(std::floor(T(i) * bin)) + start, 0, size);
  }
  int64_t last(int64_t i, int64_t size) const {
    return std::clamp<int64_t>(static_cast<int64_t>(std::ceil(T(i + 1) * bin)) + start, 0, size);
  }
};

template <typename T>
__attribute__((always_inline)) inline void take_larger(
    int64_t channels, const T* __restrict cell, int32_t index, T* __restrict best, int32_t* __restrict argmax) {
  for (int64_t c = 0; c < channels; ++c) {
    const bool larger = cell[c] > best[c];
    best[c] = larger ? cell[c] : best[c];
    argmax[c] = larger ? index : argmax[c];
  }
}

MB_CLONES void larger(int64_t channels, const float* cell, int32_t index, float* best, int32_t* argmax) {
  take_larger(channels, cell, index, best, argmax);
}
MB_CLONES void larger(int64_t channels, const double* cell, int32_t index, double* best, int32_t* argmax) {
  take_larger(channels, cell, index, best, argmax);
}

}  // namespace

template <typename T>
void roi_pool(const Regions& p, const T* input, const T* rois, T* out, int32_t* argmax) {
  parallel_for(0, p.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* roi = rois + 5 * r;
      const T* map = input + static_cast<int64_t>(roi[0]) * p.h * p.w * p.channels;
      const Span<T> across(roi[1], roi[3], p.spatial_scale, p.pooled_w);
      const Span<T> down(roi[2], roi[4], p.spatial_scale, p.pooled_h);
      for (int64_t bin = 0; bin < p.pooled_h * p.pooled_w; ++bin) {
        const int64_t ph = bin / p.pooled_w, pw = bin % p.pooled_w;
        const int64_t top = down.first(ph, p.h), bottom = down.last(ph, p.h);
        const int64_t left = across.first(pw, p.w), right = across.last(pw, p.w);
        const bool empty = bottom <= top || right <= left;
        const int64_t place = (r * p.pooled_h * p.pooled_w + bin) * p.channels;
        std::fill_n(out + place, p.channels, empty ? T(0) : std::numeric_limits<T>::lowest());
        std::fill_n(argmax + place, p.channels, -1);
        for (int64_t y = top; y < bottom; ++y) {
          for (int64_t x = left; x < right; ++x) {
            const int64_t cell = y * p.w + x;
            larger(p.channels, map + cell * p.channels, static_cast<int32_t>(cell), out + place, argmax + place);
          }
        }
      }
    }
  });
}

// Each thread has channels of its own and takes the regions in order: the sums do not depend on the number of threads.
template <typename T>
void roi_pool_backward(const Regions& p, const T* grad, const int32_t* argmax, const T* rois, T* d_input) {
  parallel_for(0, p.n * p.h * p.w, 1024, [&](int64_t begin, int64_t end) {
    std::fill(d_input + begin * p.channels, d_input + end * p.channels, T(0));
  });
  const int64_t bins = p.pooled_h * p.pooled_w;
  parallel_for(0, p.channels, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = 0; i < p.count * bins; ++i) {
      T* map = d_input + static_cast<int64_t>(rois[5 * (i / bins)]) * p.h * p.w * p.channels;
      for (int64_t c = first; c < last; ++c) {
        const int64_t cell = argmax[i * p.channels + c];
        if (cell >= 0) {
          map[cell * p.channels + c] += grad[i * p.channels + c];
        }
      }
    }
  });
}

#define MB_INSTANTIATE(T)                                                            \
  template void roi_pool<T>(const Regions&, const T*, const T*, T*, int32_t*);       \
  template void roi_pool_backward<T>(const Regions&, const T*, const int32_t*, const T*, T*);
MB_INSTANTIATE(float)
MB_INSTANTIATE(double)

}  // namespace mb::cpu
