"""What the two stages of a Deformable DETR say about a batch, for losses and for decoding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class QueryOutputs:
    """Q queries, or candidates, of each picture."""

    logits: Tensor  # (B, Q, C); where queries belong to classes C is 1: each query speaks of its own class only
    boxes: Tensor  # (B, Q, 4) cx, cy, w, h as shares of the picture's sides, padding excluded


@dataclass(frozen=True)
class DeformableOutputs:
    """A two-stage Deformable DETR's answers.

    With class names as prompts, the ``rank``-th best candidate of prompt ``k`` of K is number ``rank * K + k``, in the
    first stage (S candidates per prompt, or fewer) as among the queries.
    """

    layers: tuple[QueryOutputs, ...]  # after each decoder layer; the last one counts
    first_stage: QueryOutputs  # with prompts (B, S * K, 1), else (B, S, C): the candidates queries were chosen from
    query_class: Tensor | None = None  # (Q,) int64 from 0: the class that each query was made for
    first_stage_class: Tensor | None = None  # (S * K,) int64 from 0
