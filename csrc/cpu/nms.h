// Non-maximum suppression. Boxes are xyxy (n, 4); plus_one counts both border pixels (width = x2 - x1 + 1).
#pragma once

#include <cstdint>
#include <vector>

namespace mb::cpu {

// Indices of the boxes kept, best score first; equal scores in index order, NaN scores first. Only boxes of equal label
// suppress each other; labels may be null: all are equal. IoU > threshold, both in T, suppresses.
template <typename T>
std::vector<int64_t> nms(
    int64_t n, const T* boxes, const T* scores, const int64_t* labels, T threshold, bool plus_one);

// Selects the best box and multiplies the scores of the others by exp(-IoU^2 / sigma) ("+1" IoU), then drops those below
// the threshold, until none is left; equal scores go in index order. Indices in the order selected, and their scores.
template <typename T>
void soft_nms(
    int64_t n, const T* boxes, const T* scores, T score_threshold, T sigma, std::vector<int64_t>& kept,
    std::vector<T>& kept_scores);

}  // namespace mb::cpu
