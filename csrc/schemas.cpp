// The operators torch.ops.maskrcnn_benchmark.*; layers/_csrc_ops.py gives them shapes, gradients and autocast, and
// layers/ops.py documents them. The object `_C` holds these schemas and the CPU kernels, `_C_cuda` the CUDA kernels.
//
// Results that are maps (N, C, H, W) come in channels_last memory order, as do gradients of maps and of weights.

#include <Python.h>

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(maskrcnn_benchmark, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold, bool plus_one) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold, bool plus_one) -> Tensor");
  m.def("soft_nms(Tensor boxes, Tensor scores, float score_threshold, float sigma) -> (Tensor, Tensor)");

  m.def(
      "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_h, int pooled_w, int sampling_ratio,"
      " bool aligned) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, int pooled_h, int pooled_w,"
      " int sampling_ratio, bool aligned, SymInt n, SymInt c, SymInt h, SymInt w) -> Tensor");
  m.def(
      "roi_pool(Tensor input, Tensor rois, float spatial_scale, int pooled_h, int pooled_w)"
      " -> (Tensor, Tensor)");  // the second: y * W + x of each maximum, -1 of none, int32
  m.def(
      "roi_pool_backward(Tensor grad, Tensor argmax, Tensor rois, SymInt n, SymInt c, SymInt h, SymInt w) -> Tensor");
  m.def(
      "deform_psroi(Tensor input, Tensor rois, Tensor? trans, float spatial_scale, int out_channels, int group_size,"
      " int out_size, int part_size, int samples, float trans_std) -> Tensor");
  m.def(
      "deform_psroi_backward(Tensor grad, Tensor input, Tensor rois, Tensor? trans, float spatial_scale,"
      " int out_channels, int group_size, int out_size, int part_size, int samples, float trans_std)"
      " -> (Tensor, Tensor)");  // the second is empty without trans

  m.def(
      "deform_conv2d(Tensor input, Tensor offset, Tensor? mask, Tensor weight, Tensor? bias, int[] stride,"
      " int[] padding, int[] dilation) -> Tensor");
  m.def(
      "deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor? mask, Tensor weight, int[] stride,"
      " int[] padding, int[] dilation) -> (Tensor, Tensor, Tensor, Tensor)");  // of input, offset, mask (empty without), weight

  m.def("sigmoid_focal_loss(Tensor logits, Tensor targets, float gamma, float alpha) -> Tensor");
  m.def("sigmoid_focal_loss_backward(Tensor grad, Tensor logits, Tensor targets, float gamma, float alpha) -> Tensor");

  m.def(
      "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor locations,"
      " Tensor weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad, Tensor value, Tensor spatial_shapes, Tensor level_start_index,"
      " Tensor locations, Tensor weights) -> (Tensor, Tensor, Tensor)");  // of value, locations, weights
}

// `import maskrcnn_benchmark._C` runs the registrations; there is nothing else in the module.
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() {
  return PyModule_Create(&module);
}
