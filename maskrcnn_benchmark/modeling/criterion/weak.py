"""Losses of pictures of which only the classes are known, as in Detic (Zhou et al., ECCV 2022,
https://github.com/facebookresearch/Detic): a class is learnt from one query or proposal of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Select = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(P, C) logits, (P,) areas, (K,) columns of the classes -> (K,) which of the P each class is learnt from."""


def largest(logits: Tensor, areas: Tensor, columns: Tensor) -> Tensor:
    """The one with the largest box; the first of equal ones."""
    return areas.argmax().expand(len(columns))


def surest(logits: Tensor, areas: Tensor, columns: Tensor) -> Tensor:
    """For each class the one that is surest of it."""
    return logits[:, columns].argmax(0)


def first(logits: Tensor, areas: Tensor, columns: Tensor) -> Tensor:
    """The first one."""
    return torch.zeros_like(columns)


def last(logits: Tensor, areas: Tensor, columns: Tensor) -> Tensor:
    """The last one, which is the picture itself where that is appended to the proposals."""
    return torch.full_like(columns, len(logits) - 1)


def cheapest(logits: Tensor, areas: Tensor, columns: Tensor) -> Tensor:
    """For each class the one whose loss is smallest."""
    return (F.softplus(logits).sum(1, keepdim=True) - logits[:, columns]).argmin(0)


SELECT: dict[str, Select] = {
    "max_size": largest,
    "max_score": surest,
    "first": first,
    "image": last,
    "min_loss": cheapest,
}
"""What an image-label loss can be called."""


def image_label_loss(logits: Tensor, areas: Tensor, columns: Tensor, select: Select = largest) -> Tensor:
    """Binary cross-entropy of a picture, summed over the classes, mean over its labels; 0 without labels.

    Args:
        logits: (P, C) of P queries or proposals, P > 0.
        areas: (P,) of their boxes; fewer where the last ones are not to be chosen by size.
        columns: (K,) int64, those of the labels.
        select: What a label is learnt from.
    """
    if not len(columns):
        return logits.sum() * 0
    with torch.no_grad():
        rows = select(logits, areas, columns)
    wanted = F.one_hot(columns, logits.shape[1]).to(logits)
    return F.binary_cross_entropy_with_logits(logits[rows], wanted, reduction="none").sum(1).mean()


def image_labels_loss(logits: Tensor, areas: Tensor, columns: Sequence[Tensor], select: Select = largest) -> Tensor:
    """Mean over B pictures: (B, P, C), (B, P), B times (K,)."""
    parts = [image_label_loss(*rows, select) for rows in zip(logits, areas, columns, strict=True)]
    return torch.stack(parts).mean()
