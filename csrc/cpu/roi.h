// Pooling of regions. Maps and results are in channels-last memory, (N, H, W, C) and (R, Ph, Pw, C), but that roi_align
// also takes a map (N, C, H, W), `planar`, and brings some of its channels at a time into that order. Regions are
// (R, 5): picture number (checked by the caller), x1, y1, x2, y2 in pixels of the picture. d_input comes uninitialised.
#pragma once

#include <cstdint>

namespace mb::cpu {

struct Regions {
  int64_t n, channels, h, w;  // of the map
  int64_t count, pooled_h, pooled_w;
  double spatial_scale;
};

template <typename T>
void roi_align(const Regions& p, int64_t sampling_ratio, bool aligned, const T* input, bool planar, const T* rois, T* out);
template <typename T>
void roi_align_backward(
    const Regions& p, int64_t sampling_ratio, bool aligned, const T* grad, const T* rois, T* d_input);

// argmax: y * W + x of each maximum, -1 where a bin is empty.
template <typename T>
void roi_pool(const Regions& p, const T* input, const T* rois, T* out, int32_t* argmax);
template <typename T>
void roi_pool_backward(const Regions& p, const T* grad, const int32_t* argmax, const T* rois, T* d_input);

}  // namespace mb::cpu
