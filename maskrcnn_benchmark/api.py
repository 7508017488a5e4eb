"""Find things in pictures by words, from Python.

from maskrcnn_benchmark import Predictor, load_model

model = load_model("configs/pretrain/mixed_nococo_flickr_objects365.yaml", "MODEL/fiber.pth")
predictor = Predictor(model)
predictor.set_image("street.jpg")
found = predictor.predict(labels=["person", "traffic light"], min_score=0.5)
found.draw().save("street_found.png")
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.pictures import open_picture, to_rgb
from maskrcnn_benchmark.demo.draw import draw
from maskrcnn_benchmark.engine.inference import Model, Recipe, load
from maskrcnn_benchmark.errors import DataError, PromptError
from maskrcnn_benchmark.modeling.interface import ImageState, TextState
from maskrcnn_benchmark.structures import Detections, ImageBatch, ImageMeta, Prompt
from maskrcnn_benchmark.text.prompts import caption_prompt, label_prompts

PROMPTS_KEPT = 16  # encoded prompts that a predictor remembers


def load_model(config: str | Path, weights: str | Path, device: str = "auto", opts: Sequence[str] = ()) -> Model:
    """A detector with weights, ready for :class:`Predictor`.

    Args:
        config: YAML config of the model.
        weights: Checkpoint: a path, or a name in ``MODEL/``.
        device: ``auto``, ``cpu``, ``cuda``, ``mps`` ...
        opts: Further config keys and values, ``["MODEL.ATSS.INFERENCE_TH", "0.1"]``.

    Raises:
        ConfigError: the config is missing or wrong.
        WeightsError: the checkpoint is missing, damaged or of another model.
    """
    return load(load_cfg(config, opts=["MODEL.DEVICE", device, *opts]), weights)


@dataclass
class Found(Detections):
    """Detections that know their picture."""

    picture: Image.Image | None = None

    def draw(self, min_score: float = 0.0, top: int | None = None) -> Image.Image:
        """The picture with boxes, names and scores drawn on it."""
        if self.picture is None:
            raise DataError("these detections have no picture to draw on")
        return draw(self.picture, self, min_score=min_score, top=top)

    def to_json(self) -> str:
        """``{"file", "width", "height", "detections": [{"label", "name", "score", "box": [x1, y1, x2, y2]}]}``."""
        return json.dumps(as_record(self), ensure_ascii=False)


def as_record(found: Detections) -> dict[str, object]:
    """Plain lists and numbers; boxes in pixels of the upright picture."""
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    height, width = found.meta.orig_size
    return {
        "file": found.meta.file,
        "width": width,
        "height": height,
        "detections": [
            {"label": label, "name": found.name(i), "score": score, "box": box}
            for i, (label, score, box) in enumerate(rows)
        ],
    }


def write_query(
    recipe: Recipe, labels: Sequence[str] | None, caption: str | None, phrases: Sequence[str] | None
) -> tuple[Prompt, ...]:
    """The prompts of what :meth:`Predictor.predict` is asked; needs no network.

    Raises:
        PromptError: neither or both of labels and caption are given, or they do not make a prompt.
    """
    if labels is not None and phrases is not None:
        raise PromptError("phrases go with a caption, not with labels")
    if labels is not None and caption is None:
        if isinstance(labels, str):
            raise PromptError(f"labels must be a list of names, got the text {labels!r}: write labels=[{labels!r}]")
        return tuple(label_prompts(labels, recipe.prompts, recipe.tokenizer))
    if caption is not None and labels is None:
        return (caption_prompt(caption, phrases, recipe.prompts, recipe.tokenizer),)
    raise PromptError("give either labels=[...] or caption='...'")


class Predictor:
    """Asks one picture after another for things named in words.

    A picture is encoded once, however many prompts follow; the latest prompts are remembered from picture to picture.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._picture: Image.Image | None = None
        self._image: ImageState | None = None
        self._texts: OrderedDict[tuple[Prompt, ...], list[TextState]] = OrderedDict()

    def set_image(self, image: str | Path | Image.Image | np.ndarray) -> Predictor:
        """Encode a picture.

        Args:
            image: A file, a PIL picture, or a uint8 array (H, W, 3) in RGB order.

        Raises:
            DataError: the picture is missing or cannot be read.
        """
        if isinstance(image, (str, Path)):
            picture, file = open_picture(image), str(image)
        elif isinstance(image, Image.Image):
            picture, file = to_rgb(image), getattr(image, "filename", "")
        else:
            picture, file = _from_array(image), ""
        pixels = self.model.recipe.transform(picture)
        height, width = pixels.shape[1:]
        meta = ImageMeta(image_id=0, size=(height, width), orig_size=(picture.height, picture.width), file=str(file))
        batch = ImageBatch.pad([pixels], [meta], self.model.recipe.divisibility)
        self._picture, self._image = picture, self.model.encode_image(batch)
        return self

    def predict(
        self,
        labels: Sequence[str] | None = None,
        caption: str | None = None,
        phrases: Sequence[str] | None = None,
        min_score: float = 0.0,
        top: int | None = None,
    ) -> Found:
        """Find ``labels``, or what ``caption`` speaks of, in the picture of :meth:`set_image`.

        Args:
            labels: Names of things; label ``i`` of the result is the ``i``-th name, from 1.
            caption: A sentence. Without ``phrases`` the whole of it is looked for, as in referring expressions.
            phrases: Parts of the caption, word for word and in its order; phrase ``i`` is label ``i``, from 1.
            min_score: Leave out what scores lower.
            top: Keep at most so many.

        Raises:
            DataError: there is no picture yet.
            PromptError: neither or both of labels and caption are given, or they do not make a prompt; or a wrong
                ``top``.
        """
        if self._image is None or self._picture is None:
            raise DataError("no picture yet: call set_image() first")
        if top is not None and top < 0:
            raise PromptError(f"top must be at least 0, got {top}")
        prompts = write_query(self.model.recipe, labels, caption, phrases)
        found = self.model.detect(self._image, self._encode(prompts))[0].filter(min_score)[:top]
        return Found(**{f.name: getattr(found, f.name) for f in fields(found)}, picture=self._picture)

    @property
    def nbytes(self) -> int:
        """Memory of the picture and of what it is encoded as, in bytes."""
        if self._image is None or self._picture is None:
            return 0
        return self._image.nbytes + 3 * self._picture.width * self._picture.height

    def _encode(self, prompts: tuple[Prompt, ...]) -> list[TextState]:
        if prompts not in self._texts:
            recipe = self.model.recipe
            self._texts[prompts] = [self.model.encode_text(recipe.text([prompt])) for prompt in prompts]
        self._texts.move_to_end(prompts)
        while len(self._texts) > PROMPTS_KEPT:
            self._texts.popitem(last=False)
        return self._texts[prompts]


def _from_array(image: np.ndarray) -> Image.Image:
    if not isinstance(image, np.ndarray):
        raise DataError(f"a picture is a file, a PIL picture or an array, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(f"an array picture must be uint8 (H, W, 3) in RGB order, got {image.dtype} {image.shape}")
    return Image.fromarray(image)
