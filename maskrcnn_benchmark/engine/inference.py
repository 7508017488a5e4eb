"""How pictures and words become the input of a detector: what evaluation, the API and the demo share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from maskrcnn_benchmark.checkpoint.io import Report, find_weights, load_weights
from maskrcnn_benchmark.checkpoint.rules import RELEASED
from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.data.classes import closed_vocabulary
from maskrcnn_benchmark.data.modulated_set import ARCHITECTURES
from maskrcnn_benchmark.data.transforms import EvalTransform
from maskrcnn_benchmark.engine.classes import find_classes, known_classes
from maskrcnn_benchmark.engine.device import pick_device
from maskrcnn_benchmark.engine.vocabulary import Vocabulary, build_vocabulary, refuse_other_embeddings
from maskrcnn_benchmark.errors import PromptError
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.interface import Detector, ImageState, TextState
from maskrcnn_benchmark.structures import Detections, ImageBatch, Prompt, TextBatch
from maskrcnn_benchmark.text.positive_map import text_batch
from maskrcnn_benchmark.text.prompts import PromptOptions
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Recipe:
    """The settings between a picture or a word and the network."""

    transform: EvalTransform
    tokenizer: Tokenizer | None  # None: the detector reads no text, it knows a fixed list of classes
    prompts: PromptOptions
    pad_to: int | None  # length of every prompt in tokens; None: its own
    divisibility: int  # sides of a padded batch are multiples of this

    @property
    def reader(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            PromptError: the detector reads no text.
        """
        if self.tokenizer is None:
            raise PromptError("this detector knows a fixed list of classes and reads no text: ask it for its classes")
        return self.tokenizer

    def text(self, prompts: Sequence[Prompt]) -> TextBatch:
        return text_batch(prompts, self.reader, max_length=self.prompts.max_tokens, pad_to=self.pad_to)


@dataclass(frozen=True)
class Model:
    """A detector with weights, on its device, and the recipe that it was trained with."""

    detector: Detector
    recipe: Recipe
    device: torch.device
    weights: Report
    key: str = ""  # equal for models that answer alike; empty: like no other
    classes: tuple[str, ...] = ()  # names of labels 1, 2, ..., where the detector reads no text
    vocabulary: Vocabulary | None = None  # of a detector that is asked for embeddings of names

    @torch.inference_mode()
    def encode_image(self, images: ImageBatch) -> ImageState:
        return self.detector.encode_image(images.to(self.device))

    @torch.inference_mode()
    def encode_text(self, text: TextBatch) -> TextState:
        return self.detector.encode_text(text.to(self.device))

    @torch.inference_mode()
    def detect(self, image: ImageState, texts: Iterable[TextState]) -> list[Detections]:
        """One result per picture: all that the prompts find, best first."""
        found = [self.detector.detect(image, text) for text in texts]
        return [Detections.cat(parts) for parts in zip(*found, strict=True)]

    @torch.inference_mode()
    def find_all(self, image: ImageState) -> list[Detections]:
        """One result per picture, of a detector that reads no text: all that is of one of its classes."""
        if self.vocabulary is not None and self.detector.reads_text:
            return self.detector.detect(image, self.vocabulary.everything())
        detect = cast(Callable[[ImageState], list[Detections]], self.detector.detect)  # its reads_text is False
        return detect(image)

    @torch.inference_mode()
    def find_classes(self, image: ImageState, asked: Sequence[Sequence[int]]) -> list[Detections]:
        """One result per picture, of a detector that is asked for embeddings, of some of its classes for each picture.

        Args:
            image: B pictures.
            asked: Numbers of the classes of each, from 1; the labels of its result.
        """
        assert self.vocabulary is not None
        return self.detector.detect(image, self.vocabulary.classes(asked))

    @torch.inference_mode()
    def find_named(self, image: ImageState, names: Sequence[str]) -> list[Detections]:
        """One result per picture, of a detector that is asked for embeddings: label k is the k-th name, from 1.

        Raises:
            PromptError, WeightsError: see :meth:`Vocabulary.named`.
        """
        assert self.vocabulary is not None
        return self.detector.detect(image, self.vocabulary.named(names))

    @torch.inference_mode()
    def ask(self, image: ImageState, text: TextState) -> list[list[Detections]]:
        """What each of P prompts finds in each of B pictures: for each picture one result per prompt."""
        count, batch = len(text.text), len(image.metas)
        if count == 1:
            return [[found] for found in self.detector.detect(image, text)]
        rows = [row for row in range(batch) for _ in range(count)]
        found = self.detector.detect(image.select(rows), text.select([*range(count)] * batch))
        return [found[first : first + count] for first in range(0, len(found), count)]


def build_recipe(cfg: Cfg) -> Recipe:
    """The recipe of a config.

    Raises:
        PromptError: the tokenizer's files are not here.
    """
    language = cfg.MODEL.LANGUAGE_BACKBONE
    data = cfg.DATASETS
    transform = EvalTransform(
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        mean=cfg.INPUT.TEST_PIXEL_MEAN or cfg.INPUT.PIXEL_MEAN,
        std=cfg.INPUT.PIXEL_STD,
        bgr=cfg.INPUT.TO_BGR255,
        detectron2=cfg.INPUT.FORMAT == "RGB",
    )
    options = PromptOptions(
        separator=data.SEPARATION_TOKENS,
        caption_prompt=data.CAPTION_PROMPT if data.USE_CAPTION_PROMPT else None,
        suppress=tuple(data.SUPRESS_QUERY or ()) if data.USE_SUPRESS_QUERY else (),
        chunk_size=cfg.TEST.CHUNKED_EVALUATION,
        max_tokens=language.MAX_QUERY_LEN,
        own_words=cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES,
    )
    return Recipe(
        transform=transform,
        tokenizer=None if closed_vocabulary(cfg) else load_tokenizer(language.TOKENIZER_TYPE),
        prompts=options,
        pad_to=language.MAX_QUERY_LEN if cfg.TEST.PAD_TEXT else None,
        divisibility=cfg.DATALOADER.SIZE_DIVISIBILITY,
    )


def load(cfg: Cfg, weights: str | Path, device: torch.device | None = None) -> Model:
    """Build the detector of a config, give it its weights and put it on its device, ready to find things.

    Args:
        cfg: Config of the model.
        weights: Checkpoint.
        device: Default: ``MODEL.DEVICE``.

    Raises:
        ConfigError: the config builds no detector, or names a device that is not here.
        WeightsError: the file is missing, damaged or of another model.
    """
    path, device, recipe = find_weights(weights), device or pick_device(cfg.MODEL.DEVICE), build_recipe(cfg)
    detector = build_detector(cfg)
    report = load_weights(detector, path, rules=RELEASED, ema=which_weights(cfg))
    refuse_other_embeddings(cfg, detector, report)
    facts = [report.digest, which_weights(cfg), cfg.MODEL, cfg.TEST.MDETR_STYLE_AGGREGATE_CLASS_NUM]
    key = json.dumps(facts, sort_keys=True, default=str)
    key = hashlib.sha256(key.encode()).hexdigest()
    detector = detector.to(device).eval().requires_grad_(False)
    vocabulary = build_vocabulary(cfg, detector, lambda: known_classes(cfg, path))
    classes = vocabulary.names if vocabulary is not None else ()
    if recipe.tokenizer is None and not classes:
        classes = find_classes(cfg, path)
    return Model(detector, recipe, device, report, key, classes, vocabulary)


def check_weights(cfg: Cfg, weights: str | Path) -> Report:
    """Whether a checkpoint fits the detector of a config, by names and shapes; takes no memory for the detector.

    Raises:
        WeightsError: it does not.
    """
    pick_device(cfg.MODEL.DEVICE)
    with torch.device("meta"):
        detector = build_detector(cfg)
    return load_weights(detector, weights, rules=RELEASED, ema=which_weights(cfg))


def which_weights(cfg: Cfg) -> bool | Literal["preferred"]:
    """Of a checkpoint with two sets of weights; see :func:`~maskrcnn_benchmark.checkpoint.io.read_state_dict`."""
    return "preferred" if cfg.TEST.USE_EMA else False
