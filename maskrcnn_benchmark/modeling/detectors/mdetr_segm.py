"""MDETR with masks, as trained on PhraseCut (Kamath et al., ICCV 2021, https://github.com/ashkamath/mdetr)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.detectors import DETECTORS
from maskrcnn_benchmark.modeling.detectors.mdetr import (
    ImageFeatures,
    Mdetr,
    Seen,
    build_network,
    detection_weights,
    detections,
    find,
    prompts_for,
    prompts_of,
)
from maskrcnn_benchmark.modeling.heads.masks import BoxAttention, MaskHead
from maskrcnn_benchmark.modeling.heads.query_decode import masks_on_disk, object_scores
from maskrcnn_benchmark.modeling.interface import ALONE, Batch, Detector, ImageState, Losses, Peers, TextState
from maskrcnn_benchmark.structures import Detections, ImageBatch, TextBatch

TOGETHER = 16  # queries that the mask head works on at once in evaluation: a bound on memory


class MdetrSegm(Detector):
    """A detector and a mask head, which works for the queries that count: those that found something, or are matched.

    Args:
        detr: The detector.
        width: Of its transformer.
        heads: Of its attention.
        threshold: Queries whose object score is above it are kept.
    """

    def __init__(self, detr: Mdetr, width: int, heads: int, threshold: float = 0.7) -> None:
        super().__init__()
        channels: Sequence[int] = detr.body.channels  # type: ignore[assignment]
        self.detr = detr
        self.bbox_attention = BoxAttention(width, heads)
        self.mask_head = MaskHead(width, heads, channels[-2::-1])
        self.threshold = threshold

    def freeze_detector(self, dropout: bool) -> None:
        """Train the mask head alone, with the ``dropout`` of the detector (as published) or without."""
        self.detr.requires_grad_(False)
        self.frozen = () if dropout else ("detr",)
        self.train(self.training)

    def encode_image(self, images: ImageBatch) -> ImageState:
        return self.detr.encode_maps(images, keep=True)

    def encode_text(self, text: TextBatch) -> TextState:
        return self.detr.encode_text(text)

    def masks(self, image: ImageFeatures, seen: Seen, picture: Tensor, query: Tensor) -> Tensor:
        """Logits of masks of K queries.

        Args:
            image: Of B pictures.
            seen: Of the same.
            picture: (K,) int64.
            query: (K,) int64, numbers in their pictures.

        Returns:
            (K, H, W) at stride 4.
        """
        memory = seen.memory
        cells, padding = memory.places[:, memory.cells], memory.padding[:, memory.cells]
        attention = self.bbox_attention(seen.states[-1, picture, query], cells, padding, picture)
        attention = attention.unflatten(2, image.cells.shape[-2:])
        masks: Tensor = self.mask_head(image.cells, attention, image.maps, picture)
        return masks

    def forward(self, batch: Batch, peers: Peers = ALONE) -> Losses:
        """Losses of a batch with a prompt for each picture.

        Args:
            batch: Its targets have ``positive_map`` and ``masks``; geometry is in pixels of the network's input.
            peers: The processes that share the batch.
        """
        image, text = self.encode_image(batch.images), self.encode_text(prompts_of(batch))
        seen = self.detr.look(image, text)
        outputs = self.detr.predict(seen, text.features)
        criterion = self.detr.criterion
        pairs = criterion.match(outputs, batch.targets)
        masks = self.masks(image.features, seen, pairs[-1].picture, pairs[-1].query)
        return criterion(outputs, batch.targets, pairs, masks, peers)

    def detect(self, image: ImageState, text: TextState) -> list[Detections]:
        """One result per picture, in pixels of the picture on disk, best first; only of queries that found something.

        What a prompt asks for is told at :meth:`Mdetr.detect`.

        Args:
            image: B pictures.
            text: One prompt for all of them, or B prompts, one for each.
        """
        prompts = prompts_for(image, text)
        seen = self.detr.look(image, text)
        logits, boxes = self.detr.answer(seen.states[-1])
        kept = object_scores(logits) > self.threshold
        picture, query = kept.nonzero(as_tuple=True)
        chunks = zip(picture.split(TOGETHER), query.split(TOGETHER), strict=True)
        masks = torch.cat([self.masks(image.features, seen, *chunk) for chunk in chunks])
        out = []
        for i, (meta, prompt, tokens) in enumerate(zip(image.metas, *prompts, strict=True)):
            found = find(logits[i, kept[i]], boxes[i, kept[i]], meta, prompt, tokens)
            own = masks_on_disk(masks[picture == i], image.padded_size, meta)
            out.append(detections(found, meta, prompt, own))
        return out


@DETECTORS.register("MDETR_SEGM")
def build(cfg: Cfg) -> MdetrSegm:
    """MDETR of ``MODEL.MDETR`` with its mask head.

    Raises:
        ConfigError: the widths do not go with the norms of the mask head, or the last map is dilated.
    """
    mdetr = cfg.MODEL.MDETR
    width, heads = mdetr.HIDDEN_DIM, mdetr.NHEADS
    if width % 128 or heads % 8:
        raise ConfigError(
            f"MODEL.MDETR.HIDDEN_DIM {width} ({cfg.source('MODEL.MDETR.HIDDEN_DIM')}) and MODEL.MDETR.NHEADS {heads} "
            f"({cfg.source('MODEL.MDETR.NHEADS')}): a mask head needs multiples of 128 and of 8"
        )
    weights = {
        **detection_weights(cfg),
        "loss_mask": mdetr.MASK_LOSS_COEF,
        "loss_dice": mdetr.DICE_LOSS_COEF,
    }
    detr = build_network(cfg, weights, align=False, summary=False)
    model = MdetrSegm(detr, width, heads, mdetr.MASK_THRESH)
    if mdetr.FROZEN_WEIGHTS:
        model.freeze_detector(mdetr.FROZEN_DROPOUT)
    return model
