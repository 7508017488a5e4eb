"""Pictures of a training as it goes: what the detector finds in a picture, and what it should find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from maskrcnn_benchmark.data.transforms import Normalise
from maskrcnn_benchmark.demo.draw import colour_of, draw_boxes
from maskrcnn_benchmark.modeling.detectors.deformable_detr import QueryDetector
from maskrcnn_benchmark.modeling.interface import Batch, Detector
from maskrcnn_benchmark.structures import Detections, ImageBatch, TextBatch

SHARE = 0.7  # of the picture; the rest is white, so that boxes stand out
LEAST = 0.1  # score of a box that is drawn
SHOWN = 30  # boxes, at most


@dataclass(frozen=True)
class Watch:
    """Draws the first picture of a batch twice, as DECOLA does (https://github.com/janghyuncho/DECOLA).

    Attributes:
        period: Steps from one pair of pictures to the next; 0: there are none.
        detector: That is trained, without text.
        normalise: How the pictures were normalised.
        classes: Names of labels 1, 2, ...
    """

    period: int
    detector: Detector
    normalise: Normalise
    classes: Sequence[str]

    def __call__(self, step: int, batch: Batch) -> dict[str, Image.Image]:
        """``box-predictions`` and ``box-targets``, or ``image-...`` where only names are known; nothing out of turn.

        Args:
            step: Its number, from 1.
            batch: As it goes into the network.
        """
        if not self.period or step % self.period:
            return {}
        target = batch.targets[0]
        height, width = target.meta.size
        pixels = self.normalise.undo(batch.images.pixels[:1].detach())[0, :, :height, :width]
        picture = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
        picture = Image.blend(Image.new("RGB", picture.size, "white"), picture, SHARE)
        kind = "box" if target.image_labels is None else "image"
        found = self._find(batch)
        return {
            f"{kind}-predictions": self._draw(picture, found.boxes, found.labels, found.scores.tolist()),
            f"{kind}-targets": self._draw(picture, target.boxes, target.labels, [None] * len(target)),
        }

    @torch.no_grad()
    def _find(self, batch: Batch) -> Detections:
        """In pixels of the picture as the network sees it, the best first."""
        target, training = batch.targets[0], self.detector.training
        meta = replace(target.meta, orig_size=target.meta.size)
        images = ImageBatch(batch.images.pixels[:1], (meta,))
        self.detector.eval()
        try:
            state = self.detector.encode_image(images)
            if isinstance(self.detector, QueryDetector):
                names = {label: self.classes[label - 1] for label in self._asked(batch)}
                found = self.detector.detect(state, self.detector.encode_text(TextBatch.of_classes(names)))[0]
            else:
                found = self.detector.detect(state)[0]  # type: ignore[call-arg]
        finally:
            self.detector.train(training)
        order = found.scores.argsort(descending=True)[:SHOWN]
        return found[order[found.scores[order] > LEAST]]

    def _asked(self, batch: Batch) -> list[int]:
        """All classes; of a detector that has queries for each class, those of the picture."""
        target = batch.targets[0]
        own = target.labels if target.image_labels is None else target.image_labels
        if getattr(self.detector, "conditioned", False) and len(own):
            return [int(label) for label in own.unique()]
        return list(range(1, len(self.classes) + 1))

    def _draw(
        self, picture: Image.Image, boxes: torch.Tensor, labels: torch.Tensor, scores: Sequence[float | None]
    ) -> Image.Image:
        numbers = labels.tolist()
        texts = [
            (self.classes[label - 1], "" if score is None else f" {score:.2f}")
            for label, score in zip(numbers, scores, strict=True)
        ]
        return draw_boxes(picture, boxes.detach().cpu().tolist(), texts, [colour_of(label) for label in numbers])
