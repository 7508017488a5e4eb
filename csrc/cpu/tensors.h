// Tensors on their way into the kernels and out of them: type, memory order, fresh memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "layout.h"

namespace mb::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline ScalarType work_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor cast(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

inline Tensor dense(const Tensor& t, ScalarType type) {
  return torch::stable::contiguous(cast(t, type));
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& t, ScalarType type) {
  return t ? std::optional<Tensor>(dense(*t, type)) : std::nullopt;
}

inline Tensor map_of(const Tensor& rows, ScalarType type) {  // (N, H, W, C) -> (N, C, H, W)
  return torch::stable::permute(cast(rows, type), {0, 3, 1, 2});
}

// Fresh memory comes from the system page by page when it is first written, which for a large result takes about as
// long as to compute it; with pages of 2 MB it does not. The result is written in full, so that none is taken in vain.
inline void ask_for_large_pages(const Tensor& t) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t PAGE = 2 << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
  const uintptr_t first = (start + PAGE - 1) / PAGE * PAGE, last = (start + t.numel() * t.element_size()) / PAGE * PAGE;
  if (last > first) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: it may fail
  }
#endif
}

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& size, ScalarType type) {
  const Tensor t = torch::stable::new_empty(like, size, type);
  ask_for_large_pages(t);
  return t;
}

template <typename T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
const T* read(const std::optional<Tensor>& t) {
  return t ? read<T>(*t) : nullptr;
}

template <typename T>
T* write(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Calls f(T()) with the type that the kernels compute in.
template <typename F>
void by_type(ScalarType type, const F& f) {
  if (type == ScalarType::Double) {
    f(double());
  } else {
    f(float());
  }
}

// (N, C, H, W) -> contiguous (N, H, W, C); faster than the copy of torch, which takes one cell at a time.
inline Tensor channels_last(const Tensor& map, ScalarType type) {
  const Tensor full = cast(map, type);
  const int64_t n = map.size(0), channels = map.size(1), cells = map.size(2) * map.size(3);
  if (!full.is_contiguous() || channels == 1 || cells == 1 || full.numel() == 0) {
    return torch::stable::contiguous(torch::stable::permute(full, {0, 2, 3, 1}));
  }
  const Tensor out = empty(full, {n, map.size(2), map.size(3), channels}, type);
  by_type(type, [&](auto zero) {
    using T = decltype(zero);
    to_channels_last<T>(n, channels, cells, channels * cells, read<T>(full), write<T>(out));
  });
  return out;
}

template <typename T>
Tensor from_vector(const Tensor& like, const std::vector<T>& values, ScalarType type) {
  Tensor out = empty(like, {static_cast<int64_t>(values.size())}, type);
  if (!values.empty()) {
    std::memcpy(out.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  }
  return out;
}

}  // namespace mb::cpu
