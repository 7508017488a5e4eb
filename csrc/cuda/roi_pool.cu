// ROIPool: the largest value in each cell of each region, with corners rounded to whole cells of the map.
//
// Maps and results are in channels-last order: the threads of a warp share their cells and differ in the channel.
#include "tensors.cuh"

namespace mb {
namespace {

struct Shape {
  int64_t pictures, channels, height, width, bins_y, bins_x;
};

struct Range {
  int64_t first, end;
};

/// Cells of the map in one bin along an axis of ``size``; empty where the bin lies outside.
template <class A>
MB_DEVICE Range cells(A low, A high, A scale, int64_t bin, int64_t bins, int64_t size) {
  const A start = std::round(product(low, scale)), extent = std::round(product(high, scale)) - start + 1;
  const A step = (extent > 1 ? extent : A(1)) / A(bins);
  const A first = start + std::floor(product(A(bin), step)), end = start + std::ceil(product(A(bin + 1), step));
  const A limit = A(size);
  return {int64_t(std::fmin(std::fmax(first, A(0)), limit)), int64_t(std::fmin(std::fmax(end, A(0)), limit))};
}

/// NaN for a region of no picture of the batch: to look before would mean to wait. An empty bin is 0, its argmax -1.
template <class T, class A>
struct Forward {
  const T* input;  // (N, H, W, C)
  const A* rois;
  Shape shape;
  A scale;
  T* out;           // (R, bins_y, bins_x, C)
  int32_t* argmax;  // y * width + x

  MB_DEVICE void operator()(int64_t i) const {
    const int64_t index = i, channel = take(i, shape.channels);
    const int64_t bin_x = take(i, shape.bins_x), bin_y = take(i, shape.bins_y);
    const A* roi = rois + i * 5;
    const int64_t picture = int64_t(roi[0]);
    A best = 0;
    int64_t where = -1;
    if (!(roi[0] >= 0 && picture < shape.pictures)) {
      best = A(NAN);
    } else {
      const T* map = input + picture * shape.height * shape.width * shape.channels + channel;
      const Range rows = cells(roi[2], roi[4], scale, bin_y, shape.bins_y, shape.height);
      const Range columns = cells(roi[1], roi[3], scale, bin_x, shape.bins_x, shape.width);
      for (int64_t y = rows.first; y < rows.end; ++y) {
        for (int64_t x = columns.first; x < columns.end; ++x) {
          const A value = A(map[(y * shape.width + x) * shape.channels]);
          if (where < 0 || value > best) {
            best = value;
            where = y * shape.width + x;
          }
        }
      }
    }
    out[index] = T(best);
    argmax[index] = int32_t(where);
  }
};

template <class T, class A>
struct Backward {
  const T* grad_out;
  const A* rois;
  const int32_t* argmax;
  Shape shape;
  A* grad_input;  // (N, H, W, C)

  MB_DEVICE void operator()(int64_t i) const {
    if (argmax[i] < 0) return;
    const int64_t index = i, channel = take(i, shape.channels);
    take(i, shape.bins_y * shape.bins_x);
    const int64_t cell = int64_t(rois[i * 5]) * shape.height * shape.width + argmax[index];
    add(grad_input + cell * shape.channels + channel, A(grad_out[index]));
  }
};

std::tuple<Tensor, Tensor> roi_pool(const Tensor& input, const Tensor& rois, double scale, int64_t bins_y,
                                    int64_t bins_x) {
  STD_TORCH_CHECK(input.dim() == 4, "the map must be (N, C, H, W)");
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "rois must be (R, 5)");
  STD_TORCH_CHECK(bins_y > 0 && bins_x > 0, "a region needs at least one cell");
  const Shape shape{input.size(0), input.size(1), input.size(2), input.size(3), bins_y, bins_x};
  STD_TORCH_CHECK(shape.height * shape.width <= INT32_MAX, "the map has more cells than an argmax can name");
  const Tensor map = channels_last(input), regions = dense(rois, precise(input));
  const std::vector<int64_t> size{rois.size(0), bins_y, bins_x, shape.channels};
  const Tensor out = empty(input, size, input.scalar_type()), argmax = empty(input, size, ScalarType::Int);
  by_type(input, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    run(input, out.numel(),
        Forward<T, A>{read<T>(map), read<A>(regions), shape, A(scale), write<T>(out), write<int32_t>(argmax)});
  });
  return {channels_first(out), channels_first(argmax)};
}

Tensor roi_pool_backward(const Tensor& grad, const Tensor& argmax, const Tensor& rois, int64_t n, int64_t c, int64_t h,
                         int64_t w) {
  STD_TORCH_CHECK(grad.dim() == 4 && argmax.dim() == 4 && argmax.numel() == grad.numel(),
                  "grad and argmax must be of the same (R, C, bins, bins)");
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5 && rois.size(0) == grad.size(0), "rois must be (R, 5)");
  const Shape shape{n, c, h, w, grad.size(2), grad.size(3)};
  const Tensor upstream = channels_last(grad), cells = channels_last(argmax), regions = dense(rois, precise(grad));
  const Tensor grad_input = zeros(grad, {n, h, w, c}, precise(grad));
  by_type(grad, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    run(grad, grad.numel(),
        Backward<T, A>{read<T>(upstream), read<A>(regions), read<int32_t>(cells), shape, write<A>(grad_input)});
  });
  return channels_first(cast(grad_input, grad.scalar_type()));
}

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_benchmark, MB_DISPATCH_KEY, m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool));
  m.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward));
}

}  // namespace
}  // namespace mb
