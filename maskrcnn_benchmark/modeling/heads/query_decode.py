"""From what queries say to boxes, scores and masks of the picture on disk, as MDETR does it: no clipping, no NMS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from maskrcnn_benchmark.structures import ImageMeta
from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy

Size = tuple[int, int]
NEAR = 0.25  # part of the probability of a query's likeliest word that its other words have at least


@dataclass(frozen=True)
class Answers:
    """K answers of the queries of a picture."""

    boxes: Tensor  # (K, 4) xyxy, pixels of the picture on disk
    scores: Tensor  # (K,)
    labels: Tensor  # (K,) int64
    query: Tensor  # (K,) int64, whose answer it is
    names: Mapping[int, str] | None = None  # label -> words, where each query chose its own

    @classmethod
    def cat(cls, parts: Sequence[Answers]) -> Answers:
        """Those of several questions."""
        return cls(
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.query for part in parts]),
        )


def object_scores(logits: Tensor) -> Tensor:
    """How likely each query has found something of the caption: (..., C) -> (...)."""
    return 1 - logits.softmax(-1)[..., -1]


def find_objects(logits: Tensor, boxes: Tensor, meta: ImageMeta, label: int = 1) -> Answers:
    """An answer per query, of one label: all that the caption speaks of.

    Args:
        logits: (Q, C).
        boxes: (Q, 4) as in QueryOutputs.
        meta: Of the picture.
    """
    number = torch.arange(len(logits), device=logits.device)
    return Answers(_on_disk(boxes, meta), object_scores(logits), torch.full_like(number, label), number)


def find_phrases(logits: Tensor, boxes: Tensor, meta: ImageMeta, tokens: Tensor, ids: tuple[int, ...]) -> Answers:
    """An answer per phrase and query; its score is the largest probability of a token of the phrase.

    Args:
        logits: (Q, C).
        boxes: (Q, 4) as in QueryOutputs.
        meta: Of the picture.
        tokens: (P, T) bool, those of each phrase.
        ids: Labels of the P phrases.
    """
    probabilities = logits.softmax(-1)[:, : tokens.shape[1]]
    scores = (probabilities * tokens[:, None, : probabilities.shape[1]]).amax(-1)
    phrases, queries = scores.shape
    number = torch.arange(queries, device=logits.device).repeat(phrases)
    labels = torch.tensor(ids, device=logits.device).repeat_interleave(queries)
    return Answers(_on_disk(boxes, meta)[number], scores.flatten(), labels, number)


def own_words(logits: Tensor, tokens: Tensor) -> Tensor:
    """The words that each query speaks of: the likeliest one, and those that come near it.

    Args:
        logits: (Q, C).
        tokens: (W, T) bool, those of each word.

    Returns:
        (Q, W) bool.
    """
    if not len(tokens):
        return tokens.new_zeros(len(logits), 0)
    probabilities = logits.softmax(-1)[:, None, : tokens.shape[1]]
    words = (probabilities * tokens[:, : probabilities.shape[2]]).amax(-1)
    return words >= NEAR * words.amax(1, keepdim=True)


def masks_on_disk(logits: Tensor, padded: Size, meta: ImageMeta) -> Tensor:
    """Masks of the picture on disk.

    Args:
        logits: (K, h, w), of the padded batch.
        padded: (H, W) of the batch.
        meta: Of the picture.

    Returns:
        (K, orig_h, orig_w) bool.
    """
    if not len(logits):
        return torch.zeros(0, *meta.orig_size, dtype=torch.bool, device=logits.device)
    full = F.interpolate(logits[:, None], size=padded, mode="bilinear", align_corners=False)
    own = full[..., : meta.size[0], : meta.size[1]]
    return F.interpolate(own, size=meta.orig_size, mode="bilinear", align_corners=False)[:, 0] > 0


def _on_disk(boxes: Tensor, meta: ImageMeta) -> Tensor:
    height, width = meta.orig_size
    return cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])
