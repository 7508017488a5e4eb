// The threads of torch, as torch.set_num_threads says.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/ops.h>

namespace mb {

// Calls f(first, last) for pieces of [begin, end) of at least `grain`; in this thread when it already runs in parallel.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (end > begin) {
    torch::stable::parallel_for(begin, end, grain, f);
  }
}

inline int64_t threads() {
  return torch::stable::get_num_threads();
}

}  // namespace mb
