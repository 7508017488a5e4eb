"""Find things in pictures by words, from Python; or with a detector that knows a fixed list of classes, by those.

from maskrcnn_benchmark import Predictor, load_model

model = load_model("configs/pretrain/mixed_nococo_flickr_objects365.yaml", "MODEL/fiber.pth")
predictor = Predictor(model)
predictor.set_image("street.jpg")
found = predictor.predict(labels=["person", "traffic light"], min_score=0.5)
found.draw().save("street_found.png")
"""

from __future__ import annotations

import difflib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_api

from maskrcnn_benchmark.checkpoint.io import find_weights
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.pictures import open_picture, to_rgb
from maskrcnn_benchmark.demo.draw import draw
from maskrcnn_benchmark.engine.classes import find_classes
from maskrcnn_benchmark.engine.inference import Model, Recipe, build_recipe, load
from maskrcnn_benchmark.engine.vocabulary import takes_names
from maskrcnn_benchmark.errors import DataError, PromptError
from maskrcnn_benchmark.modeling.interface import ImageState, TextState
from maskrcnn_benchmark.structures import Detections, ImageBatch, ImageMeta, Prompt
from maskrcnn_benchmark.text.class_bank import check_names, plain_name
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
        """``{"file", "width", "height", "detections": [{"label", "name", "score", "box": [x1, y1, x2, y2]}]}``.

        A detector of masks adds "mask" to each: "size" [h, w] and "counts", COCO's run lengths.
        """
        return json.dumps(as_record(self), ensure_ascii=False)


def as_record(found: Detections) -> dict[str, object]:
    """Plain lists and numbers; boxes in pixels of the upright picture, masks in COCO's run lengths."""
    columns = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    rows: list[dict[str, object]] = [
        {"label": label, "name": found.name(i), "score": score, "box": box}
        for i, (label, score, box) in enumerate(columns)
    ]
    if found.masks is not None:
        for row, mask in zip(rows, found.masks.numpy(), strict=True):
            runs = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
            row["mask"] = {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}
    height, width = found.meta.orig_size
    return {"file": found.meta.file, "width": width, "height": height, "detections": rows}


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
        return tuple(label_prompts(labels, recipe.prompts, recipe.reader))
    if caption is not None and labels is None:
        return (caption_prompt(caption, phrases, recipe.prompts, recipe.reader),)
    raise PromptError("give either labels=[...] or caption='...'")


def pick_classes(classes: Sequence[str], labels: Sequence[str] | None, caption: str | None) -> dict[int, int]:
    """What :meth:`Predictor.predict` is asked of a detector that reads no text; needs no network.

    Args:
        classes: What it knows.
        labels: Names of some of them, in any case, with spaces or underscores; None: all.
        caption: None, as nothing could read it.

    Returns:
        Number of a class, from 1 -> label of the answer, from 1.

    Raises:
        PromptError: there is a caption, or a name is none of the classes.
    """
    refuse_caption(caption)
    if isinstance(labels, str):
        raise PromptError(f"labels must be a list of names, got the text {labels!r}: write labels=[{labels!r}]")
    if labels is None:
        return {number: number for number in range(1, len(classes) + 1)}
    known = {plain_name(name): number for number, name in enumerate(classes, 1)}
    unknown = [label for label in labels if plain_name(label) not in known]
    if unknown:
        near = difflib.get_close_matches(plain_name(unknown[0]), known, n=3) or list(known)[:3]
        raise PromptError(
            f"{unknown[0]!r} is none of the {len(known)} classes of this detector: the closest are {', '.join(near)}"
        )
    return {known[plain_name(label)]: place for place, label in reversed(list(enumerate(labels, 1)))}


def refuse_caption(caption: str | None) -> None:
    """Of a detector that reads no text.

    Raises:
        PromptError: there is one.
    """
    if caption is not None:
        raise PromptError("this detector reads no text, it finds classes: give labels=[...], or none for all it knows")


def check_query(
    cfg: Cfg,
    weights: str | Path,
    labels: Sequence[str] | None,
    caption: str | None,
    phrases: Sequence[str] | None,
) -> None:
    """Find mistakes in what :meth:`Predictor.predict` is asked, before a network is built.

    Raises:
        PromptError: see there.
        WeightsError: the checkpoint is missing or damaged.
    """
    recipe = build_recipe(cfg)
    if takes_names(cfg):
        refuse_caption(caption)
        check_names(labels if labels is not None else ["all of them"], "labels")
    elif recipe.tokenizer is None:
        pick_classes(find_classes(cfg, find_weights(weights)), labels, caption)
    else:
        write_query(recipe, labels, caption, phrases)


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

        A detector that reads no text (Faster R-CNN) finds its classes: all of them, or those that ``labels`` names.
        DECOLA, its baselines and CenterNet2 find any names that they have, or can make, embeddings of.

        Args:
            labels: Names of things; label ``i`` of the result is the ``i``-th name, from 1.
            caption: A sentence. Without ``phrases`` the whole of it is looked for, as in referring expressions, and a
                box scores as the word that fits it best; MDETR finds all that it speaks of, and calls each box by the
                words that it belongs to.
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
        if self.model.vocabulary is not None and labels is not None:
            refuse_caption(caption)
            found = self.model.find_named(self._image, labels)[0]
        elif self.model.recipe.tokenizer is None:
            found = self._known(self._image, pick_classes(self.model.classes, labels, caption))
        else:
            prompts = write_query(self.model.recipe, labels, caption, phrases)
            found = self.model.detect(self._image, self._encode(prompts))[0]
        found = found.filter(min_score)[:top]
        return Found(**{f.name: getattr(found, f.name) for f in fields(found)}, picture=self._picture)

    @property
    def nbytes(self) -> int:
        """Memory of the picture and of what it is encoded as, in bytes."""
        if self._image is None or self._picture is None:
            return 0
        return self._image.nbytes + 3 * self._picture.width * self._picture.height

    def _known(self, image: ImageState, wanted: Mapping[int, int]) -> Detections:
        """What a detector that reads no text finds of some of its classes."""
        found = self.model.find_all(image)[0]
        found = found[torch.isin(found.labels, torch.tensor(list(wanted), dtype=torch.int64))]
        labels = torch.tensor([wanted[label] for label in found.labels.tolist()], dtype=torch.int64)
        names = {label: self.model.classes[number - 1] for number, label in wanted.items()}
        return replace(found, labels=labels, names=names)

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
