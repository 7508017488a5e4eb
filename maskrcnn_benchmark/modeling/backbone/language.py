"""Text features of a grounding detector, and the text backbone that GLIP has (https://github.com/microsoft/GLIP)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.layers.recompute import recomputed
from maskrcnn_benchmark.text.encoder import TextEncoder, additive_mask

TUNABLE_POSITIONS = 1000  # rows of the tunable layer in checkpoints; a text uses the first L


@dataclass(frozen=True)
class LanguageFeatures:
    """Text of batch P: 1 for all pictures, or one for each."""

    hidden: Tensor  # (P, L, D), last states; anything at padding
    embedded: Tensor  # (P, L, D), 0 at padding unless a tunable layer adds something
    mask: Tensor  # (P, L) int64, 1 = token that the head sees


class TextBody(nn.Module):
    """The encoder, one name deeper."""

    def __init__(self, model: TextEncoder) -> None:
        super().__init__()
        self.model = model


class TextTower(nn.Module):
    """The encoder under the name that checkpoints give it, ``body.model``."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.body = TextBody(encoder)


class LanguageBackbone(TextTower):
    """A text encoder that works without pictures.

    Args:
        encoder: BERT or RoBERTa.
        average: How many of the last layers ``embedded`` is the mean of. As in GLIP the mean is divided by this number
            once more.
        checkpointing: In training, compute the inside of layers again in the backward pass.
        hide_ends: Hide the tokens that begin and end a text from the head: its fusion does not look at them, and its
            losses do not count them.
    """

    def __init__(
        self, encoder: TextEncoder, average: int = 1, checkpointing: bool = False, hide_ends: bool = False
    ) -> None:
        super().__init__(encoder)
        self.average, self.checkpointing, self.hide_ends = average, checkpointing, hide_ends

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> LanguageFeatures:
        """(P, L) ids and mask, 1 = token."""
        model = self.body.model
        hidden = model.embed(input_ids, attention_mask)
        mask = additive_mask(attention_mask, hidden.dtype)
        last: list[Tensor] = []
        for layer in model.layers:
            hidden = recomputed(layer, self.checkpointing)(hidden, mask)
            last = [*last, hidden][-self.average :]
        mean = torch.stack(last).mean(0) / self.average if self.average > 1 else hidden
        embedded = mean * attention_mask[..., None].to(mean.dtype)
        return LanguageFeatures(hidden, embedded, _inside(attention_mask) if self.hide_ends else attention_mask)


def _inside(mask: Tensor) -> Tensor:
    """A mask (P, L) without the first and the last token of each text."""
    place = mask.cumsum(1)
    return mask * (place > 1) * (place < mask.sum(1, keepdim=True))


def make_tunable(width: int) -> nn.Linear:
    """A table of vectors, one for each position, zero at first; released checkpoints keep it as a linear layer."""
    layer = nn.Linear(width, TUNABLE_POSITIONS, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
