// Focal loss of independent yes-or-no questions, one column per class.
#include <cfloat>

#include "tensors.cuh"

namespace mb {
namespace {

/// Target t asks for column t - 1, 0 for none; a row with target -1 costs nothing.
template <class T, class A>
struct Forward {
  const T* logits;
  const int64_t* targets;
  int64_t classes;
  A gamma, alpha;
  T* loss;

  MB_DEVICE void operator()(int64_t i) const {
    const int64_t index = i, column = take(i, classes), target = targets[i];
    const A x = A(logits[index]), p = 1 / (1 + std::exp(-x));
    A cost = 0;
    if (target == column + 1) {
      cost = -alpha * std::pow(1 - p, gamma) * std::log(p > A(FLT_MIN) ? p : A(FLT_MIN));
    } else if (target >= 0) {
      cost = -(1 - alpha) * std::pow(p, gamma) * log_no(x);
    }
    loss[index] = T(cost);
  }

  /// log(1 - p) that stays finite.
  MB_DEVICE static A log_no(A x) {
    return (x >= 0 ? -x : A(0)) - std::log1p(std::exp(x >= 0 ? -x : x));
  }
};

template <class T, class A>
struct Backward {
  const T* logits;
  const int64_t* targets;
  const T* grad_loss;
  int64_t classes;
  A gamma, alpha;
  T* grad_logits;

  MB_DEVICE void operator()(int64_t i) const {
    const int64_t index = i, column = take(i, classes), target = targets[i];
    const A x = A(logits[index]), p = 1 / (1 + std::exp(-x));
    A slope = 0;
    if (target == column + 1) {
      const A log_p = std::log(p > A(FLT_MIN) ? p : A(FLT_MIN));
      slope = -alpha * std::pow(1 - p, gamma) * (1 - p - p * gamma * log_p);
    } else if (target >= 0) {
      slope = -(1 - alpha) * std::pow(p, gamma) * (gamma * (1 - p) * Forward<T, A>::log_no(x) - p);
    }
    grad_logits[index] = T(slope * A(grad_loss[index]));
  }
};

void check(const Tensor& logits, const Tensor& targets) {
  STD_TORCH_CHECK(logits.dim() == 2 && targets.dim() == 1 && targets.size(0) == logits.size(0),
                  "logits must be (N, C) and targets (N,)");
}

Tensor sigmoid_focal_loss(const Tensor& logits, const Tensor& targets, double gamma, double alpha) {
  check(logits, targets);
  const Tensor values = dense(logits), rows = dense(targets, ScalarType::Long);
  const Tensor loss = empty(logits, {logits.size(0), logits.size(1)}, logits.scalar_type());
  by_type(logits, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    run(logits, loss.numel(),
        Forward<T, A>{read<T>(values), read<int64_t>(rows), logits.size(1), A(gamma), A(alpha), write<T>(loss)});
  });
  return loss;
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& targets, double gamma,
                                   double alpha) {
  check(logits, targets);
  STD_TORCH_CHECK(grad.numel() == logits.numel(), "grad must be (N, C)");
  const Tensor values = dense(logits), rows = dense(targets, ScalarType::Long);
  const Tensor upstream = dense(grad, logits.scalar_type());
  const Tensor slope = empty(logits, {logits.size(0), logits.size(1)}, logits.scalar_type());
  by_type(logits, [&](auto zero) {
    using T = decltype(zero);
    using A = precise_t<T>;
    run(logits, slope.numel(), Backward<T, A>{read<T>(values), read<int64_t>(rows), read<T>(upstream), logits.size(1),
                                              A(gamma), A(alpha), write<T>(slope)});
  });
  return slope;
}

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_benchmark, MB_DISPATCH_KEY, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace
}  // namespace mb
