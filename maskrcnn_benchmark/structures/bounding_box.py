"""The class that files of boxes of maskrcnn-benchmark name; its module and its attributes are part of that format."""

from __future__ import annotations

from torch import Tensor


class BoxList:
    """Boxes of one picture, as ``torch.save`` stores them in such files; for anything else there are plain tensors.

    Args:
        bbox: (N, 4) float32, pixels, the last one inside.
        size: (width, height) of the picture that the pixels are of.
        mode: "xyxy", or "xywh" with both borders counted in the width.
        extra_fields: More about each box: "scores" (N,) float32, "labels" (N,) int32 from 0.
    """

    def __init__(self, bbox: Tensor, size: tuple[int, int], mode: str = "xyxy", **extra_fields: Tensor):
        self.bbox, self.size, self.mode, self.extra_fields = bbox, size, mode, extra_fields
