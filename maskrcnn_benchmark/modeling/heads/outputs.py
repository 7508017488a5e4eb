"""What a dense head returns for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass
class HeadOutputs:
    """Raw predictions of each pyramid level, finest first; n anchors per cell, n = 1 in FIBER and GLIP."""

    box_deltas: Sequence[Tensor]  # per level (B, n * 4, H, W), see BoxCoder
    centerness: Sequence[Tensor]  # per level (B, n, H, W) logits
    token_logits: Sequence[Tensor]  # per level (B, H * W * n, L): how well each anchor fits each token of the text
    cls_logits: Sequence[Tensor] | None = None  # per level (B, n * C, H, W), of a fixed list of classes


@dataclass
class TrainingOutputs(HeadOutputs):
    """What losses need besides; None where no loss asks for it."""

    place_logits: Sequence[Tensor] | None = None  # per level (B, H * W * n, T): of the T places in any text
    align_logits: Sequence[Tensor] | None = None  # per level (B, H * W * n, L): similarity of anchors and tokens
    guesses: Tensor | None = None  # (M, V): logits of the words hidden at M tokens of the batch, in row order
    pyramid: Sequence[Tensor] | None = None  # per level (B, C, H, W), from before the tower
    text: Tensor | None = None  # (B, L, D), what words are judged by


@dataclass
class QueryOutputs:
    """What Q queries say after each of N decoder layers; the last layer's word counts."""

    logits: Tensor  # (N, B, Q, C): which tokens a query is about; the last column: no object
    boxes: Tensor  # (N, B, Q, 4) cx, cy, w, h as shares of the picture's sides
    queries: Tensor | None = None  # (N, B, Q, E) unit vectors, and
    tokens: Tensor | None = None  # (B, T, E) unit vectors that those of their tokens are compared with
    image_summary: Tensor | None = None  # (B, E), of whole pictures, and
    text_summary: Tensor | None = None  # (B, E), of whole texts


def cell_rows(x: Tensor, width: int) -> Tensor:
    """(B, n * width, H, W), n anchors per cell -> (B, H * W * n, width) in the order of the anchors."""
    return x.unflatten(1, (-1, width)).permute(0, 3, 4, 1, 2).flatten(1, 3)
