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
