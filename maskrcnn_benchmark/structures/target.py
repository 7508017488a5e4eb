"""Ground truth of one picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskrcnn_benchmark.structures.image_batch import ImageMeta
from maskrcnn_benchmark.structures.polygons import Polygons
from maskrcnn_benchmark.structures.prompt import Prompt


@dataclass
class Target:
    """N objects of one picture; all geometry in pixels of the *current* picture."""

    boxes: Tensor  # (N, 4) float32 xyxy
    labels: Tensor  # (N,) int64, contiguous from 1 (0 is background)
    meta: ImageMeta
    prompt: Prompt | None = None  # the text, and the characters each box owns
    positive_map: Tensor | None = None  # (N, L) float32
    masks: Tensor | None = None  # (N, h, w) bool
    polygons: Polygons | None = None  # of N objects
    image_labels: Tensor | None = None  # (K,) int64, contiguous from 1: what is in a picture that has no boxes
    token_labels: Tensor | None = (
        None  # (N,) int64, class of each box by the tokens that name it in any picture; -10: none
    )

    def __post_init__(self) -> None:
        n = len(self.labels)
        checked = (("boxes", (4,)), ("positive_map", None), ("token_labels", None))
        for name, value, width in ((name, getattr(self, name), width) for name, width in checked):
            if value is not None and (value.shape[0] != n or (width and value.shape[1:] != width)):
                raise ValueError(
                    f"{name} must have {n} rows{f' of {width[0]}' if width else ''}, got {tuple(value.shape)}"
                )
        if self.polygons is not None and len(self.polygons) != n:
            raise ValueError(f"polygons must be those of {n} objects, got {len(self.polygons)}")
        if self.masks is not None and self.masks.shape[0] != n:
            raise ValueError(f"masks must have {n} rows, got {tuple(self.masks.shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, keep: Tensor) -> Target:
        """The objects that a bool mask (N,) or an index (M,) chooses."""
        pick = {k: v[keep] for k in ("positive_map", "masks", "token_labels") if (v := getattr(self, k)) is not None}
        outlines = self.polygons
        if outlines is not None:
            outlines = tuple(outlines[i] for i in torch.arange(len(self))[keep.cpu()].tolist())
        return replace(self, boxes=self.boxes[keep], labels=self.labels[keep], polygons=outlines, **pick)

    def to(self, device: torch.device | str) -> Target:
        names = ("boxes", "labels", "positive_map", "masks", "image_labels", "token_labels")
        return replace(self, **{k: v.to(device) for k in names if (v := getattr(self, k)) is not None})
