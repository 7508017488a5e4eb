// Samples of one tap of the kernel for a block of output cells are written to a small matrix, which is multiplied with
// the weights of that tap while it is in the cache. The gradients are made channel slice by channel slice: each slice
// adds to cells of its own, in a fixed order.
#include "deform_conv.h"

#include <algorithm>
#include <vector>

#include "bilinear.h"
#include "common.h"
#include "parallel.h"
#include "product.h"

// A sum of products is one operation here, also where the rest is built without contraction.
#pragma GCC optimize("fp-contract=fast")

namespace mb::cpu {
namespace {

constexpr int64_t TILE = 12;           // output cells that the product takes at a time
constexpr int64_t BLOCK_CELLS = 192;   // output cells of a block, fewer where there are many channels
constexpr int64_t BLOCK_VALUES = 24576;
constexpr int64_t SLICE = 32;          // channels whose gradients are made together

int64_t block_cells(int64_t channels) {
  return std::clamp(BLOCK_VALUES / channels / TILE * TILE, 2 * TILE, BLOCK_CELLS);
}

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Where the samples of a convolution lie.
template <typename T>
struct Sampling {
  DeformConv p;
  const T *offset, *mask;
  Strides offset_strides, mask_strides;

  int64_t taps() const { return p.kh * p.kw; }
  int64_t cells() const { return p.out_h * p.out_w; }

  // False where the sample is zero.
  MB_INLINE bool find(int64_t picture, int64_t group, int64_t tap, int64_t cell, Corners<T>& corners, T& factor) const {
    const int64_t channel = group * taps() + tap;
    const T* shift = offset + picture * offset_strides.picture + 2 * channel * offset_strides.channel;
    const T y = T(cell / p.out_w * p.stride_h - p.pad_h + tap / p.kw * p.dil_h) + shift[cell * offset_strides.cell];
    const T x = T(cell % p.out_w * p.stride_w - p.pad_w + tap % p.kw * p.dil_w) +
                shift[offset_strides.channel + cell * offset_strides.cell];
    factor = mask == nullptr ? T(1)
                             : mask[picture * mask_strides.picture + channel * mask_strides.channel +
                                    cell * mask_strides.cell];
    return find_corners(y, x, p.h, p.w, corners);
  }
};

// Rows of the four corners; those outside are `elsewhere`.
template <typename T, typename P>
MB_INLINE void corner_rows(const Corners<T>& at, P* picture, int64_t channels, P* elsewhere, P* rows[4]) {
  for (int i = 0; i < 4; ++i) rows[i] = at.cell[i] < 0 ? elsewhere : picture + at.cell[i] * channels;
}

// columns[cell - first, c] = sample of one tap, for `count` cells of a picture (H, W, C).
template <typename T>
MB_INLINE void sample_columns(
    const Sampling<T>& s, const T* picture, int64_t n, int64_t tap, int64_t first, int64_t count, const T* zeros,
    T* columns) {
  constexpr int64_t size = Vec<T>::size;
  const int64_t channels = s.p.channels, depth = channels / s.p.offset_groups;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t group = 0; group < s.p.offset_groups; ++group) {
      T* to = columns + i * channels + group * depth;
      Corners<T> at;
      T factor;
      if (!s.find(n, group, tap, first + i, at, factor)) {
        std::fill(to, to + depth, T(0));
        continue;
      }
      const T* row[4];
      corner_rows(at, picture + group * depth, channels, zeros, row);
      const T weight[4] = {
          at.weight[0] * factor, at.weight[1] * factor, at.weight[2] * factor, at.weight[3] * factor};
      int64_t c = 0;
      for (; c + size <= depth; c += size) {
        store<T>(
            to + c, weight[0] * load(row[0] + c) + weight[1] * load(row[1] + c) + weight[2] * load(row[2] + c) +
                        weight[3] * load(row[3] + c));
      }
      for (; c < depth; ++c) {
        to[c] = weight[0] * row[0][c] + weight[1] * row[1][c] + weight[2] * row[2][c] + weight[3] * row[3][c];
      }
    }
  }
}

MB_CLONES void sample(
    const Sampling<float>& s, const float* picture, int64_t n, int64_t tap, int64_t first, int64_t count,
    const float* zeros, float* columns) {
  sample_columns(s, picture, n, tap, first, count, zeros, columns);
}

MB_CLONES void sample(
    const Sampling<double>& s, const double* picture, int64_t n, int64_t tap, int64_t first, int64_t count,
    const double* zeros, double* columns) {
  sample_columns(s, picture, n, tap, first, count, zeros, columns);
}

// Weights as right-hand matrices: for each tap and group (C / groups) x (O / groups).
template <typename T>
std::vector<T> pack_forward(const DeformConv& p, const T* weight) {
  const int64_t taps = p.kh * p.kw, depth = p.channels / p.groups, outputs = p.out_channels / p.groups;
  const int64_t panels = round_up(outputs, panel<T>) / panel<T>;
  std::vector<T> packed(taps * p.groups * panels * depth * panel<T>);
  parallel_for(0, taps * p.groups * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tap = i / panels / p.groups, group = i / panels % p.groups, first = i % panels * panel<T>;
      const int64_t width = std::min(panel<T>, outputs - first);
      const T* from = weight + ((group * outputs + first) * taps + tap) * depth;
      T* to = packed.data() + i * depth * panel<T>;
      for (int64_t c = 0; c < depth; ++c) {
        for (int64_t o = 0; o < width; ++o) to[c * panel<T> + o] = from[o * taps * depth + c];
      }
    }
  });
  return packed;
}

// Channels that share their offsets and their weights.
struct Slice {
  int64_t first, count, width;  // `width`: padded to whole panels
  int64_t group, offset_group, part;  // `part` of its offset group
  int64_t packed;               // where its weights begin
};

// Cuts between the channels of offset groups and of groups, and every SLICE channels.
template <typename T>
std::vector<Slice> slices(const DeformConv& p) {
  const int64_t shared = p.channels / p.offset_groups, depth = p.channels / p.groups;
  std::vector<Slice> all;
  int64_t packed = 0;
  for (int64_t first = 0; first < p.channels;) {
    const int64_t count = std::min({SLICE, shared - first % shared, depth - first % depth});
    const int64_t part = first % shared == 0 ? 0 : all.back().part + 1;
    const int64_t width = round_up(count, panel<T>);
    all.push_back({first, count, width, first / depth, first / shared, part, packed});
    packed += p.kh * p.kw * p.out_channels / p.groups * width;
    first += count;
  }
  return all;
}

// Weights as right-hand matrices: for each slice and tap (O / groups) x (channels of the slice).
template <typename T>
std::vector<T> pack_backward(const DeformConv& p, const std::vector<Slice>& all, const T* weight) {
  const int64_t taps = p.kh * p.kw, depth = p.channels / p.groups, outputs = p.out_channels / p.groups;
  std::vector<T> packed(all.back().packed + taps * outputs * all.back().width);
  parallel_for(0, static_cast<int64_t>(all.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Slice& slice = all[i];
      for (int64_t tap = 0; tap < taps; ++tap) {
        T* to = packed.data() + slice.packed + tap * outputs * slice.width;
        for (int64_t o = 0; o < outputs; ++o) {
          const T* from = weight + ((slice.group * outputs + o) * taps + tap) * depth + slice.first % depth;
          for (int64_t c = 0; c < slice.count; ++c) {
            to[c / panel<T> * outputs * panel<T> + o * panel<T> + c % panel<T>] = from[c];
          }
        }
      }
    }
  });
  return packed;
}

// What the gradients of one tap, some cells and one slice of channels are made of and go to.
template <typename T>
struct Step {
  int64_t n, tap, first, count;
  const Slice* slice;
  const T* input;      // picture, from the first channel of the slice on
  T* d_input;          // the same of its gradient
  const T* d_columns;  // (count, width)
  T* columns;          // (count, width)
  T* d_shift;          // (3, cells) of this tap: gradients of dy, dx and the mask
};

// Samples the columns once more, and adds the gradients of the samples to those of the map, the offsets and the mask.
template <typename T>
MB_INLINE void scatter_columns(const Sampling<T>& s, const Step<T>& step) {
  constexpr int64_t size = Vec<T>::size;
  const int64_t channels = s.p.channels, cells = s.cells(), count = step.slice->count, width = step.slice->width;
  const T zeros[SLICE] = {};
  T unused[SLICE] = {};
  for (int64_t i = 0; i < step.count; ++i) {
    T* to = step.columns + i * width;
    const T* d_to = step.d_columns + i * width;
    T* d_shift = step.d_shift + step.first + i;
    Corners<T> at;
    T factor;
    if (!s.find(step.n, step.slice->offset_group, step.tap, step.first + i, at, factor)) {
      std::fill(to, to + count, T(0));
      d_shift[0] = d_shift[cells] = d_shift[2 * cells] = 0;
      continue;
    }
    const T* row[4];
    T* d_row[4];
    corner_rows(at, step.input, channels, static_cast<const T*>(zeros), row);
    corner_rows(at, step.d_input, channels, static_cast<T*>(unused), d_row);
    const T weight[4] = {
        at.weight[0] * factor, at.weight[1] * factor, at.weight[2] * factor, at.weight[3] * factor};
    vec<T> sums[4] = {};
    int64_t c = 0;
    for (; c + size <= count; c += size) {
      const vec<T> d = load(d_to + c);
      vec<T> sampled = {};
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const vec<T> value = load(row[k] + c);
        sums[k] += d * value;
        sampled += weight[k] * value;
        store<T>(d_row[k] + c, load(d_row[k] + c) + weight[k] * d);
      }
      store<T>(to + c, sampled);
    }
    T dot[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) dot[k] = total<T>(sums[k]);
    for (; c < count; ++c) {
      T sampled = 0;
      for (int k = 0; k < 4; ++k) {
        dot[k] += d_to[c] * row[k][c];
        sampled += weight[k] * row[k][c];
        d_row[k][c] += weight[k] * d_to[c];
      }
      to[c] = sampled;
    }
    d_shift[0] = factor * slope_y(at, dot);
    d_shift[cells] = factor * slope_x(at, dot);
    d_shift[2 * cells] =
        at.weight[0] * dot[0] + at.weight[1] * dot[1] + at.weight[2] * dot[2] + at.weight[3] * dot[3];
  }
}

MB_CLONES void scatter(const Sampling<float>& s, const Step<float>& step) { scatter_columns(s, step); }
MB_CLONES void scatter(const Sampling<double>& s, const Step<double>& step) { scatter_columns(s, step); }

// All gradients that one slice of channels has a part in. d_shift: (N, taps, 3, cells).
template <typename T>
void slice_backward(
    const Sampling<T>& s, const Slice& slice, const T* packed, const T* grad, const T* input, T* d_input, T* d_shift,
    T* d_weight) {
  const DeformConv& p = s.p;
  const int64_t taps = s.taps(), cells = s.cells(), map = p.h * p.w * p.channels;
  const int64_t depth = p.channels / p.groups, outputs = p.out_channels / p.groups;
  const int64_t block = block_cells(p.out_channels);
  std::vector<T> columns(block * slice.width), d_columns(block * slice.width);
  for (int64_t n = 0; n < p.n; ++n) {
    for (int64_t first = 0; first < cells; first += block) {
      const int64_t count = std::min(block, cells - first);
      const T* d_out = grad + (n * cells + first) * p.out_channels + slice.group * outputs;
      for (int64_t tap = 0; tap < taps; ++tap) {
        std::fill(d_columns.begin(), d_columns.end(), T(0));
        add_product(
            count, slice.width, outputs, {d_out, p.out_channels, 1},
            {packed + slice.packed + tap * outputs * slice.width, panel<T>, outputs * panel<T>}, d_columns.data(),
            slice.width);
        const int64_t here = n * map + slice.first;
        scatter(
            s, {n, tap, first, count, &slice, input + here, d_input + here, d_columns.data(), columns.data(),
                d_shift + (n * taps + tap) * 3 * cells});
        add_product(
            outputs, slice.count, count, {d_out, 1, p.out_channels}, {columns.data(), slice.width, panel<T>},
            d_weight + (slice.group * outputs * taps + tap) * depth + slice.first % depth, taps * depth);
      }
    }
  }
}

// d_offset and d_mask are the sums of the parts (parts, offset groups, N, taps, 3, cells).
template <typename T>
void add_parts(const Sampling<T>& s, const std::vector<T>& shifts, int64_t parts, T* d_offset, T* d_mask) {
  const DeformConv& p = s.p;
  const int64_t taps = s.taps(), cells = s.cells(), whole = p.offset_groups * p.n * taps * 3 * cells;
  parallel_for(0, p.offset_groups * p.n * taps, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / taps / p.n, n = i / taps % p.n;
      const int64_t plane = (n * p.offset_groups + group) * taps + i % taps;
      for (int64_t axis = 0; axis < (d_mask == nullptr ? 2 : 3); ++axis) {
        const T* from = shifts.data() + (i * 3 + axis) * cells;
        T* to = axis == 2 ? d_mask + plane * cells : d_offset + (2 * plane + axis) * cells;
        std::copy(from, from + cells, to);
        for (int64_t part = 1; part < parts; ++part) {
          for (int64_t cell = 0; cell < cells; ++cell) to[cell] += from[part * whole + cell];
        }
      }
    }
  });
}

}  // namespace

template <typename T>
void deform_conv2d(
    const DeformConv& p, const T* input, const T* offset, Strides offset_strides, const T* mask, Strides mask_strides,
    const T* weight, const T* bias, T* out) {
  const Sampling<T> s{p, offset, mask, offset_strides, mask_strides};
  const int64_t cells = s.cells(), depth = p.channels / p.groups, outputs = p.out_channels / p.groups;
  if (p.n * cells * p.out_channels == 0) return;
  const int64_t block = block_cells(std::max(p.channels, p.out_channels));
  const int64_t matrix = round_up(outputs, panel<T>) * depth;
  const std::vector<T> packed = pack_forward(p, weight), zeros(p.channels / p.offset_groups);
  const int64_t all = p.n * cells;
  parallel_for(0, round_up(all, TILE) / TILE, 2, [&](int64_t begin, int64_t end) {
    std::vector<T> columns(block * p.channels);
    const int64_t last = std::min(end * TILE, all);
    for (int64_t i = begin * TILE; i < last;) {
      const int64_t n = i / cells, first = i % cells, count = std::min({block, last - i, cells - first});
      T* to = out + i * p.out_channels;
      for (int64_t row = 0; row < count; ++row) {
        if (bias != nullptr) {
          std::copy(bias, bias + p.out_channels, to + row * p.out_channels);
        } else {
          std::fill(to + row * p.out_channels, to + (row + 1) * p.out_channels, T(0));
        }
      }
      for (int64_t tap = 0; tap < s.taps(); ++tap) {
        sample(s, input + n * p.h * p.w * p.channels, n, tap, first, count, zeros.data(), columns.data());
        for (int64_t group = 0; group < p.groups; ++group) {
          add_product(
              count, outputs, depth, {columns.data() + group * depth, p.channels, 1},
              {packed.data() + (tap * p.groups + group) * matrix, panel<T>, depth * panel<T>}, to + group * outputs,
              p.out_channels);
        }
      }
      i += count;
    }
  });
}

template <typename T>
void deform_conv2d_backward(
    const DeformConv& p, const T* grad, const T* input, const T* offset, Strides offset_strides, const T* mask,
    Strides mask_strides, const T* weight, T* d_input, T* d_offset, T* d_mask, T* d_weight) {
  const Sampling<T> s{p, offset, mask, offset_strides, mask_strides};
  std::fill(d_input, d_input + p.n * p.h * p.w * p.channels, T(0));
  std::fill(d_weight, d_weight + p.out_channels * s.taps() * (p.channels / p.groups), T(0));
  if (p.n * s.cells() * p.channels == 0) return;
  const std::vector<Slice> all = slices<T>(p);
  const std::vector<T> packed = pack_backward(p, all, weight);
  int64_t parts = 0;
  for (const Slice& slice : all) parts = std::max(parts, slice.part + 1);
  const int64_t size = p.n * s.taps() * 3 * s.cells();
  std::vector<T> shifts(parts * p.offset_groups * size);
  parallel_for(0, static_cast<int64_t>(all.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* d_shift = shifts.data() + (all[i].part * p.offset_groups + all[i].offset_group) * size;
      slice_backward(s, all[i], packed.data(), grad, input, d_input, d_shift, d_weight);
    }
  });
  add_parts(s, shifts, parts, d_offset, d_mask);
}

#define MB_INSTANTIATE(T)                                                                                              \
  template void deform_conv2d<T>(                                                                                      \
      const DeformConv&, const T*, const T*, Strides, const T*, Strides, const T*, const T*, T*);                      \
  template void deform_conv2d_backward<T>(                                                                             \
      const DeformConv&, const T*, const T*, const T*, Strides, const T*, Strides, const T*, T*, T*, T*, T*);

MB_INSTANTIATE(float)
MB_INSTANTIATE(double)

}  // namespace mb::cpu
