// The CPU operators: checks what would read or write outside of memory, brings tensors into the type and memory order
// that the kernels take, and half precision to float32 and back.

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "deform_conv.h"
#include "deform_psroi.h"
#include "focal.h"
#include "ms_deform_attn.h"
#include "nms.h"
#include "roi.h"
#include "tensors.h"

namespace mb::cpu {
namespace {

// ---- non-maximum suppression ----

void check_boxes(const Tensor& boxes, const Tensor& scores) {
  STD_TORCH_CHECK(
      boxes.dim() == 2 && boxes.size(1) == 4 && scores.dim() == 1 && scores.size(0) == boxes.size(0),
      "expected boxes (N, 4) and scores (N,)");
}

Tensor run_nms(
    const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels, double threshold, bool plus_one) {
  check_boxes(boxes, scores);
  const ScalarType type = work_type(boxes);
  const Tensor boxes_ = dense(boxes, type), scores_ = dense(scores, type);
  std::vector<int64_t> kept;
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    kept = nms<T>(
        boxes.size(0), read<T>(boxes_), read<T>(scores_), read<int64_t>(labels), static_cast<T>(threshold), plus_one);
  });
  return from_vector(boxes, kept, ScalarType::Long);
}

Tensor nms_op(const Tensor& boxes, const Tensor& scores, double threshold, bool plus_one) {
  return run_nms(boxes, scores, std::nullopt, threshold, plus_one);
}

Tensor batched_nms_op(
    const Tensor& boxes, const Tensor& scores, const Tensor& labels, double threshold, bool plus_one) {
  STD_TORCH_CHECK(labels.dim() == 1 && labels.size(0) == boxes.size(0), "expected labels (N,)");
  return run_nms(boxes, scores, dense(labels, ScalarType::Long), threshold, plus_one);
}

std::tuple<Tensor, Tensor> soft_nms_op(
    const Tensor& boxes, const Tensor& scores, double score_threshold, double sigma) {
  check_boxes(boxes, scores);
  const ScalarType type = work_type(boxes);
  const Tensor boxes_ = dense(boxes, type), scores_ = dense(scores, type);
  std::vector<int64_t> kept;
  Tensor kept_scores;
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> values;
    soft_nms<T>(
        boxes.size(0), read<T>(boxes_), read<T>(scores_), static_cast<T>(score_threshold), static_cast<T>(sigma), kept,
        values);
    kept_scores = from_vector(boxes, values, type);
  });
  return {from_vector(boxes, kept, ScalarType::Long), cast(kept_scores, scores.scalar_type())};
}

// ---- pooling of regions ----

// The regions in the type of the kernel; each must name a picture of the batch.
Tensor check_rois(const Tensor& rois, int64_t pictures, ScalarType type) {
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "expected rois (R, 5)");
  const Tensor rois_ = dense(rois, type);
  by_type(type, [&](auto zero) {
    const auto* data = read<decltype(zero)>(rois_);
    for (int64_t i = 0; i < rois.size(0); ++i) {
      const auto picture = data[5 * i];
      STD_TORCH_CHECK(
          picture >= 0 && picture < pictures, "rois name picture ", picture, " of a batch of ", pictures);
    }
  });
  return rois_;
}

Regions regions(int64_t n, int64_t c, int64_t h, int64_t w, const Tensor& rois, int64_t ph, int64_t pw, double scale) {
  STD_TORCH_CHECK(ph > 0 && pw > 0, "the output size must be positive, got ", ph, " x ", pw);
  return {n, c, h, w, rois.size(0), ph, pw, scale};
}

Tensor roi_align_op(
    const Tensor& input, const Tensor& rois, double scale, int64_t ph, int64_t pw, int64_t ratio, bool aligned) {
  STD_TORCH_CHECK(input.dim() == 4, "expected input (N, C, H, W)");
  const ScalarType type = work_type(input);
  const Tensor rois_ = check_rois(rois, input.size(0), type), full = cast(input, type);
  const bool planar = full.is_contiguous();
  const Tensor map = planar ? full : channels_last(full, type);
  const Regions p = regions(input.size(0), input.size(1), input.size(2), input.size(3), rois, ph, pw, scale);
  const Tensor out = empty(map, {p.count, ph, pw, p.channels}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    roi_align<T>(p, ratio, aligned, read<T>(map), planar, read<T>(rois_), write<T>(out));
  });
  return map_of(out, input.scalar_type());
}

Tensor roi_align_backward_op(
    const Tensor& grad, const Tensor& rois, double scale, int64_t ph, int64_t pw, int64_t ratio, bool aligned,
    int64_t n, int64_t c, int64_t h, int64_t w) {
  const ScalarType type = work_type(grad);
  const Tensor rois_ = check_rois(rois, n, type), grad_ = channels_last(grad, type);
  const Regions p = regions(n, c, h, w, rois, ph, pw, scale);
  STD_TORCH_CHECK(grad.numel() == p.count * c * ph * pw, "grad does not fit the regions");
  const Tensor d_input = empty(grad_, {n, h, w, c}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    roi_align_backward<T>(p, ratio, aligned, read<T>(grad_), read<T>(rois_), write<T>(d_input));
  });
  return map_of(d_input, grad.scalar_type());
}

std::tuple<Tensor, Tensor> roi_pool_op(
    const Tensor& input, const Tensor& rois, double scale, int64_t ph, int64_t pw) {
  STD_TORCH_CHECK(input.dim() == 4, "expected input (N, C, H, W)");
  const ScalarType type = work_type(input);
  const Tensor rois_ = check_rois(rois, input.size(0), type), map = channels_last(input, type);
  const Regions p = regions(map.size(0), map.size(3), map.size(1), map.size(2), rois, ph, pw, scale);
  const Tensor out = empty(map, {p.count, ph, pw, p.channels}, type);
  const Tensor argmax = empty(map, {p.count, ph, pw, p.channels}, ScalarType::Int);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    roi_pool<T>(p, read<T>(map), read<T>(rois_), write<T>(out), write<int32_t>(argmax));
  });
  return {map_of(out, input.scalar_type()), map_of(argmax, ScalarType::Int)};
}

Tensor roi_pool_backward_op(
    const Tensor& grad, const Tensor& argmax, const Tensor& rois, int64_t n, int64_t c, int64_t h, int64_t w) {
  const ScalarType type = work_type(grad);
  const Tensor rois_ = check_rois(rois, n, type), grad_ = channels_last(grad, type);
  const Tensor argmax_ = channels_last(argmax, ScalarType::Int);
  const Regions p = regions(n, c, h, w, rois, grad.size(2), grad.size(3), 1.0);
  STD_TORCH_CHECK(
      grad.numel() == argmax.numel() && grad.size(0) == p.count && grad.size(1) == c, "grad does not fit the regions");
  const Tensor d_input = empty(grad_, {n, h, w, c}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    roi_pool_backward<T>(p, read<T>(grad_), read<int32_t>(argmax_), read<T>(rois_), write<T>(d_input));
  });
  return map_of(d_input, grad.scalar_type());
}

DeformPsroi psroi_settings(
    const Tensor& input, const Tensor& rois, const std::optional<Tensor>& trans, double scale, int64_t out_channels,
    int64_t group_size, int64_t out_size, int64_t part_size, int64_t samples, double trans_std) {
  STD_TORCH_CHECK(
      input.dim() == 4 && out_channels > 0 && group_size > 0 && out_size > 0 && part_size > 0 && samples > 0 &&
          input.size(1) == out_channels * group_size * group_size,
      "expected input (N, out_channels * group_size^2, H, W) and positive sizes");
  const int64_t classes = trans ? trans->size(1) / 2 : 1;
  STD_TORCH_CHECK(
      !trans || (classes > 0 && out_channels % classes == 0 && trans->size(0) == rois.size(0) &&
                 trans->numel() == rois.size(0) * 2 * classes * part_size * part_size),
      "expected trans (R, 2 * classes, part_size, part_size) with classes that divide out_channels");
  return {input.size(0), input.size(2), input.size(3), rois.size(0), classes, out_channels,
          group_size,    out_size,      part_size,     samples,      scale,   trans_std};
}

Tensor deform_psroi_op(
    const Tensor& input, const Tensor& rois, std::optional<Tensor> trans, double scale, int64_t out_channels,
    int64_t group_size, int64_t out_size, int64_t part_size, int64_t samples, double trans_std) {
  const ScalarType type = work_type(input);
  const DeformPsroi p = psroi_settings(
      input, rois, trans, scale, out_channels, group_size, out_size, part_size, samples, trans_std);
  const Tensor rois_ = check_rois(rois, p.n, type), input_ = dense(input, type);
  const std::optional<Tensor> trans_ = dense(trans, type);
  const Tensor out = empty(input_, {p.count, out_channels, out_size, out_size}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    deform_psroi<T>(p, read<T>(input_), read<T>(rois_), read<T>(trans_), write<T>(out));
  });
  return cast(out, input.scalar_type());
}

std::tuple<Tensor, Tensor> deform_psroi_backward_op(
    const Tensor& grad, const Tensor& input, const Tensor& rois, std::optional<Tensor> trans, double scale,
    int64_t out_channels, int64_t group_size, int64_t out_size, int64_t part_size, int64_t samples, double trans_std) {
  const ScalarType type = work_type(input);
  const DeformPsroi p = psroi_settings(
      input, rois, trans, scale, out_channels, group_size, out_size, part_size, samples, trans_std);
  STD_TORCH_CHECK(grad.numel() == p.count * out_channels * out_size * out_size, "grad does not fit the regions");
  const Tensor rois_ = check_rois(rois, p.n, type), input_ = dense(input, type), grad_ = dense(grad, type);
  const std::optional<Tensor> trans_ = dense(trans, type);
  const Tensor d_input = empty(input_, {p.n, input.size(1), p.h, p.w}, type);
  const Tensor d_trans = empty(
      input_,
      trans ? std::vector<int64_t>{p.count, 2 * p.classes, part_size, part_size} : std::vector<int64_t>{0}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    deform_psroi_backward<T>(
        p, read<T>(grad_), read<T>(input_), read<T>(rois_), read<T>(trans_), write<T>(d_input), write<T>(d_trans));
  });
  return {cast(d_input, input.scalar_type()), cast(d_trans, trans ? trans->scalar_type() : input.scalar_type())};
}

// ---- deformable convolution ----

// A map per tap whose pictures may lie apart: DyHead reads the offsets of a larger map as if they were its own. Copied
// only where the cells of a picture are not evenly spaced.
struct Taps {
  Tensor data;
  Strides strides;

  Taps(const Tensor& map, ScalarType type) : data(cast(map, type)), strides{} {
    if (data.size(2) > 1 && data.size(3) > 1 && data.stride(2) != data.size(3) * data.stride(3)) {
      data = torch::stable::contiguous(data);
    }
    strides = {data.stride(0), data.stride(1), data.size(3) > 1 ? data.stride(3) : data.stride(2)};
  }
};

int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

DeformConv conv_settings(
    const Tensor& input, const Tensor& offset, const std::optional<Tensor>& mask, const Tensor& weight,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(
      input.dim() == 4 && offset.dim() == 4 && weight.dim() == 4 && stride.size() == 2 && padding.size() == 2 &&
          dilation.size() == 2 && stride[0] > 0 && stride[1] > 0,
      "expected 4-d input, offset and weight, and two numbers for each setting");
  DeformConv p{};
  p.n = input.size(0), p.channels = input.size(1), p.h = input.size(2), p.w = input.size(3);
  p.out_channels = weight.size(0), p.kh = weight.size(2), p.kw = weight.size(3);
  p.stride_h = stride[0], p.stride_w = stride[1], p.pad_h = padding[0], p.pad_w = padding[1];
  p.dil_h = dilation[0], p.dil_w = dilation[1];
  p.out_h = out_size(p.h, p.kh, p.stride_h, p.pad_h, p.dil_h);
  p.out_w = out_size(p.w, p.kw, p.stride_w, p.pad_w, p.dil_w);
  STD_TORCH_CHECK(weight.size(1) > 0 && p.channels % weight.size(1) == 0, "weight does not fit the input");
  p.groups = p.channels / weight.size(1);
  p.offset_groups = offset.size(1) / (2 * p.kh * p.kw);
  STD_TORCH_CHECK(
      p.out_channels % p.groups == 0 && p.offset_groups > 0 && p.channels % p.offset_groups == 0,
      "groups do not divide the channels");
  auto fits = [&](const Tensor& map, int64_t channels) {
    return map.dim() == 4 && map.size(0) == p.n && map.size(1) == channels && map.size(2) == p.out_h &&
        map.size(3) == p.out_w;
  };
  STD_TORCH_CHECK(
      fits(offset, 2 * p.offset_groups * p.kh * p.kw) && (!mask || fits(*mask, p.offset_groups * p.kh * p.kw)),
      "offset or mask does not fit the output of ", p.out_h, " x ", p.out_w);
  return p;
}

Tensor deform_conv2d_op(
    const Tensor& input, const Tensor& offset, std::optional<Tensor> mask, const Tensor& weight,
    std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation) {
  const ScalarType type = work_type(input);
  const DeformConv p = conv_settings(input, offset, mask, weight, stride, padding, dilation);
  STD_TORCH_CHECK(!bias || bias->numel() == p.out_channels, "bias does not fit the weight");
  const Tensor map = channels_last(input, type), filters = channels_last(weight, type);
  const Taps offset_(offset, type), mask_(mask ? *mask : offset, type);
  const std::optional<Tensor> bias_ = dense(bias, type);
  const Tensor out = empty(map, {p.n, p.out_h, p.out_w, p.out_channels}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    deform_conv2d<T>(
        p, read<T>(map), read<T>(offset_.data), offset_.strides, mask ? read<T>(mask_.data) : nullptr, mask_.strides,
        read<T>(filters), read<T>(bias_), write<T>(out));
  });
  return map_of(out, input.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward_op(
    const Tensor& grad, const Tensor& input, const Tensor& offset, std::optional<Tensor> mask, const Tensor& weight,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const ScalarType type = work_type(input);
  const DeformConv p = conv_settings(input, offset, mask, weight, stride, padding, dilation);
  STD_TORCH_CHECK(grad.numel() == p.n * p.out_channels * p.out_h * p.out_w, "grad does not fit the output");
  const Tensor map = channels_last(input, type), filters = channels_last(weight, type);
  const Tensor grad_ = channels_last(grad, type);
  const Taps offset_(offset, type), mask_(mask ? *mask : offset, type);
  const Tensor d_input = empty(map, {p.n, p.h, p.w, p.channels}, type);
  const Tensor d_offset = empty(map, {p.n, offset.size(1), p.out_h, p.out_w}, type);
  const Tensor d_mask =
      empty(map, mask ? std::vector<int64_t>{p.n, mask->size(1), p.out_h, p.out_w} : std::vector<int64_t>{0}, type);
  const Tensor d_weight = empty(map, {p.out_channels, p.kh, p.kw, weight.size(1)}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    deform_conv2d_backward<T>(
        p, read<T>(grad_), read<T>(map), read<T>(offset_.data), offset_.strides,
        mask ? read<T>(mask_.data) : nullptr, mask_.strides, read<T>(filters), write<T>(d_input), write<T>(d_offset),
        mask ? write<T>(d_mask) : nullptr, write<T>(d_weight));
  });
  return {
      map_of(d_input, input.scalar_type()), cast(d_offset, offset.scalar_type()),
      cast(d_mask, mask ? mask->scalar_type() : input.scalar_type()), map_of(d_weight, weight.scalar_type())};
}

// ---- focal loss ----

void check_targets(const Tensor& logits, const Tensor& targets) {
  STD_TORCH_CHECK(
      logits.dim() == 2 && targets.dim() == 1 && targets.size(0) == logits.size(0),
      "expected logits (N, C) and targets (N,)");
}

Tensor sigmoid_focal_loss_op(const Tensor& logits, const Tensor& targets, double gamma, double alpha) {
  check_targets(logits, targets);
  const ScalarType type = work_type(logits);
  const Tensor logits_ = dense(logits, type), targets_ = dense(targets, ScalarType::Long);
  const Tensor out = empty(logits_, {logits.size(0), logits.size(1)}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    sigmoid_focal_loss<T>(
        logits.size(0), logits.size(1), read<T>(logits_), read<int64_t>(targets_), static_cast<T>(gamma),
        static_cast<T>(alpha), write<T>(out));
  });
  return cast(out, logits.scalar_type());
}

Tensor sigmoid_focal_loss_backward_op(
    const Tensor& grad, const Tensor& logits, const Tensor& targets, double gamma, double alpha) {
  check_targets(logits, targets);
  STD_TORCH_CHECK(grad.numel() == logits.numel(), "grad does not fit the logits");
  const ScalarType type = work_type(logits);
  const Tensor grad_ = dense(grad, type), logits_ = dense(logits, type), targets_ = dense(targets, ScalarType::Long);
  const Tensor out = empty(logits_, {logits.size(0), logits.size(1)}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    sigmoid_focal_loss_backward<T>(
        logits.size(0), logits.size(1), read<T>(grad_), read<T>(logits_), read<int64_t>(targets_),
        static_cast<T>(gamma), static_cast<T>(alpha), write<T>(out));
  });
  return cast(out, logits.scalar_type());
}

// ---- deformable attention ----

MsDeformAttn attention_settings(
    const Tensor& value, const Tensor& shapes, const Tensor& starts, const Tensor& locations, const Tensor& weights) {
  STD_TORCH_CHECK(
      value.dim() == 4 && shapes.dim() == 2 && shapes.size(1) == 2 && starts.numel() == shapes.size(0) &&
          locations.dim() == 6 && weights.dim() == 5,
      "expected value (N, S, M, D), spatial_shapes (L, 2), level_start_index (L,), locations (N, Q, M, L, P, 2) and "
      "weights (N, Q, M, L, P)");
  const MsDeformAttn p{value.size(0),  value.size(1),     value.size(2),    value.size(3),
                       shapes.size(0), locations.size(1), locations.size(4)};
  STD_TORCH_CHECK(
      locations.size(0) == p.n && locations.size(2) == p.heads && locations.size(3) == p.levels &&
          locations.size(5) == 2 && weights.numel() * 2 == locations.numel() && weights.size(1) == p.queries,
      "locations and weights do not fit value");
  for (int64_t i = 0; i < p.levels; ++i) {
    const int64_t height = read<int64_t>(shapes)[2 * i], width = read<int64_t>(shapes)[2 * i + 1];
    const int64_t start = read<int64_t>(starts)[i];
    STD_TORCH_CHECK(
        height >= 0 && width >= 0 && start >= 0 && start + height * width <= p.rows, "level ", i, " of ", height,
        " x ", width, " starting at ", start, " does not fit into ", p.rows, " rows of value");
  }
  return p;
}

Tensor ms_deform_attn_op(
    const Tensor& value, const Tensor& shapes, const Tensor& starts, const Tensor& locations, const Tensor& weights) {
  const ScalarType type = work_type(value);
  const Tensor shapes_ = dense(shapes, ScalarType::Long), starts_ = dense(starts, ScalarType::Long);
  const MsDeformAttn p = attention_settings(value, shapes_, starts_, locations, weights);
  const Tensor value_ = dense(value, type), locations_ = dense(locations, type), weights_ = dense(weights, type);
  const Tensor out = empty(value_, {p.n, p.queries, p.heads * p.depth}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    ms_deform_attn<T>(
        p, read<T>(value_), read<int64_t>(shapes_), read<int64_t>(starts_), read<T>(locations_), read<T>(weights_),
        write<T>(out));
  });
  return cast(out, value.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward_op(
    const Tensor& grad, const Tensor& value, const Tensor& shapes, const Tensor& starts, const Tensor& locations,
    const Tensor& weights) {
  const ScalarType type = work_type(value);
  const Tensor shapes_ = dense(shapes, ScalarType::Long), starts_ = dense(starts, ScalarType::Long);
  const MsDeformAttn p = attention_settings(value, shapes_, starts_, locations, weights);
  STD_TORCH_CHECK(grad.numel() == p.n * p.queries * p.heads * p.depth, "grad does not fit the output");
  const Tensor value_ = dense(value, type), locations_ = dense(locations, type), weights_ = dense(weights, type);
  const Tensor grad_ = dense(grad, type);
  const Tensor d_value = empty(value_, {p.n, p.rows, p.heads, p.depth}, type);
  const Tensor d_locations = empty(value_, {p.n, p.queries, p.heads, p.levels, p.points, 2}, type);
  const Tensor d_weights = empty(value_, {p.n, p.queries, p.heads, p.levels, p.points}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    ms_deform_attn_backward<T>(
        p, read<T>(grad_), read<T>(value_), read<int64_t>(shapes_), read<int64_t>(starts_), read<T>(locations_),
        read<T>(weights_), write<T>(d_value), write<T>(d_locations), write<T>(d_weights));
  });
  return {
      cast(d_value, value.scalar_type()), cast(d_locations, locations.scalar_type()),
      cast(d_weights, weights.scalar_type())};
}

}  // namespace
}  // namespace mb::cpu

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_benchmark, CPU, m) {
  using namespace mb::cpu;
  m.impl("nms", TORCH_BOX(&nms_op));
  m.impl("batched_nms", TORCH_BOX(&batched_nms_op));
  m.impl("soft_nms", TORCH_BOX(&soft_nms_op));
  m.impl("roi_align", TORCH_BOX(&roi_align_op));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward_op));
  m.impl("roi_pool", TORCH_BOX(&roi_pool_op));
  m.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward_op));
  m.impl("deform_psroi", TORCH_BOX(&deform_psroi_op));
  m.impl("deform_psroi_backward", TORCH_BOX(&deform_psroi_backward_op));
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d_op));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward_op));
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss_op));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward_op));
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn_op));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward_op));
}
