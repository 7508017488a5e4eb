"""From single pictures with their texts to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target, TextBatch
from maskrcnn_benchmark.structures.image_batch import padded_size


@dataclass(frozen=True)
class Note:
    """What was odd about a picture, or did not fit."""

    what: str  # the same for all pictures of its kind
    example: str


@dataclass(frozen=True)
class ItemText:
    """The text of a picture, L tokens."""

    input_ids: Tensor  # (L,) int64
    attention_mask: Tensor  # (L,) int64
    entity_tokens: Tensor  # (K, L) bool, of the entities of the prompt
    pad_id: int = 0  # what a text of less tokens than another of its batch ends with


@dataclass(frozen=True)
class Item:
    """A picture ready for training; L is the length of every text in tokens."""

    pixels: Tensor  # (3, h, w) uint8
    target: Target  # where there is a text, with prompt and positive map (N, L)
    text: ItemText | None = None  # None: for a detector that reads none
    maskable: Tensor | None = None  # (L,) as in Batch
    word_labels: Tensor | None = None  # (L,) as in Batch
    token_labels: Tensor | None = None  # (L,) as in Batch
    notes: tuple[Note, ...] = ()


def collate(items: Sequence[Item], divisibility: int) -> Batch:
    """Pictures zero-padded to one size, a multiple of ``divisibility``; still uint8."""
    return Batch(
        pad_bytes([item.pixels for item in items], [item.target.meta for item in items], divisibility),
        [item.target for item in items],
        _text(items),
        maskable=_stack([item.maskable for item in items]),
        token_labels=_stack([item.token_labels for item in items]),
        word_labels=_stack([item.word_labels for item in items]),
    )


def _text(items: Sequence[Item]) -> TextBatch | None:
    texts = [item.text for item in items if item.text is not None]
    if not texts:
        return None
    length = max(len(text.input_ids) for text in texts)
    return TextBatch(
        tuple(item.target.prompt for item in items if item.target.prompt is not None),
        torch.stack([_longer(text.input_ids, length, text.pad_id) for text in texts]),
        torch.stack([_longer(text.attention_mask, length) for text in texts]),
        tuple(_longer(text.entity_tokens, length) for text in texts),
    )


def _longer(rows: Tensor, length: int, value: int = 0) -> Tensor:
    """(..., L) filled up to ``length`` in its last dimension."""
    return pad(rows, (0, length - rows.shape[-1]), value=value)


def pad_bytes(images: Sequence[Tensor], metas: Sequence[ImageMeta], divisibility: int) -> ImageBatch:
    """As :meth:`ImageBatch.pad`, for uint8: channels stay innermost in memory, as they come in pictures."""
    height, width = padded_size([meta.size for meta in metas], divisibility)
    pixels = torch.zeros(len(images), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for row, image in zip(pixels, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return ImageBatch(pixels, tuple(metas))


def _stack(rows: Sequence[Tensor | None]) -> Tensor | None:
    given = [row for row in rows if row is not None]
    return torch.stack(given) if given else None
