// How the kernels run. A kernel is a struct whose operator() does the work of one thread, of one group of lanes or of
// one block; it never names a thread index. Compiled without nvcc, the same structs run one after the other on the CPU
// and the operators register for CPU tensors: so the tests check every kernel where no GPU is at hand.
#pragma once

#include <algorithm>
#include <cstdint>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#define MB_DEVICE __device__ __forceinline__
#define MB_DISPATCH_KEY CUDA
#else
#define MB_DEVICE inline
#define MB_DISPATCH_KEY CPU
#endif

namespace mb {

constexpr int THREADS = 256;  // of a block; a multiple of LANES
constexpr int64_t MAX_BLOCKS = int64_t(1) << 30;

#ifdef __CUDACC__

constexpr int LANES = 32;
constexpr int64_t BUFFER_BYTES = int64_t(256) << 20;  // of scratch memory that an operator holds at a time

/// Adds to memory that other threads add to as well. The order of such additions changes from run to run, and with it
/// the last bits of the sum.
template <class A>
MB_DEVICE void add(A* where, A value) {
  atomicAdd(where, value);
}

/// A product that is rounded before anything is added to it, as it is on a CPU.
MB_DEVICE float product(float a, float b) {
  return __fmul_rn(a, b);
}
MB_DEVICE double product(double a, double b) {
  return __dmul_rn(a, b);
}

/// A warp that works on one thing: lane ``index`` takes every ``count``-th part of it.
struct Lanes {
  int index;
  static constexpr int count = LANES;

  /// Sum over all lanes, in lane 0.
  template <class A>
  MB_DEVICE A sum(A value) const {
    for (int step = LANES / 2; step > 0; step /= 2) {
      value += __shfl_down_sync(0xffffffffu, value, step);
    }
    return value;
  }
};

/// The threads of one block, in steps: ``each`` runs a step in all of them and waits for all.
struct Block {
  static constexpr int count = THREADS;

  template <class Step>
  MB_DEVICE void each(const Step& step) const {
    step(int(threadIdx.x));
    __syncthreads();
  }
};

template <class Kernel>
__global__ void thread_kernel(Kernel kernel, int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * THREADS;
  for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < count; i += stride) {
    kernel(i);
  }
}

template <class Kernel>
__global__ void lane_kernel(Kernel kernel, int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * (THREADS / LANES);
  const Lanes lanes{int(threadIdx.x) % LANES};
  for (int64_t i = int64_t(blockIdx.x) * (THREADS / LANES) + threadIdx.x / LANES; i < count; i += stride) {
    kernel(i, lanes);
  }
}

template <class Kernel>
__global__ void block_kernel(Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  kernel(Block{}, shared);
}

/// Makes the device of ``where`` the current one; ``stream`` is the one that PyTorch uses on it.
struct Place {
  explicit Place(const torch::stable::Tensor& where) : guard(where.get_device_index()) {
    void* handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(where.get_device_index(), &handle));
    stream = static_cast<cudaStream_t>(handle);
  }

  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

inline unsigned blocks_for(int64_t count, int64_t per_block) {
  return unsigned(std::min((count + per_block - 1) / per_block, MAX_BLOCKS));
}

/// kernel(i) for each i below ``count``, on the device of ``where``; does not wait for it.
template <class Kernel>
void run(const torch::stable::Tensor& where, int64_t count, const Kernel& kernel) {
  if (count == 0) return;
  const Place place(where);
  thread_kernel<<<blocks_for(count, THREADS), THREADS, 0, place.stream>>>(kernel, count);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

/// kernel(i, lanes) for each i below ``count``, by a group of lanes each.
template <class Kernel>
void run_lanes(const torch::stable::Tensor& where, int64_t count, const Kernel& kernel) {
  if (count == 0) return;
  const Place place(where);
  lane_kernel<<<blocks_for(count, THREADS / LANES), THREADS, 0, place.stream>>>(kernel, count);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

/// kernel(block, shared) once, by one block; Kernel::Shared is the memory that its threads share.
template <class Kernel>
void run_block(const torch::stable::Tensor& where, const Kernel& kernel) {
  const Place place(where);
  block_kernel<<<1, THREADS, 0, place.stream>>>(kernel);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

#else

constexpr int64_t BUFFER_BYTES = 4096;  // little, so that small tests take many pieces

template <class A>
void add(A* where, A value) {
  *where += value;
}

template <class A>
A product(A a, A b) {
  return a * b;
}

struct Lanes {
  int index;
  static constexpr int count = 1;

  template <class A>
  A sum(A value) const {
    return value;
  }
};

struct Block {
  static constexpr int count = THREADS;

  template <class Step>
  void each(const Step& step) const {
    for (int thread = 0; thread < count; ++thread) step(thread);
  }
};

template <class Kernel>
void run(const torch::stable::Tensor&, int64_t count, const Kernel& kernel) {
  for (int64_t i = 0; i < count; ++i) kernel(i);
}

template <class Kernel>
void run_lanes(const torch::stable::Tensor&, int64_t count, const Kernel& kernel) {
  for (int64_t i = 0; i < count; ++i) kernel(i, Lanes{0});
}

template <class Kernel>
void run_block(const torch::stable::Tensor&, const Kernel& kernel) {
  typename Kernel::Shared shared;
  kernel(Block{}, shared);
}

#endif

/// Splits the last axis off a flat index: returns the place along an axis of ``size`` and leaves the rest in ``index``.
/// In 32 bits where they suffice: a GPU divides 64-bit numbers many times slower.
MB_DEVICE int64_t take(int64_t& index, int64_t size) {
  if (((index | size) >> 32) == 0) {
    const uint32_t all = uint32_t(index), rest = all / uint32_t(size);
    index = rest;
    return all - rest * uint32_t(size);
  }
  const int64_t place = index % size;
  index /= size;
  return place;
}

}  // namespace mb
