// Deformable position-sensitive pooling of regions (https://arxiv.org/abs/1703.06211).
#pragma once

#include <cstdint>

namespace mb::cpu {

struct DeformPsroi {
  int64_t n, h, w;  // the map has out_channels * group_size^2 channels: (d * group_size + gh) * group_size + gw
  int64_t count, classes;  // regions; classes of trans, 1 without it
  int64_t out_channels, group_size, out_size, part_size, samples;
  double spatial_scale, trans_std;
};

// input (N, D * G * G, H, W), rois (R, 5), trans (R, 2 * classes, part, part) or null, out (R, D, P, P); all contiguous.
template <typename T>
void deform_psroi(const DeformPsroi& p, const T* input, const T* rois, const T* trans, T* out);
// d_input and d_trans (null without trans) come uninitialised.
template <typename T>
void deform_psroi_backward(
    const DeformPsroi& p, const T* grad, const T* input, const T* rois, const T* trans, T* d_input, T* d_trans);

}  // namespace mb::cpu
