// Greedy non-maximum suppression, of all boxes or among boxes of one label.
//
// The boxes are sorted by score; panel after panel of rows, one kernel finds which later boxes each row overlaps too
// much (a bit each), and one block walks the rows and strikes out what a kept box suppresses. Nothing waits for the GPU
// until the end, where the number of boxes kept must be known.
#include "tensors.cuh"

namespace mb {
namespace {

constexpr int64_t BITS = 64;

template <class A>
struct Box {
  A left, top, right, bottom;
};

/// In the order of operations of the CPU path, so that an overlap is the same number here and there.
template <class A>
MB_DEVICE A overlap(const Box<A>& a, const Box<A>& b, A extra) {
  const A wide = std::fmin(a.right, b.right) - std::fmax(a.left, b.left) + extra;
  const A high = std::fmin(a.bottom, b.bottom) - std::fmax(a.top, b.top) + extra;
  const A shared = product(wide > 0 ? wide : A(0), high > 0 ? high : A(0));
  const A area_a = product(a.right - a.left + extra, a.bottom - a.top + extra);
  const A area_b = product(b.right - b.left + extra, b.bottom - b.top + extra);
  return shared / (area_a + area_b - shared);
}

/// Which of 64 boxes a row suppresses, for rows ``first`` to ``first + rows`` of the sorted boxes.
template <class A>
struct FindOverlaps {
  const Box<A>* boxes;
  const int64_t* labels;  // null: all boxes compete
  int64_t count, words, first, rows;
  A threshold, extra;
  uint64_t* bits;  // (rows, words)

  MB_DEVICE void operator()(int64_t i) const {
    const int64_t row = take(i, rows), word = i, self = first + row;  // neighbours compare with the same boxes
    if (word < self / BITS) return;  // only later boxes; these bits are never read
    const int64_t end = (word + 1) * BITS < count ? (word + 1) * BITS : count;
    uint64_t found = 0;
    for (int64_t other = word == self / BITS ? self + 1 : word * BITS; other < end; ++other) {
      const bool rivals = labels == nullptr || labels[self] == labels[other];
      if (rivals && overlap(boxes[self], boxes[other], extra) > threshold) found |= uint64_t(1) << (other % BITS);
    }
    bits[row * words + word] = found;
  }
};

/// Walks the rows of one panel, 64 at a time, with all that is suppressed so far.
struct StrikeOut {
  struct Shared {
    uint64_t own[BITS];  // which of the 64 rows suppress each other
    uint64_t kept;
  };

  const uint64_t* bits;
  int64_t words, first, rows;
  uint64_t* struck;  // (words,) boxes suppressed by a kept one of this panel or an earlier one
  bool* keep;        // (count,)

  MB_DEVICE void operator()(const Block& block, Shared& shared) const {
    for (int64_t start = 0; start < rows; start += BITS) {
      const int64_t word = (first + start) / BITS;
      const int size = int(rows - start < BITS ? rows - start : BITS);
      block.each([&](int thread) {
        if (thread < size) shared.own[thread] = bits[(start + thread) * words + word];
      });
      block.each([&](int thread) {
        if (thread > 0) return;
        uint64_t gone = struck[word], kept = 0;
        for (int row = 0; row < size; ++row) {
          if (gone >> row & 1) continue;
          kept |= uint64_t(1) << row;
          gone |= shared.own[row];
        }
        shared.kept = kept;
      });
      block.each([&](int thread) {
        const uint64_t kept = shared.kept;
        if (thread < size) keep[first + start + thread] = kept >> thread & 1;
        for (int64_t later = word + 1 + thread; later < words; later += Block::count) {
          uint64_t gone = struck[later];
          for (int row = 0; row < BITS; ++row) {  // of a fixed length: several loads are then on their way at a time
            gone |= kept >> row & 1 ? bits[(start + row) * words + later] : 0;
          }
          struck[later] = gone;
        }
      });
    }
  }
};

/// (N,) bool, which of the sorted boxes are kept.
template <class A>
Tensor keep_flags(const Tensor& boxes, const std::optional<Tensor>& labels, double threshold, bool plus_one) {
  const int64_t count = boxes.size(0), words = (count + BITS - 1) / BITS;
  const Tensor keep = empty(boxes, {count}, ScalarType::Bool);
  const Tensor struck = zeros(boxes, {words}, ScalarType::Long);
  const int64_t fitting = BUFFER_BYTES / int64_t(sizeof(uint64_t)) / words / BITS * BITS;
  const int64_t panel = std::min(std::max(fitting, BITS), words * BITS);
  const Tensor bits = empty(boxes, {panel, words}, ScalarType::Long);
  for (int64_t first = 0; first < count; first += panel) {
    const int64_t rows = std::min(panel, count - first);
    run(boxes, rows * words,
        FindOverlaps<A>{read<Box<A>>(boxes), labels ? read<int64_t>(*labels) : nullptr, count, words, first, rows,
                        A(threshold), A(plus_one ? 1 : 0), write<uint64_t>(bits)});
    run_block(boxes, StrikeOut{read<uint64_t>(bits), words, first, rows, write<uint64_t>(struck), write<bool>(keep)});
  }
  return keep;
}

Tensor suppress(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels, double threshold,
                bool plus_one) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must be (N, 4)");
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == boxes.size(0), "scores must be (N,)");
  STD_TORCH_CHECK(!labels || (labels->dim() == 1 && labels->size(0) == boxes.size(0)), "labels must be (N,)");
  if (boxes.size(0) == 0) return empty(boxes, {0}, ScalarType::Long);
  const Tensor order = aten("aten::argsort", "stable", scores, true, int64_t(0), true);
  const Tensor sorted = dense(aten("aten::index_select", "", boxes, int64_t(0), order), precise(boxes));
  std::optional<Tensor> sorted_labels;
  if (labels) sorted_labels = dense(aten("aten::index_select", "", *labels, int64_t(0), order), ScalarType::Long);
  const bool wide = sorted.scalar_type() == ScalarType::Double;
  const Tensor keep = wide ? keep_flags<double>(sorted, sorted_labels, threshold, plus_one)
                           : keep_flags<float>(sorted, sorted_labels, threshold, plus_one);
  return aten("aten::masked_select", "", order, keep);
}

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, bool plus_one) {
  return suppress(boxes, scores, std::nullopt, iou_threshold, plus_one);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& labels, double iou_threshold,
                   bool plus_one) {
  return suppress(boxes, scores, labels, iou_threshold, plus_one);
}

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_benchmark, MB_DISPATCH_KEY, m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("batched_nms", TORCH_BOX(&batched_nms));
}

}  // namespace
}  // namespace mb
