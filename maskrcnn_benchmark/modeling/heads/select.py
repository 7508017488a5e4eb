"""From scored boxes to the detections of a picture."""

from __future__ import annotations

from torch import Tensor

from maskrcnn_benchmark.layers.ops import batched_nms

Boxes = tuple[Tensor, Tensor, Tensor]  # (K, 4) xyxy, (K,) scores, (K,) int64 labels


def select(
    boxes: Tensor, scores: Tensor, labels: Tensor, nms_threshold: float, max_detections: int, plus_one: bool = True
) -> Boxes:
    """NMS among boxes of equal label and the limit per picture; what is left keeps its order.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        labels: (N,).
        nms_threshold: IoU; 0 or less turns NMS off.
        max_detections: Ties with the last one are kept too; 0 or less keeps all.
        plus_one: Both border pixels count.
    """
    if nms_threshold > 0:
        keep = batched_nms(boxes, scores, labels, nms_threshold, plus_one, sort="index")
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    if 0 < max_detections < len(scores):
        best = scores >= scores.topk(max_detections).values[-1]
        boxes, scores, labels = boxes[best], scores[best], labels[best]
    return boxes, scores, labels
