// What the operators share: access to tensors through the stable ABI, and the choice of element types.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "launch.cuh"

namespace mb {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// What values of type T are computed and summed in: float, and double for double.
template <class T>
struct Precise {
  using type = float;
};
template <>
struct Precise<double> {
  using type = double;
};
template <class T>
using precise_t = typename Precise<T>::type;

inline ScalarType precise(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

/// Calls body(T()) with the element type T of ``tensor``.
template <class Body>
void by_type(const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::Double:
      return body(double());
    case ScalarType::Half:
      return body(torch::headeronly::Half());
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16());
    default:
      STD_TORCH_CHECK(false, "expected floating point values, got ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
}

/// An operator of PyTorch by name, with one result.
template <class... Arguments>
Tensor aten(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

/// ``tensor`` in contiguous memory, as another type where one is given.
inline Tensor dense(const Tensor& tensor) {
  return torch::stable::contiguous(tensor);
}
inline Tensor dense(const Tensor& tensor, ScalarType type) {
  return torch::stable::contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

/// (N, C, H, W) as contiguous (N, H, W, C), and back as a view.
inline Tensor channels_last(const Tensor& map) {
  return dense(aten("aten::permute", "", map, std::vector<int64_t>{0, 2, 3, 1}));
}
inline Tensor channels_first(const Tensor& map) {
  return aten("aten::permute", "", map, std::vector<int64_t>{0, 3, 1, 2});
}

inline Tensor cast(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline Tensor zeros(const Tensor& like, const std::vector<int64_t>& size, ScalarType type) {
  return torch::stable::new_zeros(like, size, type);
}
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& size, ScalarType type) {
  return torch::stable::new_empty(like, size, type);
}

template <class T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace mb
