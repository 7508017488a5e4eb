// Vectors of 32 bytes as the compiler provides them: one register with AVX2, two with SSE2 or NEON.
// Loops written with them are vectorised without any flag, inside functions marked MB_CLONES for each instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#define MB_INLINE inline __attribute__((always_inline))

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only

namespace mb::cpu {

template <typename T>
struct Vec;

template <>
struct Vec<float> {
  typedef float type __attribute__((vector_size(32)));
  typedef float loose __attribute__((vector_size(32), aligned(4), may_alias));  // at any address of a float
  typedef int32_t whole __attribute__((vector_size(32)));
  static constexpr int64_t size = 8;
};

template <>
struct Vec<double> {
  typedef double type __attribute__((vector_size(32)));
  typedef double loose __attribute__((vector_size(32), aligned(8), may_alias));
  typedef int64_t whole __attribute__((vector_size(32)));
  static constexpr int64_t size = 4;
};

template <typename T>
using vec = typename Vec<T>::type;
template <typename T>
using whole = typename Vec<T>::whole;  // integers, as many as there are in vec<T>

template <typename T>
MB_INLINE vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Vec<T>::loose*>(from);
}

template <typename T>
MB_INLINE void store(T* to, const vec<T>& value) {
  *reinterpret_cast<typename Vec<T>::loose*>(to) = value;
}

// Sum of the elements, always in the same order: the two halves are added first.
template <typename T>
MB_INLINE T total(const vec<T>& value) {
  typedef T half __attribute__((vector_size(16)));
  half low, high;
  std::memcpy(&low, &value, 16);
  std::memcpy(&high, reinterpret_cast<const char*>(&value) + 16, 16);
  low += high;
  if constexpr (sizeof(T) == 8) {
    return low[0] + low[1];
  } else {
    return (low[0] + low[2]) + (low[1] + low[3]);
  }
}

}  // namespace mb::cpu
