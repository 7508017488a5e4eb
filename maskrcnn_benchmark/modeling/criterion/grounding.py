"""Losses of GLIP (Li et al., CVPR 2022) and FIBER (Dou et al., NeurIPS 2022), each under its name there.

Sums are divided by counts that are averaged over all processes, so that the mean of the processes' gradients is the
gradient of the whole batch. All is computed in float32 at least, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.layers.losses import alignment_loss, class_focal_loss, giou_loss, sigmoid_focal_loss
from maskrcnn_benchmark.modeling.assign.atss import atss_assign, centerness_targets
from maskrcnn_benchmark.modeling.assign.box_coder import BoxCoder
from maskrcnn_benchmark.modeling.criterion.shallow import ShallowSampling, shallow_columns, shallow_loss, shallow_rows
from maskrcnn_benchmark.modeling.heads.outputs import TrainingOutputs, cell_rows
from maskrcnn_benchmark.modeling.interface import ALONE, Batch, Losses, Peers
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.text.masking import NOT_ASKED


@dataclass(frozen=True)
class Positives:
    """The P anchors of a batch that have an object, picture by picture."""

    where: Tensor  # (B, A) bool
    anchors: Tensor  # (P, 4) xyxy
    boxes: Tensor  # (P, 4) xyxy, their objects
    centerness: Tensor  # (P,), how central they lie in them
    count: Tensor  # mean of P over the processes, at least 1


@dataclass(frozen=True)
class Matched:
    """A batch with predictions, and which anchor has which object."""

    outputs: TrainingOutputs  # float32 at least
    batch: Batch
    mask: Tensor  # (B, L), 1 at tokens that count
    match: Tensor  # (B, A) int64 number of the object in its picture, -1: none
    positives: Positives
    peers: Peers


class GroundingCriterion(nn.Module):
    """Matches anchors to objects and adds up losses.

    Args:
        weights: Losses to compute, by name, and what each is multiplied with in the total.
        topk: Candidates of an object on each level, for the assignment.
        token_alpha: Of the focal losses of words, see :func:`sigmoid_focal_loss`.
        token_gamma: Of the same.
        num_tokens: Length of a full text. The last place of a text stands for "no object" in anchors without one, and
            counts where a text is so long.
        shallow: How ``loss_shallow_contrastive`` picks anchors. The next three are for this loss alone.
        shallow_dims: Width of the pyramid, and of the text.
        shallow_width: Of the space in which it compares them.
        shallow_log_scale: Initial logarithm of its temperature.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        topk: int = 9,
        token_alpha: float = 0.25,
        token_gamma: float = 2.0,
        num_tokens: int = 256,
        shallow: ShallowSampling | None = None,
        shallow_dims: tuple[int, int] = (256, 768),
        shallow_width: int = 64,
        shallow_log_scale: float = 0.0,
    ):
        super().__init__()
        if unknown := sorted(set(weights) - set(LOSSES)):
            raise ValueError(f"no losses called {', '.join(unknown)}; there are {', '.join(LOSSES)}")
        self.weights = dict(weights)
        self.topk, self.token_alpha, self.token_gamma, self.num_tokens = topk, token_alpha, token_gamma, num_tokens
        self.coder = BoxCoder()
        self.shallow = shallow or ShallowSampling()
        if "loss_shallow_contrastive" in weights:
            self.shallow_contrastive_projection_image = _projection(shallow_dims[0], shallow_width)
            self.shallow_contrastive_projection_text = _projection(shallow_dims[1], shallow_width)
            self.shallow_log_scale = nn.Parameter(torch.full((1,), float(shallow_log_scale)))

    def forward(
        self, outputs: TrainingOutputs, anchors: Sequence[Tensor], batch: Batch, mask: Tensor, peers: Peers = ALONE
    ) -> Losses:
        """Losses of a batch.

        Args:
            outputs: Of the head.
            anchors: Per level (A_l, 4) xyxy in pixels of the padded pictures.
            batch: Its targets have ``positive_map``; their boxes are in pixels of the padded pictures.
            mask: (B, L), 1 at tokens that count.
            peers: The processes that share the batch.
        """
        with torch.autocast(mask.device.type, enabled=False):
            match = self.match(anchors, batch.targets)
            positives = self._positives(torch.cat(list(anchors)), batch.targets, match, peers)
            seen = Matched(_at_least_float(outputs), batch, mask, match, positives, peers)
            terms = {name: LOSSES[name](self, seen) for name in self.weights}
        metrics = {"positive_anchors": positives.where.sum().float()}
        return Losses(terms, dict(self.weights), metrics)

    def match(self, anchors: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """(B, A) int64: the number of each anchor's object among those of its picture, -1 for background."""
        return torch.stack([atss_assign(anchors, target.boxes, self.topk) for target in targets])

    def _positives(self, anchors: Tensor, targets: Sequence[Target], match: Tensor, peers: Peers) -> Positives:
        where = match >= 0
        owners = anchors.expand(len(match), -1, -1)[where]
        rows = zip(targets, match, where, strict=True)
        boxes = torch.cat([target.boxes[row[chosen]] for target, row, chosen in rows]).to(anchors.dtype)
        weights = centerness_targets((owners[:, :2] + owners[:, 2:]) / 2, boxes)
        count = peers.mean(where.sum().to(anchors.dtype)).clamp(min=1)
        return Positives(where, owners, boxes, weights, count)

    def boxes(self, seen: Matched) -> Tensor:
        """GIoU loss of the positive anchors' boxes, the more central ones counting more."""
        found = seen.positives
        deltas = _flat(seen.outputs.box_deltas, 4)[found.where]
        decoded = self.coder.decode(deltas, found.anchors)
        total = (giou_loss(decoded, found.boxes) * found.centerness).sum()
        return total / _divisor(found.centerness.sum(), seen.peers)

    def centerness(self, seen: Matched) -> Tensor:
        """Cross-entropy of centerness (FCOS, https://arxiv.org/abs/1904.01355) of the positive anchors."""
        found = seen.positives
        logits = _flat(seen.outputs.centerness, 1)[found.where].squeeze(1)
        total = F.binary_cross_entropy_with_logits(logits, found.centerness.to(logits.dtype), reduction="sum")
        return total / found.count

    def classes(self, seen: Matched) -> Tensor:
        """Focal loss of the fixed classifier."""
        maps = _given(seen.outputs.cls_logits, "cls_logits")
        per_cell = seen.outputs.centerness[0].shape[1]
        logits = _flat(maps, maps[0].shape[1] // per_cell)
        none = seen.match.new_zeros(1)
        rows = [torch.cat((t.labels, none))[row] for t, row in zip(seen.batch.targets, seen.match, strict=True)]
        return class_focal_loss(logits.flatten(0, 1), torch.cat(rows)).sum() / seen.positives.count

    def words(self, seen: Matched) -> Tensor:
        """Focal loss of word logits: an anchor says yes to the words of its object, and no to all others."""
        return self._token_focal(seen.outputs.token_logits, seen)

    def places(self, seen: Matched) -> Tensor:
        """The same of logits that know the place of a word, and not the word."""
        return self._token_focal(_given(seen.outputs.place_logits, "place_logits"), seen)

    def _token_focal(self, levels: Sequence[Tensor], seen: Matched) -> Tensor:
        length = int(seen.mask.any(0).nonzero().amax()) + 1  # the rest is padding in every text
        logits = torch.cat([level[..., :length] for level in levels], dim=1)
        targets = self.token_targets(seen, length).to(logits.dtype)
        loss = sigmoid_focal_loss(logits, targets, self.token_alpha, self.token_gamma)
        return (loss * seen.mask[:, None, :length]).sum() / seen.positives.count

    def token_targets(self, seen: Matched, length: int) -> Tensor:
        """(B, A, length) bool: the tokens of each anchor's object."""
        none = torch.zeros(1, length, dtype=torch.bool, device=seen.match.device)
        none[:, self.num_tokens - 1 :] = True
        return _tokens_of_anchors(seen, none)

    def alignment(self, seen: Matched) -> Tensor:
        """Contrastive alignment of anchors and tokens; padding of shorter texts in a batch takes part, as in MDETR."""
        text = _given(seen.batch.text, "text")
        length = int(text.attention_mask.sum(1).amax())
        levels = _given(seen.outputs.align_logits, "align_logits")
        logits = torch.cat([level[..., :length] for level in levels], dim=1)
        none = torch.zeros(1, length, dtype=torch.bool, device=seen.match.device)
        return alignment_loss(logits, _tokens_of_anchors(seen, none)).sum() / seen.positives.count

    def hidden_words(self, seen: Matched) -> Tensor:
        """Cross-entropy of the words that were hidden; 0 where there are none."""
        labels = _given(seen.batch.word_labels, "word_labels")
        wanted = labels[labels != NOT_ASKED]
        total = F.cross_entropy(_given(seen.outputs.guesses, "guesses"), wanted, reduction="sum")
        return total / _divisor(total.new_tensor(len(wanted)), seen.peers)

    def shallow_contrast(self, seen: Matched) -> Tensor:
        """Contrastive loss between what the pyramid holds at positive anchors and the words of the whole batch."""
        text = _given(seen.outputs.text, "text")
        pyramid = _given(seen.outputs.pyramid, "pyramid")
        rows = shallow_rows(pyramid, seen.match, seen.batch, self.shallow, seen.peers)
        columns = shallow_columns(F.normalize(text, dim=-1), seen.mask, seen.batch)
        rows = rows.projected(self.shallow_contrastive_projection_image)
        columns = columns.projected(self.shallow_contrastive_projection_text)
        total = shallow_loss(rows, columns, self.shallow_log_scale, seen.batch.targets, seen.peers)
        return total / seen.positives.count


LOSSES: dict[str, Callable[[GroundingCriterion, Matched], Tensor]] = {
    "loss_reg": GroundingCriterion.boxes,
    "loss_centerness": GroundingCriterion.centerness,
    "loss_cls": GroundingCriterion.classes,
    "loss_dot_product_token": GroundingCriterion.words,
    "loss_token": GroundingCriterion.places,
    "loss_contrastive_align": GroundingCriterion.alignment,
    "mlm_loss": GroundingCriterion.hidden_words,
    "loss_shallow_contrastive": GroundingCriterion.shallow_contrast,
}


def _tokens_of_anchors(seen: Matched, none: Tensor) -> Tensor:
    """(B, A, L) bool, tokens of each anchor's object; ``none`` (1, L) for anchors without one."""
    length = none.shape[1]
    tables = []
    for target in seen.batch.targets:
        owned = _given(target.positive_map, "positive_map")[:, :length] > 0
        owned = F.pad(owned, (0, length - owned.shape[1]))
        tables.append(torch.cat((owned, none)))  # -1, no object, is the last row
    return torch.stack([table[row] for table, row in zip(tables, seen.match, strict=True)])


def _flat(levels: Sequence[Tensor], width: int) -> Tensor:
    """Per level (B, n * width, H, W), n anchors per cell -> (B, A, width) in the order of the anchors."""
    return torch.cat([cell_rows(x, width) for x in levels], dim=1)


def _divisor(total: Tensor, peers: Peers) -> Tensor:
    """Mean of a sum over the processes; 1 where there is nothing to divide."""
    mean = peers.mean(total.detach())
    return torch.where(mean > 0, mean, torch.ones_like(mean))


def _given(value: Any, name: str) -> Any:
    if value is None:
        raise ValueError(f"a loss needs {name}, which the batch or the head does not have")
    return value


def _at_least_float(outputs: TrainingOutputs) -> TrainingOutputs:
    """The same without half precision."""

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        return None if value is None else [cast(part) for part in value]

    return replace(outputs, **{field.name: cast(getattr(outputs, field.name)) for field in fields(outputs)})


def _projection(width: int, out_width: int) -> nn.Linear:
    linear = nn.Linear(width, out_width)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
