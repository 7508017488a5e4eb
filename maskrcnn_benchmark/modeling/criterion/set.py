"""Losses of MDETR (Kamath et al., ICCV 2021, https://github.com/ashkamath/mdetr), each under its name there.

Sums are divided by the number of objects, averaged over all processes, so that the mean of the processes' gradients is
the gradient of the whole batch. All is computed in float32 at least, also under autocast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.layers.losses import alignment_loss, sigmoid_focal_loss
from maskrcnn_benchmark.modeling.assign.hungarian import HungarianMatcher, Pairs
from maskrcnn_benchmark.modeling.heads.outputs import QueryOutputs
from maskrcnn_benchmark.modeling.interface import ALONE, Losses, Peers
from maskrcnn_benchmark.structures import Target
from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy, giou_of_pairs, xyxy_to_cxcywh

BATCHWISE = ("contrastive_loss",)  # not of single queries: has no part for earlier layers
MASKS = ("loss_mask", "loss_dice")  # of the last layer alone
LOSSES = ("loss_ce", "loss_bbox", "loss_giou", "loss_contrastive_align", *MASKS, *BATCHWISE)


@dataclass(frozen=True)
class Objects:
    """The n objects of a batch, picture by picture."""

    boxes: Tensor  # (n, 4) cx, cy, w, h as shares of the picture's sides
    tokens: Tensor  # (n, C) float32, 1 at each object's tokens
    counts: list[int]  # per picture


@dataclass(frozen=True)
class SetCriterion:
    """Adds up losses of queries and the objects that they are matched with.

    Args:
        weights: Losses to compute, by name, and what each is multiplied with in the total.
        matcher: Says which query has which object.
        no_object: What a query without object counts in ``loss_ce``.
        temperature: Of ``loss_contrastive_align`` and ``contrastive_loss``.
        every_layer: Whether earlier decoder layers have losses too, named ``loss_ce_0`` and so on.
    """

    weights: Mapping[str, float]
    matcher: HungarianMatcher
    no_object: float = 0.1
    temperature: float = 0.07
    every_layer: bool = True

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.weights) - set(LOSSES)):
            raise ValueError(f"no losses called {', '.join(unknown)}; there are {', '.join(LOSSES)}")

    def match(self, outputs: QueryOutputs, targets: Sequence[Target]) -> list[Pairs]:
        """The pairs of each decoder layer that has losses, the last layer's at the end."""
        objects = objects_of(targets, outputs.logits.shape[-1])
        first = 0 if self.every_layer else -1
        logits, boxes = outputs.logits[first:].detach(), outputs.boxes[first:].detach()
        with torch.autocast(logits.device.type, enabled=False):
            return self.matcher(_full(logits), _full(boxes), objects.tokens, objects.boxes, objects.counts)

    def __call__(
        self,
        outputs: QueryOutputs,
        targets: Sequence[Target],
        pairs: Sequence[Pairs],
        masks: Tensor | None = None,
        peers: Peers = ALONE,
    ) -> Losses:
        """Losses of a batch.

        Args:
            outputs: Of the queries.
            targets: With ``positive_map``, the tokens of each object; boxes in pixels of the network's input.
            pairs: From :meth:`match`.
            masks: (M, h, w) logits for the M pairs of the last layer, of the padded batch, where masks are learnt.
            peers: The processes that share the batch.

        Raises:
            DataError: the masks of a picture are missing, or of another size.
        """
        with torch.autocast(outputs.logits.device.type, enabled=False):
            objects = objects_of(targets, outputs.logits.shape[-1])
            count = peers.mean(objects.boxes.new_tensor(float(len(objects.boxes)))).clamp(min=1)
            terms: dict[str, Tensor] = {}
            metrics: dict[str, Tensor] = {}
            for step, found in enumerate(reversed(pairs)):
                layer = len(outputs.logits) - 1 - step
                ending = f"_{layer}" if step else ""
                terms |= {
                    f"{name}{ending}": value / count for name, value in self._layer(outputs, layer, found, objects)
                }
                metrics[f"cardinality_error{ending}"] = cardinality_error(outputs.logits[layer], objects.counts)
            if masks is not None:
                terms |= {name: value / count for name, value in self._masks(_full(masks), targets, pairs[-1])}
            if "contrastive_loss" in self.weights:
                assert outputs.image_summary is not None
                assert outputs.text_summary is not None
                terms["contrastive_loss"] = contrastive_loss(
                    _full(outputs.image_summary), _full(outputs.text_summary), self.temperature
                )
        return Losses(terms, {name: self.weights[_base(name)] for name in terms}, metrics)

    def _layer(self, outputs: QueryOutputs, layer: int, pairs: Pairs, objects: Objects) -> list[tuple[str, Tensor]]:
        """Sums of one decoder layer."""
        logits, boxes = _full(outputs.logits[layer]), _full(outputs.boxes[layer])
        tokens = objects.tokens[pairs.target]
        own, true = boxes[pairs.picture, pairs.query], objects.boxes[pairs.target]
        overlap = giou_of_pairs(cxcywh_to_xyxy(own), cxcywh_to_xyxy(true))
        sums = {
            "loss_ce": self._tokens(logits, pairs, tokens),
            "loss_bbox": (own - true).abs().sum(),
            "loss_giou": (1 - overlap).sum(),
        }
        if "loss_contrastive_align" in self.weights:
            assert outputs.queries is not None
            assert outputs.tokens is not None
            similar = _full(outputs.queries[layer]) @ _full(outputs.tokens).transpose(1, 2) / self.temperature
            together = torch.zeros_like(similar, dtype=torch.bool)
            together[pairs.picture, pairs.query] = tokens[:, : similar.shape[2]] > 0
            sums["loss_contrastive_align"] = alignment_loss(similar, together).sum()
        return [(name, value) for name, value in sums.items() if name in self.weights]

    def _tokens(self, logits: Tensor, pairs: Pairs, tokens: Tensor) -> Tensor:
        """Cross-entropy of each query with all tokens of its object, each of which counts one; or with "no object"."""
        wanted = torch.zeros_like(logits)
        wanted[..., -1] = 1
        wanted[pairs.picture, pairs.query] = tokens
        weight = torch.full_like(logits[..., 0], self.no_object)
        weight[pairs.picture, pairs.query] = 1
        return -((logits.log_softmax(-1) * wanted).sum(-1) * weight).sum()

    def _masks(self, logits: Tensor, targets: Sequence[Target], pairs: Pairs) -> list[tuple[str, Tensor]]:
        """Sums over the pairs of the last layer; padding counts as background."""
        true = _padded_masks(targets, pairs).to(logits)
        full = F.interpolate(logits[:, None], size=true.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        shares = full.sigmoid()
        dice = 1 - (2 * (shares * true).sum((1, 2)) + 1) / (shares.sum((1, 2)) + true.sum((1, 2)) + 1)
        sums = {"loss_mask": sigmoid_focal_loss(full, true).mean((1, 2)).sum(), "loss_dice": dice.sum()}
        return [(name, value) for name, value in sums.items() if name in self.weights]


def objects_of(targets: Sequence[Target], width: int) -> Objects:
    """The objects of a batch, with tokens as rows of ``width``."""
    boxes, tokens = [], []
    for target in targets:
        height, across = target.meta.size
        boxes.append(xyxy_to_cxcywh(target.boxes) / target.boxes.new_tensor([across, height, across, height]))
        if target.positive_map is None:
            raise ValueError(f"picture {target.meta.image_id!r} has no positive_map: training needs one for each")
        rows = target.positive_map[:, :width]
        tokens.append(F.pad((rows > 0).float(), (0, width - rows.shape[1])))
    return Objects(torch.cat(boxes), torch.cat(tokens), [len(target) for target in targets])


def cardinality_error(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """How far the number of queries that found something is from that of the objects: (B, Q, C) -> mean over B."""
    found = (logits.detach().argmax(-1) != logits.shape[-1] - 1).sum(1)
    return (found - torch.tensor(counts, device=found.device)).abs().float().mean()


def contrastive_loss(image: Tensor, text: Tensor, temperature: float) -> Tensor:
    """Each picture should be most like its own text, and the other way round: (B, E), (B, E) -> mean of both."""
    logits = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t() / temperature
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2


def _padded_masks(targets: Sequence[Target], pairs: Pairs) -> Tensor:
    """(M, H, W) bool masks of the objects of the pairs, as large as the largest picture."""
    size = [max(target.meta.size[side] for target in targets) for side in (0, 1)]
    out = torch.zeros(len(pairs), *size, dtype=torch.bool, device=pairs.query.device)
    row = first = 0
    for i, target in enumerate(targets):
        masks, (height, width) = target.masks, target.meta.size
        if masks is None or masks.shape[1:] != (height, width):
            what = "no masks" if masks is None else f"masks of {tuple(masks.shape[1:])} pixels (h, w)"
            raise DataError(
                f"{target.meta.file or target.meta.image_id}: {what} for a picture of {(height, width)}: the mask head "
                "trains on a mask of the picture's size for each box"
            )
        own = pairs.target[pairs.picture == i] - first
        out[row : row + len(own), :height, :width] = masks[own]
        row, first = row + len(own), first + len(target)
    return out


def _base(name: str) -> str:
    """The loss that a name with a layer's number belongs to."""
    stem, _, number = name.rpartition("_")
    return stem if number.isdigit() else name


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
