// Memory order of maps.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel.h"

namespace mb::cpu {

// (N, C, cells) -> (N, cells, C); pictures of the first lie `stride` apart. Cells are taken as many at a time as share a
// line of the cache.
template <typename T>
void to_channels_last(int64_t n, int64_t channels, int64_t cells, int64_t stride, const T* from, T* to) {
  constexpr int64_t LINE = 64 / sizeof(T);
  const int64_t lines = (cells + LINE - 1) / LINE;
  parallel_for(0, n * lines, std::max<int64_t>(1, 4096 / channels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % lines * LINE, count = std::min(LINE, cells - first);
      const T* source = from + i / lines * stride + first;
      T* target = to + (i / lines * cells + first) * channels;
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t j = 0; j < count; ++j) {
          target[j * channels + c] = source[c * cells + j];
        }
      }
    }
  });
}

}  // namespace mb::cpu
