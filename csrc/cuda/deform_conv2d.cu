// Deformable convolution (https://arxiv.org/abs/1703.06211), modulated where there is a mask (1811.11168).
//
// Maps are in channels-last order, so that neighbouring threads read and write neighbouring channels. Columns of a
// limited number of output cells, of any pictures, are sampled at a time and multiplied with the weight.
#include "bilinear.cuh"
#include "tensors.cuh"

namespace mb {
namespace {

struct Shape {
  int64_t pictures, channels, height, width;  // of the input
  int64_t outputs, kernel_y, kernel_x;        // of the weight
  int64_t stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
  int64_t out_height, out_width, groups, offset_groups, taps, plane;  // plane: output cells of a picture
};

/// An offset or mask with a value for each channel and output cell, of any strides: a part of a map needs no copy.
template <class A>
struct Plane {
  const A* values;
  int64_t picture, channel, cell;  // elements from one to the next

  MB_DEVICE A at(int64_t picture_number, int64_t channel_number, int64_t place) const {
    return values[picture_number * picture + channel_number * channel + place * cell];
  }
};

/// Where the taps of the output cells sample, and how much a sample counts.
template <class A>
struct Sampler {
  Plane<A> offset, mask;
  Shape shape;

  MB_DEVICE bool corners(int64_t picture, int64_t place, int64_t tap, int64_t group, Corners<A>& found) const {
    const int64_t channel = (group * shape.taps + tap) * 2;
    int64_t row = place, tap_y = tap;
    const int64_t column = take(row, shape.out_width), tap_x = take(tap_y, shape.kernel_x);
    const A y = A(row * shape.stride_y - shape.padding_y + tap_y * shape.dilation_y);
    const A x = A(column * shape.stride_x - shape.padding_x + tap_x * shape.dilation_x);
    const A move_y = offset.at(picture, channel, place), move_x = offset.at(picture, channel + 1, place);
    return corners_in_zeros(y + move_y, x + move_x, shape.height, shape.width, found);
  }
  MB_DEVICE A factor(int64_t picture, int64_t place, int64_t tap, int64_t group) const {
    return mask.values ? mask.at(picture, group * shape.taps + tap, place) : A(1);
  }
};

/// One channel of one tap of one cell, for ``cells`` cells from ``first`` on.
template <class T, class A>
struct SampleColumns {
  Sampler<A> sampler;
  const T* input;  // (N, H, W, C)
  int64_t first, cells;
  T* columns;  // (groups, cells, taps, C / groups)

  MB_DEVICE void operator()(int64_t i) const {
    const Shape& s = sampler.shape;
    const int64_t channel = take(i, s.channels), tap = take(i, s.taps), cell = i;
    int64_t picture = first + cell;
    const int64_t place = take(picture, s.plane);
    const int64_t offset_group = channel / (s.channels / s.offset_groups), per_group = s.channels / s.groups;
    Corners<A> corners;
    A value = 0;
    if (sampler.corners(picture, place, tap, offset_group, corners)) {
      const T* map = input + picture * s.height * s.width * s.channels + channel;
      value = corners.sample(map, s.channels, corners.weight) * sampler.factor(picture, place, tap, offset_group);
    }
    const int64_t group = channel / per_group;
    columns[((group * cells + cell) * s.taps + tap) * per_group + channel % per_group] = T(value);
  }
};

/// One offset group of one tap of one cell, its channels divided among the lanes.
template <class T, class A>
struct SpreadGradient {
  Sampler<A> sampler;
  const T* input;
  const T* grad_columns;
  int64_t first, cells;
  A* grad_input;   // (N, H, W, C)
  A* grad_offset;  // (N, 2 * offset_groups * taps, Ho, Wo)
  A* grad_mask;    // (N, offset_groups * taps, Ho, Wo), null without a mask

  MB_DEVICE void operator()(int64_t i, const Lanes& lanes) const {
    const Shape& s = sampler.shape;
    const int64_t offset_group = take(i, s.offset_groups), tap = take(i, s.taps), cell = i;
    int64_t picture = first + cell;
    const int64_t place = take(picture, s.plane);
    const int64_t per_group = s.channels / s.groups, members = s.channels / s.offset_groups;
    const A factor = sampler.factor(picture, place, tap, offset_group);
    const int64_t origin = picture * s.height * s.width * s.channels;
    Corners<A> corners;
    const bool inside = sampler.corners(picture, place, tap, offset_group, corners);
    A by_y = 0, by_x = 0, by_mask = 0;
    for (int64_t member = lanes.index; inside && member < members; member += lanes.count) {
      const int64_t channel = offset_group * members + member, group = channel / per_group;
      const A grad = A(grad_columns[((group * cells + cell) * s.taps + tap) * per_group + channel % per_group]);
      const T* map = input + origin + channel;
      by_y += grad * corners.sample(map, s.channels, corners.by_y);
      by_x += grad * corners.sample(map, s.channels, corners.by_x);
      by_mask += grad * corners.sample(map, s.channels, corners.weight);
      for (int k = 0; k < 4; ++k) {
        if (!corners.inside[k]) continue;
        add(grad_input + origin + corners.cell[k] * s.channels + channel, corners.weight[k] * factor * grad);
      }
    }
    by_y = lanes.sum(by_y);
    by_x = lanes.sum(by_x);
    by_mask = lanes.sum(by_mask);
    if (lanes.index > 0) return;
    const int64_t channel = (picture * s.offset_groups + offset_group) * s.taps + tap;
    grad_offset[2 * channel * s.plane + place] = by_y * factor;
    grad_offset[(2 * channel + 1) * s.plane + place] = by_x * factor;
    if (grad_mask) grad_mask[channel * s.plane + place] = by_mask;
  }
};

/// One output channel of one cell, out of the product of its group.
template <class T, class A>
struct StoreOutput {
  const T* product;  // (groups, cells, outputs / groups)
  const T* bias;     // null: none
  int64_t first, cells, outputs, groups;
  T* out;  // (N * Ho * Wo, outputs)

  MB_DEVICE void operator()(int64_t i) const {
    const int64_t index = i, output = take(i, outputs), per_group = outputs / groups, group = output / per_group;
    const A value = A(product[(group * cells + i) * per_group + output % per_group]);
    out[first * outputs + index] = T(bias ? value + A(bias[output]) : value);
  }
};

template <class T, class A>
struct Accumulate {
  const T* part;
  A* sum;

  MB_DEVICE void operator()(int64_t i) const {
    sum[i] += A(part[i]);
  }
};

Shape shape_of(const Tensor& input, const Tensor& offset, const std::optional<Tensor>& mask, const Tensor& weight,
               const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
               const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(input.dim() == 4 && weight.dim() == 4 && offset.dim() == 4 && (!mask || mask->dim() == 4),
                  "input, weight, offset and mask must have four axes");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
                  "stride, padding and dilation must be two numbers each");
  Shape s{};
  s.pictures = input.size(0), s.channels = input.size(1), s.height = input.size(2), s.width = input.size(3);
  s.outputs = weight.size(0), s.kernel_y = weight.size(2), s.kernel_x = weight.size(3);
  s.stride_y = stride[0], s.padding_y = padding[0], s.dilation_y = dilation[0];
  s.stride_x = stride[1], s.padding_x = padding[1], s.dilation_x = dilation[1];
  s.out_height = offset.size(2), s.out_width = offset.size(3);
  s.taps = s.kernel_y * s.kernel_x, s.plane = s.out_height * s.out_width;
  STD_TORCH_CHECK(weight.size(1) > 0 && s.taps > 0 && s.channels % weight.size(1) == 0,
                  "the weight does not fit the channels of the input");
  s.groups = s.channels / weight.size(1);
  STD_TORCH_CHECK(s.groups > 0 && s.outputs % s.groups == 0, "the groups must divide the output channels");
  s.offset_groups = offset.size(1) / (2 * s.taps);
  STD_TORCH_CHECK(s.offset_groups > 0 && offset.size(1) == 2 * s.taps * s.offset_groups &&
                      s.channels % s.offset_groups == 0 && offset.size(0) == s.pictures,
                  "the offset does not fit the input and the weight");
  STD_TORCH_CHECK(!mask || (mask->size(0) == s.pictures && mask->size(1) == s.taps * s.offset_groups &&
                            mask->size(2) == s.out_height && mask->size(3) == s.out_width),
                  "the mask does not fit the offset");
  const int64_t rows = s.height + 2 * s.padding_y - s.dilation_y * (s.kernel_y - 1) - 1;
  const int64_t columns = s.width + 2 * s.padding_x - s.dilation_x * (s.kernel_x - 1) - 1;
  STD_TORCH_CHECK(s.stride_y > 0 && s.stride_x > 0 && rows >= 0 && columns >= 0 &&
                      s.out_height == rows / s.stride_y + 1 && s.out_width == columns / s.stride_x + 1,
                  "the offset is not of the size of the output");
  return s;
}

/// As ``type``, with rows that follow each other; a copy only where it must be.
Tensor rows_in_line(const Tensor& map, ScalarType type) {
  const Tensor values = cast(map, type);
  const bool one_line = values.size(2) == 1 || values.size(3) == 1;
  return one_line || values.stride(2) == values.stride(3) * values.size(3) ? values : dense(values);
}

template <class A>
Plane<A> plane_of(const Tensor& map) {
  return {read<A>(map), map.stride(0), map.stride(1), map.size(3) == 1 ? map.stride(2) : map.stride(3)};
}

template <class A>
Sampler<A> sampler_of(const Tensor& offset, const std::optional<Tensor>& mask, const Shape& shape) {
  return {plane_of<A>(offset), mask ? plane_of<A>(*mask) : Plane<A>{}, shape};
}

/// Output cells whose columns are held at a time.
int64_t cells_at_a_time(const Shape& shape, const Tensor& input) {
  const int64_t bytes = shape.channels * shape.taps * int64_t(input.element_size());
  return std::min(std::max(BUFFER_BYTES / bytes, int64_t(1)), shape.pictures * shape.plane);
}

/// (O, C / groups, Kh, Kw) -> (groups, O / groups, taps * C / groups), in the order of the columns.
Tensor filters_of(const Tensor& weight, const Shape& s) {
  return torch::stable::view(channels_last(weight), {s.groups, s.outputs / s.groups, s.taps * s.channels / s.groups});
}

Tensor swap(const Tensor& batch) {
  return torch::stable::transpose(batch, 1, 2);
}

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const std::optional<Tensor>& mask, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  const Shape s = shape_of(input, offset, mask, weight, stride, padding, dilation);
  const ScalarType type = input.scalar_type();
  const Tensor map = channels_last(input), moves = rows_in_line(offset, precise(input));
  const Tensor filters = swap(filters_of(cast(weight, type), s));
  std::optional<Tensor> factors, shift;
  if (mask) factors = rows_in_line(*mask, precise(input));
  if (bias) shift = dense(*bias, type);
  const Tensor out = empty(input, {s.pictures, s.out_height, s.out_width, s.outputs}, type);
  const int64_t all = s.pictures * s.plane, step = cells_at_a_time(s, input);
  by_type(input, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    const Sampler<A> sampler = sampler_of<A>(moves, factors, s);
    for (int64_t first = 0; first < all; first += step) {
      const int64_t cells = std::min(step, all - first);
      const Tensor columns = empty(input, {s.groups, cells, s.taps * s.channels / s.groups}, type);
      run(input, columns.numel(), SampleColumns<T, A>{sampler, read<T>(map), first, cells, write<T>(columns)});
      const Tensor product = dense(torch::stable::matmul(columns, filters));
      run(input, product.numel(), StoreOutput<T, A>{read<T>(product), shift ? read<T>(*shift) : nullptr, first, cells,
                                                    s.outputs, s.groups, write<T>(out)});
    }
  });
  return channels_first(out);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad, const Tensor& input, const Tensor& offset, const std::optional<Tensor>& mask,
    const Tensor& weight, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation) {
  const Shape s = shape_of(input, offset, mask, weight, stride, padding, dilation);
  const ScalarType type = input.scalar_type(), sums = precise(input);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.numel() == s.pictures * s.plane * s.outputs, "grad must be (N, O, Ho, Wo)");
  const int64_t all = s.pictures * s.plane, step = cells_at_a_time(s, input), depth = s.taps * s.channels / s.groups;
  const Tensor map = channels_last(input), moves = rows_in_line(offset, sums);
  const Tensor filters = filters_of(cast(weight, type), s);
  const Tensor rows = torch::stable::view(channels_last(cast(grad, type)), {all, s.groups, s.outputs / s.groups});
  Tensor upstream = torch::stable::transpose(rows, 0, 1);
  std::optional<Tensor> factors;
  if (mask) factors = rows_in_line(*mask, sums);
  const Tensor grad_input = zeros(input, {s.pictures, s.height, s.width, s.channels}, sums);
  const Tensor grad_offset = empty(input, {s.pictures, offset.size(1), s.out_height, s.out_width}, sums);
  const std::vector<int64_t> mask_size{s.pictures, offset.size(1) / 2, s.out_height, s.out_width};
  const Tensor grad_mask = empty(input, mask ? mask_size : std::vector<int64_t>{0}, sums);
  const Tensor grad_weight = zeros(input, {s.outputs, s.kernel_y, s.kernel_x, s.channels / s.groups}, sums);
  by_type(input, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    const Sampler<A> sampler = sampler_of<A>(moves, factors, s);
    for (int64_t first = 0; first < all; first += step) {
      const int64_t cells = std::min(step, all - first);
      const Tensor part = torch::stable::narrow(upstream, 1, first, cells);
      Tensor columns = empty(input, {s.groups, cells, depth}, type);
      run(input, columns.numel(), SampleColumns<T, A>{sampler, read<T>(map), first, cells, write<T>(columns)});
      const Tensor by_weight = dense(torch::stable::matmul(swap(part), columns));
      run(input, by_weight.numel(), Accumulate<T, A>{read<T>(by_weight), write<A>(grad_weight)});
      columns = dense(torch::stable::matmul(part, filters));
      run_lanes(input, cells * s.taps * s.offset_groups,
                SpreadGradient<T, A>{sampler, read<T>(map), read<T>(columns), first, cells, write<A>(grad_input),
                                     write<A>(grad_offset), mask ? write<A>(grad_mask) : nullptr});
    }
  });
  return {channels_first(cast(grad_input, type)), cast(grad_offset, offset.scalar_type()),
          cast(grad_mask, (mask ? *mask : input).scalar_type()),
          channels_first(cast(grad_weight, weight.scalar_type()))};
}

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_benchmark, MB_DISPATCH_KEY, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward));
}

}  // namespace
}  // namespace mb
