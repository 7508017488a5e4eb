// Multi-scale deformable attention (https://arxiv.org/abs/2010.04159): a weighted sum of bilinear samples of all
// levels.
#include "bilinear.cuh"
#include "tensors.cuh"

namespace mb {
namespace {

struct Shape {
  int64_t rows, heads, depth, queries, levels, points;  // value (N, rows, heads, depth)
  const int64_t* sizes;                                 // (levels, 2) height, width
  const int64_t* starts;                                // (levels,) first row
};

/// The samples of one head of one query.
template <class T, class A>
struct Sampler {
  const T* value;
  const A* locations;
  Shape shape;

  /// Whether value has all rows of a level.
  MB_DEVICE bool fits(int64_t level) const {
    const int64_t start = shape.starts[level], cells = shape.sizes[level * 2] * shape.sizes[level * 2 + 1];
    return start >= 0 && cells >= 0 && start + cells <= shape.rows;
  }

  /// Corners of a sample, and the element of value where its level begins; false outside of the level.
  MB_DEVICE bool corners(int64_t picture, int64_t head, int64_t level, int64_t sample, Corners<A>& found,
                         int64_t& origin) const {
    const int64_t height = shape.sizes[level * 2], width = shape.sizes[level * 2 + 1];
    const A x = product(locations[sample * 2], A(width)) - A(0.5);
    const A y = product(locations[sample * 2 + 1], A(height)) - A(0.5);
    origin = ((picture * shape.rows + shape.starts[level]) * shape.heads + head) * shape.depth;
    return corners_in_zeros(y, x, height, width, found);
  }
};

/// One element of the depth of one head of one query. NaN where a level does not fit: to look before would mean to
/// wait.
template <class T, class A>
struct Forward {
  Sampler<T, A> sampler;
  const A* weights;
  T* out;

  MB_DEVICE void operator()(int64_t i) const {
    const Shape& s = sampler.shape;
    const int64_t index = i, element = take(i, s.depth), first = i * s.levels * s.points, head = take(i, s.heads);
    take(i, s.queries);
    A sum = 0;
    for (int64_t level = 0; level < s.levels; ++level) {
      if (!sampler.fits(level)) {
        sum = A(NAN);
        break;
      }
      for (int64_t sample = first + level * s.points; sample < first + (level + 1) * s.points; ++sample) {
        Corners<A> corners;
        int64_t origin;
        if (!sampler.corners(i, head, level, sample, corners, origin)) continue;
        sum += weights[sample] *
               corners.sample(sampler.value + origin + element, s.heads * s.depth, corners.weight);
      }
    }
    out[index] = T(sum);
  }
};

/// One head of one query, its depth divided among the lanes.
template <class T, class A>
struct Backward {
  Sampler<T, A> sampler;
  const A* weights;
  const T* grad_out;
  A* grad_value;
  A* grad_locations;
  A* grad_weights;

  MB_DEVICE void operator()(int64_t i, const Lanes& lanes) const {
    const Shape& s = sampler.shape;
    const T* upstream = grad_out + i * s.depth;
    const int64_t first = i * s.levels * s.points, head = take(i, s.heads), step = s.heads * s.depth;
    take(i, s.queries);
    for (int64_t level = 0; level < s.levels; ++level) {
      for (int64_t sample = first + level * s.points; sample < first + (level + 1) * s.points; ++sample) {
        Corners<A> corners;
        int64_t origin;
        const bool inside = sampler.fits(level) && sampler.corners(i, head, level, sample, corners, origin);
        A by_weight = 0, by_x = 0, by_y = 0;
        for (int64_t element = lanes.index; inside && element < s.depth; element += lanes.count) {
          const A grad = A(upstream[element]);
          const T* map = sampler.value + origin + element;
          by_weight += grad * corners.sample(map, step, corners.weight);
          by_x += grad * corners.sample(map, step, corners.by_x);
          by_y += grad * corners.sample(map, step, corners.by_y);
          for (int k = 0; k < 4; ++k) {
            if (!corners.inside[k]) continue;
            add(grad_value + origin + element + corners.cell[k] * step, corners.weight[k] * weights[sample] * grad);
          }
        }
        by_weight = lanes.sum(by_weight);
        by_x = lanes.sum(by_x);
        by_y = lanes.sum(by_y);
        if (lanes.index > 0) continue;
        grad_weights[sample] = by_weight;
        grad_locations[sample * 2] = by_x * weights[sample] * A(s.sizes[level * 2 + 1]);
        grad_locations[sample * 2 + 1] = by_y * weights[sample] * A(s.sizes[level * 2]);
      }
    }
  }
};

template <class T, class A>
Sampler<T, A> sampler_of(const Tensor& value, const Tensor& sizes, const Tensor& starts, const Tensor& locations) {
  return {read<T>(value), read<A>(locations),
          Shape{value.size(1), value.size(2), value.size(3), locations.size(1), locations.size(3), locations.size(4),
                read<int64_t>(sizes), read<int64_t>(starts)}};
}

void check(const Tensor& value, const Tensor& sizes, const Tensor& starts, const Tensor& locations,
           const Tensor& weights) {
  STD_TORCH_CHECK(value.dim() == 4, "value must be (N, S, M, D)");
  STD_TORCH_CHECK(locations.dim() == 6 && locations.size(5) == 2 && locations.size(0) == value.size(0) &&
                      locations.size(2) == value.size(2),
                  "locations must be (N, Q, M, L, P, 2)");
  STD_TORCH_CHECK(weights.dim() == 5 && weights.numel() * 2 == locations.numel(), "weights must be (N, Q, M, L, P)");
  STD_TORCH_CHECK(sizes.numel() == locations.size(3) * 2 && starts.numel() == locations.size(3),
                  "there must be a size (h, w) and a start for each of the L levels");
}

/// Sizes and starts of the levels, in the memory of the device that ``like`` lies on.
Tensor beside(const Tensor& numbers, const Tensor& like) {
  const Tensor whole = dense(numbers, ScalarType::Long);
  return whole.is_cuda() == like.is_cuda() ? whole : torch::stable::to(whole, like.device());
}

Tensor ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                      const Tensor& locations, const Tensor& weights) {
  check(value, spatial_shapes, level_start_index, locations, weights);
  const ScalarType type = precise(value);
  const Tensor map = dense(value), sizes = beside(spatial_shapes, value), starts = beside(level_start_index, value);
  const Tensor places = dense(locations, type), factors = dense(weights, type);
  const std::vector<int64_t> size{value.size(0), locations.size(1), value.size(2) * value.size(3)};
  const Tensor out = empty(value, size, value.scalar_type());
  by_type(value, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    run(value, out.numel(),
        Forward<T, A>{sampler_of<T, A>(map, sizes, starts, places), read<A>(factors), write<T>(out)});
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad, const Tensor& value,
                                                           const Tensor& spatial_shapes,
                                                           const Tensor& level_start_index, const Tensor& locations,
                                                           const Tensor& weights) {
  check(value, spatial_shapes, level_start_index, locations, weights);
  const int64_t n = value.size(0), q = locations.size(1), m = value.size(2);
  const int64_t l = locations.size(3), p = locations.size(4);
  STD_TORCH_CHECK(grad.numel() == n * q * m * value.size(3), "grad must be (N, Q, M * D)");
  const ScalarType type = precise(value);
  const Tensor map = dense(value), sizes = beside(spatial_shapes, value), starts = beside(level_start_index, value);
  const Tensor places = dense(locations, type), factors = dense(weights, type);
  const Tensor upstream = dense(grad, value.scalar_type());
  const Tensor grad_value = zeros(value, {n, value.size(1), m, value.size(3)}, type);
  const Tensor grad_locations = empty(value, {n, q, m, l, p, 2}, type);
  const Tensor grad_weights = empty(value, {n, q, m, l, p}, type);
  by_type(value, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    run_lanes(value, n * q * m,
              Backward<T, A>{sampler_of<T, A>(map, sizes, starts, places), read<A>(factors), read<T>(upstream),
                             write<A>(grad_value), write<A>(grad_locations), write<A>(grad_weights)});
  });
  return {cast(grad_value, value.scalar_type()), cast(grad_locations, locations.scalar_type()),
          cast(grad_weights, weights.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_benchmark, MB_DISPATCH_KEY, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
}

}  // namespace
}  // namespace mb
