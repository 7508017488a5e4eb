// Multi-scale deformable attention (https://arxiv.org/abs/2010.04159).
#pragma once

#include <cstdint>

namespace mb::cpu {

struct MsDeformAttn {
  int64_t n, rows, heads, depth, levels, queries, points;
};

// value (N, S, M, D), shapes (L, 2) of (h, w), starts (L), locations (N, Q, M, L, P, 2) of (x, y) in 0..1, weights
// (N, Q, M, L, P), out (N, Q, M * D); all contiguous, and the levels fit into the S rows. The same bits at any number of
// threads.
template <typename T>
void ms_deform_attn(
    const MsDeformAttn& p, const T* value, const int64_t* shapes, const int64_t* starts, const T* locations,
    const T* weights, T* out);

// Writes all of d_value, d_locations and d_weights. The same bits at any number of threads.
template <typename T>
void ms_deform_attn_backward(
    const MsDeformAttn& p, const T* grad, const T* value, const int64_t* shapes, const int64_t* starts,
    const T* locations, const T* weights, T* d_value, T* d_locations, T* d_weights);

}  // namespace mb::cpu
