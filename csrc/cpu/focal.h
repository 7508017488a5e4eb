// Sigmoid focal loss (https://arxiv.org/abs/1708.02002) of a fixed list of classes.
#pragma once

#include <cstdint>

namespace mb::cpu {

// Each of logits (N, classes) against targets (N): column t - 1 is right for target t, none for 0; a row with target -1
// costs nothing. Finite for every finite logit.
template <typename T>
void sigmoid_focal_loss(
    int64_t n, int64_t classes, const T* logits, const int64_t* targets, T gamma, T alpha, T* out);

template <typename T>
void sigmoid_focal_loss_backward(
    int64_t n, int64_t classes, const T* grad, const T* logits, const int64_t* targets, T gamma, T alpha, T* d_logits);

}  // namespace mb::cpu
