// Deformable position-sensitive ROI pooling (https://arxiv.org/abs/1703.06211).
#include "bilinear.cuh"
#include "tensors.cuh"

namespace mb {
namespace {

struct Shape {
  int64_t pictures, channels, height, width;  // of the map
  int64_t outputs, groups, bins, parts, samples, classes;
};

/// The samples of one cell of one region, in one output channel.
template <class A>
struct Bin {
  int64_t map;    // first element of the picture's map that this cell reads
  int64_t shift;  // place of the cell's x shift; the y shift lies parts * parts further on
  A wide, high, left, top, step_x, step_y;
  bool valid;

  MB_DEVICE Bin(const A* rois, const A* trans, const Shape& s, A scale, A reach, int64_t i) {
    const int64_t bin_x = take(i, s.bins), bin_y = take(i, s.bins), output = take(i, s.outputs);
    const A* roi = rois + i * 5;
    const int64_t picture = int64_t(roi[0]);
    left = product(std::round(roi[1]), scale) - A(0.5);
    top = product(std::round(roi[2]), scale) - A(0.5);
    wide = std::fmax(product(std::round(roi[3]) + 1, scale) - A(0.5) - left, A(0.1));
    high = std::fmax(product(std::round(roi[4]) + 1, scale) - A(0.5) - top, A(0.1));
    valid = roi[0] >= 0 && picture < s.pictures;
    const int64_t part_x = int64_t(std::floor(product(A(bin_x) / A(s.bins), A(s.parts))));
    const int64_t part_y = int64_t(std::floor(product(A(bin_y) / A(s.bins), A(s.parts))));
    const int64_t kind = output / (s.outputs / s.classes);
    shift = ((i * s.classes + kind) * 2 * s.parts + part_y) * s.parts + part_x;
    const A move_x = trans ? trans[shift] * reach : A(0);
    const A move_y = trans ? trans[shift + s.parts * s.parts] * reach : A(0);
    left = product(A(bin_x), wide / A(s.bins)) + left + product(move_x, wide);
    top = product(A(bin_y), high / A(s.bins)) + top + product(move_y, high);
    step_x = wide / A(s.bins) / A(s.samples);
    step_y = high / A(s.bins) / A(s.samples);
    const int64_t group_x = bin_x * s.groups / s.bins, group_y = bin_y * s.groups / s.bins;
    const int64_t channel = (output * s.groups + group_y) * s.groups + group_x;
    map = valid ? (picture * s.channels + channel) * s.height * s.width : 0;
  }

  /// Whether a sample counts: it may lie up to half a cell outside of the map.
  MB_DEVICE bool counts(const Shape& s, int64_t row, int64_t column) const {
    const A y = this->y(row), x = this->x(column), last_y = A(s.height) - A(0.5), last_x = A(s.width) - A(0.5);
    return valid && y >= A(-0.5) && x >= A(-0.5) && y <= last_y && x <= last_x;
  }
  MB_DEVICE bool corners(const Shape& s, int64_t row, int64_t column, Corners<A>& found) const {
    return counts(s, row, column) && corners_at_border(y(row), x(column), s.height, s.width, found);
  }
  MB_DEVICE A y(int64_t row) const {
    return top + product(A(row), step_y);
  }
  MB_DEVICE A x(int64_t column) const {
    return left + product(A(column), step_x);
  }
};

/// NaN for a region of no picture of the batch: to look before would mean to wait.
template <class T, class A>
struct Forward {
  const T* input;
  const A* rois;
  const A* trans;  // null: no shifts
  Shape shape;
  A scale, reach;
  T* out;

  MB_DEVICE void operator()(int64_t i) const {
    const Bin<A> bin(rois, trans, shape, scale, reach, i);
    A sum = bin.valid ? A(0) : A(NAN), samples = 0;
    for (int64_t row = 0; row < shape.samples; ++row) {
      for (int64_t column = 0; column < shape.samples; ++column) {
        Corners<A> corners;
        if (!bin.corners(shape, row, column, corners)) continue;
        sum += corners.sample(input + bin.map, 1, corners.weight);
        samples += 1;
      }
    }
    out[i] = T(samples > 0 ? sum / samples : sum);
  }
};

template <class T, class A>
struct Backward {
  const T* grad_out;
  const T* input;
  const A* rois;
  const A* trans;
  Shape shape;
  A scale, reach;
  A* grad_input;
  A* grad_trans;

  MB_DEVICE void operator()(int64_t i) const {
    const Bin<A> bin(rois, trans, shape, scale, reach, i);
    A samples = 0;
    for (int64_t k = 0; k < shape.samples * shape.samples; ++k) {
      if (bin.counts(shape, k / shape.samples, k % shape.samples)) samples += 1;
    }
    if (samples == 0) return;
    const A share = A(grad_out[i]) / samples;
    A by_x = 0, by_y = 0;
    for (int64_t row = 0; row < shape.samples; ++row) {
      for (int64_t column = 0; column < shape.samples; ++column) {
        Corners<A> corners;
        if (!bin.corners(shape, row, column, corners)) continue;
        for (int k = 0; k < 4; ++k) add(grad_input + bin.map + corners.cell[k], corners.weight[k] * share);
        if (trans == nullptr) continue;
        by_x += corners.sample(input + bin.map, 1, corners.by_x);
        by_y += corners.sample(input + bin.map, 1, corners.by_y);
      }
    }
    if (trans == nullptr) return;
    add(grad_trans + bin.shift, by_x * share * reach * bin.wide);
    add(grad_trans + bin.shift + shape.parts * shape.parts, by_y * share * reach * bin.high);
  }
};

Shape shape_of(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& trans, int64_t outputs,
               int64_t groups, int64_t bins, int64_t parts, int64_t samples) {
  STD_TORCH_CHECK(input.dim() == 4 && input.size(1) == outputs * groups * groups,
                  "the map must be (N, out_channels * group_size ** 2, H, W)");
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "rois must be (R, 5)");
  int64_t classes = 1;
  if (trans) {
    STD_TORCH_CHECK(trans->dim() == 4 && trans->size(0) == rois.size(0) && trans->size(1) % 2 == 0 &&
                        trans->size(2) == parts && trans->size(3) == parts,
                    "trans must be (R, 2 * classes, part_size, part_size)");
    classes = trans->size(1) / 2;
    STD_TORCH_CHECK(classes > 0 && outputs % classes == 0, "the classes of trans must divide out_channels");
  }
  return {input.size(0), input.size(1), input.size(2), input.size(3), outputs, groups, bins, parts, samples, classes};
}

Tensor deform_psroi(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& trans, double scale,
                    int64_t outputs, int64_t groups, int64_t bins, int64_t parts, int64_t samples, double reach) {
  const Shape shape = shape_of(input, rois, trans, outputs, groups, bins, parts, samples);
  const Tensor map = dense(input), regions = dense(rois, precise(input));
  std::optional<Tensor> shifts;
  if (trans) shifts = dense(*trans, precise(input));
  const Tensor out = empty(input, {rois.size(0), outputs, bins, bins}, input.scalar_type());
  by_type(input, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    run(input, out.numel(), Forward<T, A>{read<T>(map), read<A>(regions), shifts ? read<A>(*shifts) : nullptr, shape,
                                          A(scale), A(reach), write<T>(out)});
  });
  return out;
}

std::tuple<Tensor, Tensor> deform_psroi_backward(const Tensor& grad, const Tensor& input, const Tensor& rois,
                                                 const std::optional<Tensor>& trans, double scale, int64_t outputs,
                                                 int64_t groups, int64_t bins, int64_t parts, int64_t samples,
                                                 double reach) {
  const Shape shape = shape_of(input, rois, trans, outputs, groups, bins, parts, samples);
  STD_TORCH_CHECK(grad.numel() == rois.size(0) * outputs * bins * bins, "grad must be (R, out_channels, bins, bins)");
  const Tensor map = dense(input), regions = dense(rois, precise(input)), upstream = dense(grad, input.scalar_type());
  const Tensor grad_input = zeros(input, {shape.pictures, shape.channels, shape.height, shape.width}, precise(input));
  std::optional<Tensor> shifts;
  if (trans) shifts = dense(*trans, precise(input));
  const int64_t shift_count = trans ? trans->numel() : 0;
  const Tensor grad_trans = zeros(input, {shift_count}, precise(input));
  by_type(input, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    run(input, grad.numel(),
        Backward<T, A>{read<T>(upstream), read<T>(map), read<A>(regions), shifts ? read<A>(*shifts) : nullptr, shape,
                       A(scale), A(reach), write<A>(grad_input), write<A>(grad_trans)});
  });
  Tensor by_trans = cast(grad_trans, (trans ? *trans : input).scalar_type());
  if (trans) by_trans = torch::stable::view(by_trans, trans->sizes());
  return {cast(grad_input, input.scalar_type()), by_trans};
}

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_benchmark, MB_DISPATCH_KEY, m) {
  m.impl("deform_psroi", TORCH_BOX(&deform_psroi));
  m.impl("deform_psroi_backward", TORCH_BOX(&deform_psroi_backward));
}

}  // namespace
}  // namespace mb
