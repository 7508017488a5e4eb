"""What is asked of each picture of a data set: the same class names of all of them, or the captions of each.

An answer is a *piece*: an entry of the data set (a picture, or a picture with one caption) and which of its prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from maskrcnn_benchmark.data.loader import Loaded
from maskrcnn_benchmark.data.pictures import Size
from maskrcnn_benchmark.data.sample import PictureSet
from maskrcnn_benchmark.engine.inference import Model, Recipe
from maskrcnn_benchmark.engine.shards import Found, Piece
from maskrcnn_benchmark.modeling.interface import TextState
from maskrcnn_benchmark.structures import Detections, ImageMeta, Prompt, TextBatch


class ClassPictures(PictureSet, Protocol):
    """Pictures that are all asked for the same classes."""

    @property
    def prompt_categories(self) -> list[tuple[int, str]]: ...

    def meta(self, entry: int, orig_size: Size) -> ImageMeta: ...


class LabelledObjects(ClassPictures, Protocol):
    """Pictures of which the classes of their objects are known."""

    def classes_of(self, index: int) -> np.ndarray: ...


class CaptionPictures(PictureSet, Protocol):
    """Pictures with captions of their own."""

    num_entries: int

    def entries(self, index: int) -> Sequence[int]: ...

    def prompts(self, index: int) -> Sequence[Prompt]: ...

    def meta(self, entry: int, orig_size: Size) -> ImageMeta: ...


class Questions(Protocol):
    """What is asked of a data set.

    Attributes:
        entries: How many there are.
        parts: Prompts for each entry.
    """

    entries: int
    parts: int

    def pieces(self, picture: int, parts: range) -> list[Piece]:
        """What is to be answered about a picture with some of the prompts."""
        ...

    def find(self, model: Model, loaded: Loaded, parts: range) -> Iterator[Found]:
        """The answers about a batch of pictures, which is encoded once."""
        ...

    def meta(self, entry: int, orig_size: Size) -> ImageMeta:
        """What is known about an entry."""
        ...


class ClassQuestions:
    """The same prompts for every picture; each is encoded once.

    Args:
        dataset: Its pictures are the entries.
        texts: The prompts, one in each.
        recipe: Puts prompts together.
        together: Prompts that the network sees at once.
    """

    def __init__(self, dataset: ClassPictures, texts: Sequence[TextBatch], recipe: Recipe, together: int):
        self.dataset, self.recipe, self.together = dataset, recipe, together
        self.prompts = [text.prompts[0] for text in texts]
        self.entries, self.parts = len(dataset), len(texts)
        self._states: dict[range, TextState] = {}

    def pieces(self, picture: int, parts: range) -> list[Piece]:
        return [(picture, part) for part in parts]

    def find(self, model: Model, loaded: Loaded, parts: range) -> Iterator[Found]:
        image = model.encode_image(loaded.images)
        for first in range(parts.start, parts.stop, self.together):
            group = range(first, min(first + self.together, parts.stop))
            answers = model.ask(image, self._state(model, group))
            for number, found in zip(loaded.numbers, answers, strict=True):
                yield from (Found(number, part, item) for part, item in zip(group, found, strict=True))

    def meta(self, entry: int, orig_size: Size) -> ImageMeta:
        return self.dataset.meta(entry, orig_size)

    def _state(self, model: Model, group: range) -> TextState:
        if group not in self._states:
            self._states[group] = model.encode_text(self.recipe.text([self.prompts[part] for part in group]))
        return self._states[group]


class NoQuestions:
    """Nothing is asked: the detector knows a fixed list of classes, those of the data set in their order.

    Args:
        dataset: Its pictures are the entries.
    """

    parts = 1

    def __init__(self, dataset: ClassPictures):
        self.dataset = dataset
        self.entries = len(dataset)
        self.labels = [label for label, _ in dataset.prompt_categories]

    def pieces(self, picture: int, parts: range) -> list[Piece]:
        return [(picture, 0)]

    def find(self, model: Model, loaded: Loaded, parts: range) -> Iterator[Found]:
        yield from self._labelled(loaded, model.find_all(model.encode_image(loaded.images)))

    def _labelled(self, loaded: Loaded, answers: Sequence[Detections]) -> Iterator[Found]:
        """With the labels of the data set, where the detector has numbers from 1."""
        labels = torch.tensor([0, *self.labels])
        for number, item in zip(loaded.numbers, answers, strict=True):
            yield Found(number, 0, replace(item, labels=labels[item.labels]))

    def meta(self, entry: int, orig_size: Size) -> ImageMeta:
        return self.dataset.meta(entry, orig_size)


class OwnClassQuestions(NoQuestions):
    """Each picture is asked for the classes of its own objects, as conditioned AP has it; one without objects for none.

    Args:
        dataset: Its pictures are the entries.
    """

    dataset: LabelledObjects

    def find(self, model: Model, loaded: Loaded, parts: range) -> Iterator[Found]:
        place = {label: number for number, label in enumerate(self.labels, 1)}
        asked = [sorted({place[label] for label in self.dataset.classes_of(n).tolist()}) for n in loaded.numbers]
        yield from self._labelled(loaded, model.find_classes(model.encode_image(loaded.images), asked))


class CaptionQuestions:
    """The captions of each picture, which is encoded once for all of them.

    Args:
        dataset: Its captions are the entries.
        recipe: Puts prompts together.
        together: Prompts that the network sees at once.
    """

    parts = 1

    def __init__(self, dataset: CaptionPictures, recipe: Recipe, together: int):
        self.dataset, self.recipe, self.together = dataset, recipe, together
        self.entries = dataset.num_entries

    def pieces(self, picture: int, parts: range) -> list[Piece]:
        return [(entry, 0) for entry in self.dataset.entries(picture)]

    def find(self, model: Model, loaded: Loaded, parts: range) -> Iterator[Found]:
        image = model.encode_image(loaded.images)
        for row, number in enumerate(loaded.numbers):
            one = image.select([row])
            asked = list(zip(self.dataset.entries(number), self.dataset.prompts(number), strict=True))
            for first in range(0, len(asked), self.together):
                group = asked[first : first + self.together]
                text = model.encode_text(self.recipe.text([prompt for _, prompt in group]))
                (answers,) = model.ask(one, text)
                yield from (Found(entry, 0, item) for (entry, _), item in zip(group, answers, strict=True))

    def meta(self, entry: int, orig_size: Size) -> ImageMeta:
        return self.dataset.meta(entry, orig_size)
