// ROIAlign (https://arxiv.org/abs/1703.06870): the average of bilinear samples in each cell of each region.
//
// Maps and results are in channels-last order: the threads of a warp share their samples and differ in the channel.
#include "bilinear.cuh"
#include "tensors.cuh"

namespace mb {
namespace {

struct Shape {
  int64_t pictures, channels, height, width, bins_y, bins_x;
};

template <class A>
struct Rule {
  A scale;
  int64_t ratio;
  bool aligned;
};

/// Where the samples of one cell of one region lie. Products are rounded one by one, as the first version did on a CPU:
/// a last bit more can mean one sample more.
template <class A>
struct Bin {
  int64_t picture, rows, columns;
  A top, left, high, wide;
  bool valid;

  MB_DEVICE Bin(const A* roi, const Shape& shape, const Rule<A>& rule, int64_t bin_y, int64_t bin_x) {
    const A half = rule.aligned ? A(0.5) : A(0);
    left = product(roi[1], rule.scale) - half;
    top = product(roi[2], rule.scale) - half;
    wide = product(roi[3], rule.scale) - half - left;
    high = product(roi[4], rule.scale) - half - top;
    picture = int64_t(roi[0]);
    valid = roi[0] >= 0 && picture < shape.pictures && std::isfinite(left + top + wide + high);
    if (!rule.aligned) {
      wide = wide > 1 ? wide : A(1);
      high = high > 1 ? high : A(1);
    }
    wide /= A(shape.bins_x);
    high /= A(shape.bins_y);
    rows = !valid ? 0 : rule.ratio > 0 ? rule.ratio : int64_t(std::ceil(high));
    columns = !valid ? 0 : rule.ratio > 0 ? rule.ratio : int64_t(std::ceil(wide));
    left += product(A(bin_x), wide);
    top += product(A(bin_y), high);
  }

  MB_DEVICE A y(int64_t row) const {
    return top + product(A(row) + A(0.5), high) / A(rows);
  }
  MB_DEVICE A x(int64_t column) const {
    return left + product(A(column) + A(0.5), wide) / A(columns);
  }
  MB_DEVICE A count() const {
    return rows > 0 && columns > 0 ? A(rows) * A(columns) : A(1);
  }
};

/// NaN for a region of no picture of the batch, or without finite corners: to look before would mean to wait.
template <class T, class A>
struct Forward {
  const T* input;  // (N, H, W, C)
  const A* rois;
  Shape shape;
  Rule<A> rule;
  T* out;  // (R, bins_y, bins_x, C)

  MB_DEVICE void operator()(int64_t i) const {
    const int64_t index = i, channel = take(i, shape.channels);
    const int64_t bin_x = take(i, shape.bins_x), bin_y = take(i, shape.bins_y);
    const Bin<A> bin(rois + i * 5, shape, rule, bin_y, bin_x);
    A sum = bin.valid ? A(0) : A(NAN);
    const T* map = input + (bin.valid ? bin.picture * shape.height * shape.width * shape.channels + channel : 0);
    for (int64_t row = 0; row < bin.rows; ++row) {
      for (int64_t column = 0; column < bin.columns; ++column) {
        Corners<A> corners;
        if (!corners_at_border(bin.y(row), bin.x(column), shape.height, shape.width, corners)) continue;
        sum += corners.sample(map, shape.channels, corners.weight);
      }
    }
    out[index] = T(sum / bin.count());
  }
};

template <class T, class A>
struct Backward {
  const T* grad_out;
  const A* rois;
  Shape shape;
  Rule<A> rule;
  A* grad_input;  // (N, H, W, C)

  MB_DEVICE void operator()(int64_t i) const {
    const int64_t index = i, channel = take(i, shape.channels);
    const int64_t bin_x = take(i, shape.bins_x), bin_y = take(i, shape.bins_y);
    const Bin<A> bin(rois + i * 5, shape, rule, bin_y, bin_x);
    if (!bin.valid) return;
    const A share = A(grad_out[index]) / bin.count();
    A* map = grad_input + bin.picture * shape.height * shape.width * shape.channels + channel;
    for (int64_t row = 0; row < bin.rows; ++row) {
      for (int64_t column = 0; column < bin.columns; ++column) {
        Corners<A> corners;
        if (!corners_at_border(bin.y(row), bin.x(column), shape.height, shape.width, corners)) continue;
        for (int k = 0; k < 4; ++k) add(map + corners.cell[k] * shape.channels, corners.weight[k] * share);
      }
    }
  }
};

void check(const Tensor& map, const Tensor& rois, int64_t bins_y, int64_t bins_x) {
  STD_TORCH_CHECK(map.dim() == 4, "the map must be (N, C, H, W)");
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "rois must be (R, 5)");
  STD_TORCH_CHECK(bins_y > 0 && bins_x > 0, "a region needs at least one cell");
}

Tensor roi_align(const Tensor& input, const Tensor& rois, double scale, int64_t bins_y, int64_t bins_x, int64_t ratio,
                 bool aligned) {
  check(input, rois, bins_y, bins_x);
  const Shape shape{input.size(0), input.size(1), input.size(2), input.size(3), bins_y, bins_x};
  const Tensor map = channels_last(input), regions = dense(rois, precise(input));
  const Tensor out = empty(input, {rois.size(0), bins_y, bins_x, shape.channels}, input.scalar_type());
  by_type(input, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    const Rule<A> rule{A(scale), ratio, aligned};
    run(input, out.numel(), Forward<T, A>{read<T>(map), read<A>(regions), shape, rule, write<T>(out)});
  });
  return channels_first(out);
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& rois, double scale, int64_t bins_y, int64_t bins_x,
                          int64_t ratio, bool aligned, int64_t n, int64_t c, int64_t h, int64_t w) {
  check(grad, rois, bins_y, bins_x);
  const Shape shape{n, c, h, w, bins_y, bins_x};
  const Tensor upstream = channels_last(grad), regions = dense(rois, precise(grad));
  const Tensor grad_input = zeros(grad, {n, h, w, c}, precise(grad));
  by_type(grad, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    const Rule<A> rule{A(scale), ratio, aligned};
    run(grad, grad.numel(), Backward<T, A>{read<T>(upstream), read<A>(regions), shape, rule, write<A>(grad_input)});
  });
  return channels_first(cast(grad_input, grad.scalar_type()));
}

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_benchmark, MB_DISPATCH_KEY, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward));
}

}  // namespace
}  // namespace mb
