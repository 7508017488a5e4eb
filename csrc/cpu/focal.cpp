// Exponentials and logarithms are polynomials of whole vectors.
#include "focal.h"

#include <algorithm>

#include "common.h"
#include "parallel.h"
#include "vec.h"

// A sum of products is one operation here, also where the rest is built without contraction.
#pragma GCC optimize("fp-contract=fast")

namespace mb::cpu {
namespace {

constexpr int64_t GRAIN = 4096;  // logits per thread at least

template <typename T>
struct Format;

template <>
struct Format<float> {
  static constexpr int mantissa = 23, exp_terms = 7, log_terms = 8;
  static constexpr float lowest = -87, magic = 12582912.0f;  // 1.5 * 2^23: added to a number it rounds it
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};

template <>
struct Format<double> {
  static constexpr int mantissa = 52, exp_terms = 13, log_terms = 17;
  static constexpr double lowest = -708, magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
};

// exp(x) for x <= 0: 2^n times the series of what is left. exp(`lowest`) below that; NaN stays NaN.
template <typename T>
MB_INLINE vec<T> exp_of_negative(const vec<T>& number) {
  using F = Format<T>;
  const vec<T> zero = {};
  const vec<T> x = number < F::lowest ? zero + F::lowest : number;
  const vec<T> shifted = x * T(1.44269504088896340736) + F::magic, n = shifted - F::magic;
  const vec<T> left = x - n * F::ln2_high - n * F::ln2_low;
  vec<T> sum = zero + 1;
#pragma GCC unroll 13
  for (int k = F::exp_terms; k > 0; --k) sum = 1 + left * T(1.0 / k) * sum;
  const whole<T> power = (whole<T>(shifted) << F::mantissa) + whole<T>(zero + 1);
  return sum * vec<T>(power);
}

// log(1 + x) for 0 <= x <= 1, by the series of the inverse hyperbolic tangent.
template <typename T>
MB_INLINE vec<T> log_of_one_plus(const vec<T>& x) {
  const vec<T> t = x / (2 + x), square = t * t;
  vec<T> sum = {};
#pragma GCC unroll 17
  for (int k = Format<T>::log_terms - 1; k >= 0; --k) sum = T(1.0 / (2 * k + 1)) + square * sum;
  return 2 * t * sum;
}

// Of answers with logit z for the right side, p = sigmoid(z): 1 - p, (1 - p)^gamma and -log(p).
template <typename T>
struct Answers {
  vec<T> missed, focus, cost;

  MB_INLINE Answers(const vec<T>& z, T gamma) {
    const vec<T> zero = {}, size = z < 0 ? -z : z, small = exp_of_negative<T>(-size), log = log_of_one_plus<T>(small);
    missed = (z < 0 ? zero + 1 : small) / (1 + small);
    focus = exp_of_negative<T>(-gamma * ((z < 0 ? zero : z) + log));
    cost = (z < 0 ? -z : zero) + log;
  }
};

template <typename T>
struct Loss {
  int64_t classes;
  const T* logits;
  const int64_t* targets;
  T gamma, alpha;
  const T* grad;  // null in the forward pass
  T* out;
};

// Logits [begin, end): their losses, or gradients.
template <typename T>
MB_INLINE void lose(const Loss<T>& s, int64_t begin, int64_t end) {
  constexpr int64_t size = Vec<T>::size;
  T side[size] = {}, share[size] = {}, logit[size] = {};  // side: 1 where the column is right, else -1
  int64_t row = begin / s.classes, column = begin % s.classes;
  for (int64_t first = begin; first < end; first += size) {
    const int64_t count = std::min(size, end - first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t target = s.targets[row];
      const bool right = target == column + 1;
      side[i] = right ? T(1) : T(-1);
      share[i] = target < 0 ? T(0) : right ? s.alpha : 1 - s.alpha;
      logit[i] = target < 0 ? T(0) : s.logits[first + i];
      if (++column == s.classes) {
        column = 0;
        ++row;
      }
    }
    const Answers<T> answer(load(side) * load(logit), s.gamma);
    vec<T> result;
    if (s.grad == nullptr) {
      result = load(share) * answer.focus * answer.cost;
    } else {
      T grad[size] = {};
      std::copy(s.grad + first, s.grad + first + count, grad);
      const vec<T> slope = -answer.focus * (s.gamma * (1 - answer.missed) * answer.cost + answer.missed);
      result = load(side) * load(share) * slope * load(grad);
    }
    T kept[size];
    store<T>(kept, result);
    std::copy(kept, kept + count, s.out + first);
  }
}

MB_CLONES void run(const Loss<float>& s, int64_t begin, int64_t end) { lose(s, begin, end); }
MB_CLONES void run(const Loss<double>& s, int64_t begin, int64_t end) { lose(s, begin, end); }

}  // namespace

template <typename T>
void sigmoid_focal_loss(
    int64_t n, int64_t classes, const T* logits, const int64_t* targets, T gamma, T alpha, T* out) {
  const Loss<T> s{classes, logits, targets, gamma, alpha, nullptr, out};
  parallel_for(0, n * classes, GRAIN, [&](int64_t begin, int64_t end) { run(s, begin, end); });
}

template <typename T>
void sigmoid_focal_loss_backward(
    int64_t n, int64_t classes, const T* grad, const T* logits, const int64_t* targets, T gamma, T alpha, T* d_logits) {
  const Loss<T> s{classes, logits, targets, gamma, alpha, grad, d_logits};
  parallel_for(0, n * classes, GRAIN, [&](int64_t begin, int64_t end) { run(s, begin, end); });
}

#define MB_INSTANTIATE(T)                                                                                              \
  template void sigmoid_focal_loss<T>(int64_t, int64_t, const T*, const int64_t*, T, T, T*);                           \
  template void sigmoid_focal_loss_backward<T>(int64_t, int64_t, const T*, const T*, const int64_t*, T, T, T*);

MB_INSTANTIATE(float)
MB_INSTANTIATE(double)

}  // namespace mb::cpu
