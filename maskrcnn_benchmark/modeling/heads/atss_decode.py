"""From raw outputs of a dense grounding head to boxes (ATSS post-processing of GLIP and FIBER)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.assign.box_coder import BoxCoder
from maskrcnn_benchmark.modeling.heads.outputs import HeadOutputs
from maskrcnn_benchmark.modeling.heads.select import Boxes, select
from maskrcnn_benchmark.structures import boxes as geometry

ScoreAgg = Literal["MEAN", "MAX", "POWER", "ONEHOT"]


@dataclass(frozen=True)
class _Columns:
    """The score columns of one prompt that can be other than zero, in ascending order of their labels."""

    labels: Tensor  # (K,) int64
    tokens: Tensor  # (U,) int64: tokens that any entity owns
    owns: Tensor  # (K, U) bool


class AtssDecode:
    """Candidates per level, then class-aware NMS per picture.

    Only the tokens that entities own and the columns of those entities are computed; the reference's table of a fixed
    width holds zeros elsewhere, which no threshold >= 0 lets through.

    Args:
        score_agg: how token probabilities make an entity's score: MEAN, MAX, POWER (geometric mean), or ONEHOT (token
            j alone, label j + 1, for as many tokens as there are entities).
        threshold: of an entity's score, tested before it is multiplied by the centerness.
        pre_nms_top_n: candidates kept per level.
        nms_threshold: IoU; 0 or less turns NMS off.
        max_detections: per picture; ties with the last one are kept too. 0 or less keeps all.
        table_columns: refuse labels beyond it; None takes any.
    """

    def __init__(
        self,
        score_agg: ScoreAgg = "MEAN",
        threshold: float = 0.05,
        pre_nms_top_n: int = 1000,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        table_columns: int | None = None,
        box_coder: BoxCoder | None = None,
        plus_one: bool = True,
    ):
        if score_agg not in ("MEAN", "MAX", "POWER", "ONEHOT"):
            raise ConfigError(
                f"MODEL.DYHEAD.SCORE_AGG: no way to aggregate called {score_agg!r}; choose MEAN, MAX, POWER or ONEHOT"
            )
        self.score_agg = score_agg
        self.threshold = threshold
        self.pre_nms_top_n = pre_nms_top_n
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.table_columns = table_columns
        self.plus_one = plus_one
        self.box_coder = box_coder or BoxCoder(plus_one=plus_one)

    @torch.no_grad()
    def __call__(
        self,
        outputs: HeadOutputs,
        anchors: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        entity_tokens: Sequence[Tensor],
        ids: Sequence[Sequence[int]],
    ) -> list[Boxes]:
        """Decode a batch.

        Args:
            anchors: per level (A_l, 4) xyxy in pixels of the network's input.
            sizes: per picture (h, w) before padding; boxes are clipped to it.
            entity_tokens: per picture (K, L) bool. ids: per picture K labels, from 1.

        Returns:
            Per picture boxes in pixels of the network's input, scores and labels, in the order of levels and cells.
        """
        plans = [self._columns(tokens, labels) for tokens, labels in zip(entity_tokens, ids, strict=True)]
        found = []
        for i, (size, columns) in enumerate(zip(sizes, plans, strict=True)):
            levels = zip(outputs.token_logits, outputs.centerness, outputs.box_deltas, anchors, strict=True)
            parts = [
                self._level(logits[i], ctr[i], deltas[i], boxes, columns, size) for logits, ctr, deltas, boxes in levels
            ]
            boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
            found.append(select(boxes, scores, labels, self.nms_threshold, self.max_detections, self.plus_one))
        return found

    def _columns(self, entity_tokens: Tensor, ids: Sequence[int]) -> _Columns:
        limit = self.table_columns
        for label in ids:
            if label < 1 or (limit is not None and label > limit):
                wanted = "labels start at 1" if label < 1 else f"the score table has {limit} columns"
                raise ConfigError(
                    f"label {label} has no score column: {wanted}; "
                    f"set TEST.MDETR_STYLE_AGGREGATE_CLASS_NUM to at least {max(ids)}"
                )
        named = entity_tokens.any(1)
        if self.score_agg == "ONEHOT":
            tokens = torch.arange(int(named.sum()), device=entity_tokens.device)
            return _Columns(tokens + 1, tokens, torch.eye(len(tokens), dtype=torch.bool, device=tokens.device))
        labels = torch.tensor(ids, dtype=torch.int64, device=entity_tokens.device)
        order = labels.argsort(stable=True)
        order = order[named[order]]
        tokens = entity_tokens.any(0).nonzero().squeeze(1)
        return _Columns(labels[order], tokens, entity_tokens[order][:, tokens])

    def _scores(self, logits: Tensor, columns: _Columns) -> Tensor:
        """(A, L) logits -> (A, K) score of each column."""
        prob = logits.index_select(1, columns.tokens).float().sigmoid()
        if self.score_agg == "ONEHOT":
            return prob
        if self.score_agg == "MEAN":
            return prob @ columns.owns.t().to(prob.dtype) / columns.owns.sum(1)
        if self.score_agg == "POWER":
            return torch.stack([prob[:, own].prod(1) ** (1 / int(own.sum())) for own in columns.owns], dim=1)
        return torch.stack([prob[:, own].amax(1) for own in columns.owns], dim=1)

    def _level(
        self,
        logits: Tensor,
        centerness: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        columns: _Columns,
        size: tuple[int, int],
    ) -> Boxes:
        """Candidates of one level of one picture: (A, L), (n, H, W), (n * 4, H, W), (A, 4)."""
        if len(columns.labels) == 0:
            return anchors.new_zeros(0, 4), anchors.new_zeros(0), columns.labels
        scores = self._scores(logits, columns)
        candidates = (scores > self.threshold).flatten().nonzero().squeeze(1)
        place = candidates.div(scores.shape[1], rounding_mode="floor")
        ctr = centerness.permute(1, 2, 0).flatten().float().sigmoid()
        values = scores.flatten()[candidates] * ctr[place]
        values, best = values.topk(min(len(values), self.pre_nms_top_n), sorted=False)
        place, column = place[best], candidates[best] % scores.shape[1]
        per_anchor = deltas.reshape(-1, 4, *deltas.shape[1:]).permute(2, 3, 0, 1).reshape(-1, 4)
        boxes = self.box_coder.decode(per_anchor[place].float(), anchors[place])
        boxes = geometry.clip(boxes, size, self.plus_one)
        keep = geometry.large_enough(boxes, 0, self.plus_one)
        return boxes[keep], values.sqrt()[keep], columns.labels[column][keep]
