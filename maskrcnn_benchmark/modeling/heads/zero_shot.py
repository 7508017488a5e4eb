"""Class scores by embeddings of class names, the same for classes seen in training and for others.

As in Detic (Zhou et al., ECCV 2022, https://github.com/facebookresearch/Detic) and in DECOLA (Cho and Krähenbühl, CVPR
2024, https://github.com/janghyuncho/DECOLA); parameters and buffers have the names, and the layouts, of their files.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Axis = Literal["channels", "queries"]


class ZeroShotClassifier(nn.Module):
    """Cosine of a projected feature and of embeddings of names, times a temperature, plus a bias.

    Args:
        table: (C, E) embeddings of any length; they are kept as a buffer of unit vectors, which is never trained.
        width: Of the features.
        temperature: See above.
        bias: First value of a learnt bias, the same for all classes; None: there is none.
        axis: What features are normalised over: their own ``channels``, or, each channel for itself, the ``queries`` of
            their picture.
        cosine: Without it neither features nor embeddings are normalised, and there is no temperature.
    """

    zs_weight: Tensor

    def __init__(
        self,
        table: Tensor,
        width: int = 256,
        temperature: float = 50.0,
        bias: float | None = None,
        axis: Axis = "channels",
        cosine: bool = True,
    ) -> None:
        super().__init__()
        self.temperature, self.axis, self.cosine = temperature, axis, cosine
        self.linear = nn.Linear(width, table.shape[-1])
        self.cls_bias = None if bias is None else nn.Parameter(torch.full((1,), bias))
        self.register_buffer("zs_weight", self.stored(self.unit(table.float())))

    def unit(self, table: Tensor) -> Tensor:
        """(..., E) embeddings as they are compared with features."""
        return F.normalize(table, dim=-1) if self.cosine else table

    def stored(self, rows: Tensor) -> Tensor:
        """(C, E) -> the buffer of a released file."""
        return rows

    @property
    def rows(self) -> Tensor:
        """(C, E), what features are compared with: embeddings of the classes that the network was built with."""
        return self.classes(self.zs_weight)

    def classes(self, stored: Tensor) -> Tensor:
        """(C, E) of the classes in the buffer of a file."""
        return stored

    def features(self, x: Tensor) -> Tensor:
        """(..., Q, width) -> (..., Q, E)."""
        projected = self.linear(x)
        if not self.cosine:
            return projected
        return self.temperature * F.normalize(projected, dim=-1 if self.axis == "channels" else -2)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(..., Q, width) -> logits (..., Q, C) of the classes of ``rows`` (C, E); None: its own."""
        return self.biased(self.features(x) @ (self.rows if rows is None else rows).t())

    def own(self, x: Tensor, rows: Tensor) -> Tensor:
        """(B, Q, width) -> (B, Q, 1), of one class for each query: ``rows`` (Q, E)."""
        return self.biased((self.features(x) * rows).sum(-1, keepdim=True))

    def biased(self, logits: Tensor) -> Tensor:
        """With the learnt bias."""
        return logits if self.cls_bias is None else logits + self.cls_bias


class PromptClassifier(ZeroShotClassifier):
    """DECOLA's: the last row is not of a class, it is that of the prompt for objects of any class.

    Args:
        table: (C + 1, E).
    """

    def classes(self, stored: Tensor) -> Tensor:
        return stored[:-1]

    @property
    def object_row(self) -> Tensor:
        """(1, E)."""
        return self.zs_weight[-1:]


class ColumnClassifier(ZeroShotClassifier):
    """That of a Deformable DETR in Detic and in DECOLA's baselines, with a column for each class.

    Released weights were trained with the axis ``queries``.
    """

    def stored(self, rows: Tensor) -> Tensor:
        return rows.t().contiguous()

    def classes(self, stored: Tensor) -> Tensor:
        return stored.t()


class RegionClassifier(ColumnClassifier):
    """That of CenterNet2 in Detic: after the classes comes the background, whose embedding is zero."""

    def stored(self, rows: Tensor) -> Tensor:
        return super().stored(torch.cat((rows, rows.new_zeros(1, rows.shape[1]))))

    @property
    def rows(self) -> Tensor:
        return self.zs_weight.t()

    def classes(self, stored: Tensor) -> Tensor:
        return super().classes(stored)[:-1]


def without_embeddings(model: nn.Module, object_prompt: bool) -> str | None:
    """What neither a table nor the weights brought the embedding of: a class (from 1), or the prompt for any object.

    Args:
        model: With classifiers of this module, or without.
        object_prompt: Whether that prompt is used.
    """
    for part in model.modules():
        if not isinstance(part, ZeroShotClassifier):
            continue
        if len(empty := (~part.classes(part.zs_weight).any(dim=1)).nonzero()):
            return f"class {int(empty[0]) + 1}"
        if object_prompt and isinstance(part, PromptClassifier) and not part.object_row.any():
            return "the prompt for objects of any class"
    return None
