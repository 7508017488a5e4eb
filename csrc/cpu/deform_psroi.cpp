#include "deform_psroi.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace mb::cpu {
namespace {

// One bin of one region for one output channel.
template <typename T>
struct Bin {
  int64_t channel;    // of the map
  int64_t trans;      // index of the shift along x; that along y lies part_size^2 further
  T x, y;             // of the first sample
  T step_x, step_y;   // between samples
  T width, height;    // of the region

  Bin(const DeformPsroi& p, const T* rois, const T* shifts, int64_t r, int64_t d, int64_t ph, int64_t pw) {
    const T scale = T(p.spatial_scale), half = T(0.5);
    const T* roi = rois + 5 * r;
    const T left = std::round(roi[1]) * scale - half, right = (std::round(roi[3]) + 1) * scale - half;
    const T top = std::round(roi[2]) * scale - half, bottom = (std::round(roi[4]) + 1) * scale - half;
    width = std::max(right - left, T(0.1));
    height = std::max(bottom - top, T(0.1));
    const T bin_w = width / T(p.out_size), bin_h = height / T(p.out_size);
    step_x = bin_w / T(p.samples);
    step_y = bin_h / T(p.samples);
    const int64_t part_y = place(ph, p.out_size, p.part_size), part_x = place(pw, p.out_size, p.part_size);
    const int64_t kind = d / (p.out_channels / p.classes);
    trans = ((r * p.classes + kind) * 2 * p.part_size + part_y) * p.part_size + part_x;
    x = T(pw) * bin_w + left;
    y = T(ph) * bin_h + top;
    if (shifts != nullptr) {
      x += shifts[trans] * T(p.trans_std) * width;
      y += shifts[trans + p.part_size * p.part_size] * T(p.trans_std) * height;
    }
    const int64_t gh = std::clamp<int64_t>(ph * p.group_size / p.out_size, 0, p.group_size - 1);
    const int64_t gw = std::clamp<int64_t>(pw * p.group_size / p.out_size, 0, p.group_size - 1);
    channel = (d * p.group_size + gh) * p.group_size + gw;
  }

  // In T, as the reference counts: the quotient times the number of parts may round below a whole number.
  static int64_t place(int64_t bin, int64_t bins, int64_t parts) {
    return static_cast<int64_t>(std::floor(T(bin) / T(bins) * T(parts)));
  }
};

// Calls f(low x, low y, high x, high y, fraction x, fraction y) for each sample inside the map; returns their number.
template <typename T, typename F>
int64_t each_sample(const DeformPsroi& p, const Bin<T>& bin, const F& f) {
  int64_t count = 0;
  for (int64_t j = 0; j < p.samples; ++j) {
    for (int64_t i = 0; i < p.samples; ++i) {
      T x = bin.x + T(i) * bin.step_x, y = bin.y + T(j) * bin.step_y;
      if (!(x >= T(-0.5) && x <= T(p.w) - T(0.5) && y >= T(-0.5) && y <= T(p.h) - T(0.5))) {
        continue;
      }
      x = std::min(std::max(x, T(0)), T(p.w - 1));
      y = std::min(std::max(y, T(0)), T(p.h - 1));
      const int64_t left = static_cast<int64_t>(x), top = static_cast<int64_t>(y);
      // on a cell the next one is the cell itself: no slope, as where a position was moved to the border
      f(left, top, left + (x > T(left)), top + (y > T(top)), x - T(left), y - T(top));
      ++count;
    }
  }
  return count;
}

}  // namespace

template <typename T>
void deform_psroi(const DeformPsroi& p, const T* input, const T* rois, const T* trans, T* out) {
  const int64_t planes = p.out_channels * p.group_size * p.group_size;
  parallel_for(0, p.count * p.out_channels, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / p.out_channels, d = i % p.out_channels;
      for (int64_t b = 0; b < p.out_size * p.out_size; ++b) {
        const Bin<T> bin(p, rois, trans, r, d, b / p.out_size, b % p.out_size);
        const T* map = input + (static_cast<int64_t>(rois[5 * r]) * planes + bin.channel) * p.h * p.w;
        T sum = 0;
        const int64_t count = each_sample(p, bin, [&](int64_t x0, int64_t y0, int64_t x1, int64_t y1, T fx, T fy) {
          sum += (1 - fx) * (1 - fy) * map[y0 * p.w + x0] + (1 - fx) * fy * map[y1 * p.w + x0] +
              fx * (1 - fy) * map[y0 * p.w + x1] + fx * fy * map[y1 * p.w + x1];
        });
        out[i * p.out_size * p.out_size + b] = count == 0 ? T(0) : sum / T(count);
      }
    }
  });
}

// d_input by output channel and d_trans by region, each in a fixed order: neither depends on the number of threads.
template <typename T>
void deform_psroi_backward(
    const DeformPsroi& p, const T* grad, const T* input, const T* rois, const T* trans, T* d_input, T* d_trans) {
  const int64_t planes = p.out_channels * p.group_size * p.group_size, bins = p.out_size * p.out_size;
  const int64_t shifts = 2 * p.classes * p.part_size * p.part_size;
  std::fill_n(d_input, p.n * planes * p.h * p.w, T(0));
  // how many samples of a bin lie inside the map
  auto share = [&](const Bin<T>& bin) {
    return each_sample(p, bin, [](int64_t, int64_t, int64_t, int64_t, T, T) {});
  };
  parallel_for(0, p.out_channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < p.count; ++r) {
      for (int64_t i = begin * bins; i < end * bins; ++i) {
        const int64_t d = i / bins, b = i % bins;
        const Bin<T> bin(p, rois, trans, r, d, b / p.out_size, b % p.out_size);
        T* map = d_input + (static_cast<int64_t>(rois[5 * r]) * planes + bin.channel) * p.h * p.w;
        const int64_t count = share(bin);
        const T part = count == 0 ? T(0) : grad[r * p.out_channels * bins + i] / T(count);
        each_sample(p, bin, [&](int64_t x0, int64_t y0, int64_t x1, int64_t y1, T fx, T fy) {
          map[y0 * p.w + x0] += (1 - fx) * (1 - fy) * part;
          map[y1 * p.w + x0] += (1 - fx) * fy * part;
          map[y0 * p.w + x1] += fx * (1 - fy) * part;
          map[y1 * p.w + x1] += fx * fy * part;
        });
      }
    }
  });
  if (trans == nullptr) {
    return;
  }
  parallel_for(0, p.count, 1, [&](int64_t begin, int64_t end) {
    std::fill(d_trans + begin * shifts, d_trans + end * shifts, T(0));
    for (int64_t i = begin * p.out_channels * bins; i < end * p.out_channels * bins; ++i) {
      const int64_t r = i / (p.out_channels * bins), d = i / bins % p.out_channels, b = i % bins;
      const Bin<T> bin(p, rois, trans, r, d, b / p.out_size, b % p.out_size);
      const T* map = input + (static_cast<int64_t>(rois[5 * r]) * planes + bin.channel) * p.h * p.w;
      T slope_x = 0, slope_y = 0;
      const int64_t count = each_sample(p, bin, [&](int64_t x0, int64_t y0, int64_t x1, int64_t y1, T fx, T fy) {
        const T v00 = map[y0 * p.w + x0], v01 = map[y0 * p.w + x1];
        const T v10 = map[y1 * p.w + x0], v11 = map[y1 * p.w + x1];
        slope_x += (v01 - v00) * (1 - fy) + (v11 - v10) * fy;
        slope_y += (v10 - v00) * (1 - fx) + (v11 - v01) * fx;
      });
      if (count > 0) {
        const T part = grad[i] / T(count) * T(p.trans_std);
        d_trans[bin.trans] += slope_x * part * bin.width;
        d_trans[bin.trans + p.part_size * p.part_size] += slope_y * part * bin.height;
      }
    }
  });
}

#define MB_INSTANTIATE(T)                                                                                        \
  template void deform_psroi<T>(const DeformPsroi&, const T*, const T*, const T*, T*);                           \
  template void deform_psroi_backward<T>(const DeformPsroi&, const T*, const T*, const T*, const T*, T*, T*);
MB_INSTANTIATE(float)
MB_INSTANTIATE(double)

}  // namespace mb::cpu
