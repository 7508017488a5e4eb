"""What a detector found in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskrcnn_benchmark.structures.image_batch import ImageMeta


@dataclass
class Detections:
    """K boxes of one picture on the CPU, best first (ties keep their order)."""

    boxes: Tensor  # (K, 4) float32 xyxy, pixels of the upright picture on disk
    scores: Tensor  # (K,) float32
    labels: Tensor  # (K,) int64, ids of the prompt
    meta: ImageMeta
    masks: Tensor | None = None  # (K, h, w) bool
    names: Mapping[int, str] | None = None  # label -> what it is called

    def __post_init__(self) -> None:
        k = len(self.scores)
        if self.boxes.shape != (k, 4) or self.labels.shape != (k,):
            raise ValueError(
                f"expected boxes ({k}, 4) and labels ({k},) for {k} scores, "
                f"got {tuple(self.boxes.shape)} and {tuple(self.labels.shape)}"
            )
        if self.masks is not None and self.masks.shape[0] != k:
            raise ValueError(f"expected {k} masks, got {tuple(self.masks.shape)}")
        order = torch.argsort(self.scores, descending=True, stable=True)
        if not torch.equal(order, torch.arange(k, device=order.device)):
            self.boxes, self.scores, self.labels = self.boxes[order], self.scores[order], self.labels[order]
            self.masks = None if self.masks is None else self.masks[order]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: Tensor | slice) -> Detections:
        """The detections that a slice, a bool mask (K,) or an index (M,) chooses."""
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            masks=None if self.masks is None else self.masks[keep],
        )

    def filter(self, min_score: float) -> Detections:
        return self[self.scores >= min_score]

    def top_k(self, k: int) -> Detections:
        return self[:k]

    def name(self, index: int) -> str:
        """What detection number ``index`` is called; its label as text when no names are known."""
        label = int(self.labels[index])
        return (self.names or {}).get(label, str(label))

    @classmethod
    def of_input(
        cls, boxes: Tensor, scores: Tensor, labels: Tensor, meta: ImageMeta, names: Mapping[int, str] | None = None
    ) -> Detections:
        """Boxes in pixels of the network's input, on any device, as detections of the picture on disk.

        Corners are multiplied by the ratio of the sizes, although they count pixels from 0 to w - 1, as
        maskrcnn-benchmark and its descendants do.
        """
        (height, width), (orig_height, orig_width) = meta.size, meta.orig_size
        ratio = torch.tensor([orig_width / width, orig_height / height] * 2)
        return cls(boxes.cpu().float() * ratio, scores.cpu().float(), labels.cpu(), meta, names=names)

    @classmethod
    def empty(cls, meta: ImageMeta) -> Detections:
        return cls(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), meta)

    @classmethod
    def cat(cls, parts: Sequence[Detections]) -> Detections:
        """One picture's detections from several prompts."""
        if len({part.meta.image_id for part in parts}) != 1:
            raise ValueError(f"detections of different pictures: {sorted({str(p.meta.image_id) for p in parts})}")
        masks = [part.masks for part in parts]
        names = {label: name for part in parts for label, name in (part.names or {}).items()}
        return cls(
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.labels for part in parts]),
            parts[0].meta,
            None if any(mask is None for mask in masks) else torch.cat(masks),  # type: ignore[arg-type]
            names or None,
        )

    def to_coco(self, categories: Mapping[int, int] | None = None, plus_one: bool = False) -> list[dict[str, object]]:
        """COCO results: ``bbox`` is x, y, w, h; ``categories`` maps labels to category ids (default: the label).

        ``plus_one`` counts both border pixels (w = x2 - x1 + 1), as the maskrcnn-benchmark lineage does on COCO data.
        """
        boxes = self.boxes.clone()
        boxes[:, 2:] = boxes[:, 2:] - boxes[:, :2] + float(plus_one)
        rows = zip(boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {
                "image_id": self.meta.image_id,
                "category_id": label if categories is None else categories[label],
                "bbox": box,
                "score": score,
            }
            for box, score, label in rows
        ]
