"""What every detector offers. State of a request lives in ImageState and TextState, never on the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.structures import Detections, ImageBatch, ImageMeta, Target, TextBatch


@dataclass
class Batch:
    """What a detector trains on."""

    images: ImageBatch
    targets: list[Target]
    text: TextBatch | None = None  # one prompt for each picture, of L tokens
    maskable: Tensor | None = None  # (B, L) float32, for masked language modelling: 1 may be hidden and guessed, 0 may
    # be hidden but is not guessed, -1 stays as it is
    token_labels: Tensor | None = None  # (B, L) float32, for the shallow contrastive loss: the class that a token is a
    # name of, as in Target.token_labels; -1 for other tokens
    word_labels: Tensor | None = None  # (B, L) int64, for masked language modelling: the id that was hidden at a token,
    # -100 where nothing is to be guessed
    rng: Random | None = None  # for losses that draw samples; None: the same draws for every batch

    def to(self, device: torch.device | str) -> Batch:
        names = ("text", "maskable", "token_labels", "word_labels")
        moved = {name: value.to(device) for name in names if (value := getattr(self, name)) is not None}
        targets = [target.to(device) for target in self.targets]
        return replace(self, images=self.images.to(device), targets=targets, **moved)


@dataclass
class Losses:
    """Unweighted scalars under the reference's names, and their weights (default 1)."""

    terms: dict[str, Tensor]
    weights: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)  # logged, never differentiated

    def total(self) -> Tensor:
        return torch.stack([self.weights.get(name, 1.0) * term for name, term in self.terms.items()]).sum()


def _same(value: Tensor) -> Tensor:
    return value


def _alone(value: Tensor) -> list[Tensor]:
    return [value]


@dataclass(frozen=True)
class Peers:
    """How a process reaches the others that share its batch; by default there are none."""

    mean: Callable[[Tensor], Tensor] = _same  # of a tensor without gradient over the processes
    gather: Callable[[Tensor], Sequence[Tensor]] = _alone  # (n, ...) of every process by rank; n may differ, and a
    # process' own part keeps its gradient
    rank: int = 0  # which of the gathered parts is this process' own


ALONE = Peers()


@dataclass(frozen=True)
class ImageState:
    """All that does not depend on text, computed once per picture."""

    metas: tuple[ImageMeta, ...]
    padded_size: tuple[int, int]  # (H, W) of the batch
    features: Any  # the detector's own; the first dimension of its tensors counts pictures

    def select(self, rows: Sequence[int]) -> ImageState:
        """The pictures of some rows, in that order; a row may come more than once."""
        return replace(self, metas=tuple(self.metas[row] for row in rows), features=_rows(self.features, rows))

    @property
    def nbytes(self) -> int:
        """Memory of the features; what two tensors share counts once."""
        return sum({storage.data_ptr(): storage.nbytes() for storage in _storages(self.features)}.values())


@dataclass(frozen=True)
class TextState:
    """All that does not depend on a picture, computed once per prompt."""

    text: TextBatch
    features: Any  # the detector's own; the first dimension of its tensors counts prompts

    def select(self, rows: Sequence[int]) -> TextState:
        """The prompts of some rows, in that order; a row may come more than once."""
        return TextState(self.text.select(rows), _rows(self.features, rows))


def _rows(value: Any, rows: Sequence[int]) -> Any:
    """Rows of every tensor in a nest of tuples, lists and dataclasses."""
    if isinstance(value, Tensor):
        return value[list(rows)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_rows(item, rows) for item in value))
    if isinstance(value, (tuple, list)) and any(not isinstance(item, (int, float)) for item in value):
        return type(value)(_rows(item, rows) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: _rows(getattr(value, item.name), rows) for item in fields(value)})
    return value


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    """The memory of every tensor in a nest of tuples, lists and dataclasses."""
    if isinstance(value, Tensor):
        yield value.untyped_storage()
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _storages(item)
    elif is_dataclass(value):
        for item in fields(value):
            yield from _storages(getattr(value, item.name))


class Detector(nn.Module):
    """Finds things named in words; ``forward(batch: Batch, peers: Peers = ALONE) -> Losses`` is for training."""

    reads_text = True  # False: a closed list of classes; there is no encode_text, and detect() takes no text
    frozen: tuple[str, ...] = ()  # names of modules that stay in evaluation mode, whatever train() is told

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def weigh_classes(self, chance: Tensor) -> None:
        """Hear how often each class (C,) is to be drawn, where a step of the training draws its classes."""

    def encode_image(self, images: ImageBatch) -> ImageState:
        raise NotImplementedError

    def encode_text(self, text: TextBatch) -> TextState:
        raise NotImplementedError

    def detect(self, image: ImageState, text: TextState) -> list[Detections]:
        """One result per picture; ``text`` holds one prompt for all B pictures, or B prompts, one for each."""
        raise NotImplementedError
