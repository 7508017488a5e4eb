// Deformable convolution (https://arxiv.org/abs/1703.06211), modulated where there is a mask (1811.11168).
#pragma once

#include <cstdint>

namespace mb::cpu {

struct Strides {
  int64_t picture, channel, cell;  // of offset and mask, in elements
};

struct DeformConv {
  int64_t n, channels, h, w;
  int64_t out_channels, kh, kw;
  int64_t out_h, out_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  int64_t groups, offset_groups;
};

// input (N, H, W, C), offset (N, G * 2 * K, Ho * Wo), mask (N, G * K, Ho * Wo) or null, weight (O, Kh, Kw, C / groups),
// bias (O) or null, out (N, Ho, Wo, O). The same bits at any number of threads.
template <typename T>
void deform_conv2d(
    const DeformConv& p, const T* input, const T* offset, Strides offset_strides, const T* mask, Strides mask_strides,
    const T* weight, const T* bias, T* out);

// grad (N, Ho, Wo, O). All results are written in full: d_input and d_weight in the order of input and weight, d_offset
// and d_mask (null without a mask) contiguous. The same bits at any number of threads.
template <typename T>
void deform_conv2d_backward(
    const DeformConv& p, const T* grad, const T* input, const T* offset, Strides offset_strides, const T* mask,
    Strides mask_strides, const T* weight, T* d_input, T* d_offset, T* d_mask, T* d_weight);

}  // namespace mb::cpu
