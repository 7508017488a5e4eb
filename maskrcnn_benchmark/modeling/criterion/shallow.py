"""The shallow contrastive loss of FIBER: pyramid features of anchors against the words of all texts of a batch.

https://github.com/microsoft/FIBER, fine_grained. Words of another text count as right where they name the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from maskrcnn_benchmark.layers.losses import pairing_loss
from maskrcnn_benchmark.modeling.interface import ALONE, Batch, Peers
from maskrcnn_benchmark.structures import Target

NO_CLASS = -1  # of anchors and tokens that name no class: they meet in their own text only


@dataclass(frozen=True)
class ShallowSampling:
    """Which anchors take part.

    ``anchors``: "positive", those with an object; "reference", those whose object is not the first of its picture, as
    in the released code, by mistake. ``padding`` of pictures with fewer anchors than others: "none", or "negatives",
    random anchors that match no word.
    """

    most: int = 100  # per picture; more are sampled down to it
    padding: Literal["none", "negatives"] = "negatives"
    anchors: Literal["positive", "reference"] = "positive"


@dataclass(frozen=True)
class Side:
    """R anchors, or the T tokens of a batch."""

    features: Tensor  # (R, D)
    picture: Tensor  # (R,) int64, number in the batch
    place: Tensor  # (R,) int64: the object's number in its picture (-1: none), or the token's in its text
    classes: Tensor  # (R,) int64, NO_CLASS: none

    def projected(self, projection: Callable[[Tensor], Tensor]) -> Side:
        """With unit vectors of another space as features."""
        return replace(self, features=F.normalize(projection(self.features), dim=-1))


def shallow_rows(
    pyramid: Sequence[Tensor], match: Tensor, batch: Batch, sampling: ShallowSampling, peers: Peers = ALONE
) -> Side:
    """Features of anchors.

    Args:
        pyramid: Per level (B, C, H_l, W_l), one anchor for each cell.
        match: (B, A) number of each anchor's object, -1: none.
        batch: For its classes, and for the generator of its draws.
        sampling: Which anchors.
        peers: The processes that share the batch.
    """
    cells = torch.cat([x.flatten(2) for x in pyramid], dim=2)  # (B, C, A)
    chosen = sample_anchors(match, sampling, batch.rng or Random(0), peers)
    features, pictures, places, classes = [], [], [], []
    for i, (index, target) in enumerate(zip(chosen, batch.targets, strict=True)):
        index = index.to(match.device)
        objects = match[i][index]
        known = objects.new_full((len(target),), NO_CLASS) if target.token_labels is None else target.token_labels
        features.append(cells[i][:, index].t())
        pictures.append(torch.full_like(objects, i))
        places.append(objects)
        classes.append(torch.cat((known, known.new_full((1,), NO_CLASS)))[objects])
    return Side(torch.cat(features), torch.cat(pictures), torch.cat(places), torch.cat(classes))


def sample_anchors(match: Tensor, sampling: ShallowSampling, rng: Random, peers: Peers = ALONE) -> list[Tensor]:
    """Numbers of the anchors that take part, per picture: those with objects first, each part in ascending order."""
    first = {"positive": 0, "reference": 1}[sampling.anchors]
    eligible = [(row >= first).nonzero().flatten().tolist() for row in match]
    chosen = [sorted(rng.sample(own, sampling.most)) if len(own) >= sampling.most else own for own in eligible]
    if sampling.padding == "negatives":
        longest = int(torch.cat(list(peers.gather(match.new_tensor([len(own) for own in chosen])))).amax())
        for i, own in enumerate(eligible):
            taken = set(own)
            others = [anchor for anchor in range(match.shape[1]) if anchor not in taken]
            wanted = min(longest - len(chosen[i]), len(others))
            chosen[i] = chosen[i] + sorted(rng.sample(others, wanted))
    return [torch.tensor(own, dtype=torch.int64) for own in chosen]


def shallow_columns(text: Tensor, mask: Tensor, batch: Batch) -> Side:
    """Features of the tokens (B, L, D) that count, where the mask (B, L) is 1."""
    picture, place = mask.nonzero(as_tuple=True)
    labels = batch.token_labels
    classes = torch.full_like(place, NO_CLASS) if labels is None else labels[picture, place].long()
    return Side(text[picture, place], picture, place, classes)


def shallow_loss(rows: Side, columns: Side, log_scale: Tensor, targets: Sequence[Target], peers: Peers) -> Tensor:
    """Half the sum over this process' anchors, and half that over its tokens, against those of all processes."""
    own_rows, all_rows, row_classes = _gathered(rows, peers)
    own_columns, all_columns, column_classes = _gathered(columns, peers)
    logits = all_rows @ all_columns.t() / log_scale.exp()
    pairs = (row_classes[:, None] == column_classes) & (row_classes[:, None] >= 0)
    together = rows.picture[:, None] == columns.picture
    pairs[own_rows, own_columns] = torch.where(together, _owned(rows, columns, targets), pairs[own_rows, own_columns])
    anchors = pairing_loss(logits[own_rows], pairs[own_rows])
    tokens = pairing_loss(logits[:, own_columns].t(), pairs[:, own_columns].t())
    return (anchors.sum() + tokens.sum()) / 2


def _gathered(side: Side, peers: Peers) -> tuple[slice, Tensor, Tensor]:
    """The place of a process' own part in what all have, and the features and classes of all."""
    features, classes = peers.gather(side.features), peers.gather(side.classes)
    begin = sum(len(part) for part in features[: peers.rank])
    return slice(begin, begin + len(side.features)), torch.cat(list(features)), torch.cat(list(classes))


def _owned(rows: Side, columns: Side, targets: Sequence[Target]) -> Tensor:
    """(R, T) bool: tokens that the object of an anchor owns, were its text the only one."""
    out = torch.zeros(len(rows.place), len(columns.place), dtype=torch.bool, device=rows.place.device)
    for i, target in enumerate(targets):
        assert target.positive_map is not None
        with_object = ((rows.picture == i) & (rows.place >= 0)).nonzero().flatten()
        tokens = (columns.picture == i).nonzero().flatten()
        tokens = tokens[columns.place[tokens] < target.positive_map.shape[1]]
        out[with_object[:, None], tokens] = target.positive_map[rows.place[with_object]][:, columns.place[tokens]] > 0
    return out
