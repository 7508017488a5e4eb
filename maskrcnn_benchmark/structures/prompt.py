"""Text on its way into a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

Span = tuple[int, int]  # [begin, end) characters
ANYTHING = 0
"""The id of a first entity that stands for all that its text names, for detectors that say so of a box."""
OWN_WORDS = -1
"""The same, and each box is called by its own words: the other entities are the words of the text."""


@dataclass(frozen=True)
class Prompt:
    """A text and the characters that each entity (class name or phrase) owns in it."""

    text: str
    spans: tuple[tuple[Span, ...], ...]  # per entity
    ids: tuple[int, ...]  # per entity: class label (detection) or phrase number (grounding), from 1
    names: tuple[str, ...] = ()  # per entity, for people; empty: the text of the spans

    def __post_init__(self) -> None:
        if len(self.spans) != len(self.ids):
            raise ValueError(f"{len(self.spans)} span lists for {len(self.ids)} ids in prompt {self.text!r}")
        for spans in self.spans:
            for begin, end in spans:
                if not 0 <= begin <= end <= len(self.text):
                    raise ValueError(f"span [{begin}, {end}) is outside {self.text!r} ({len(self.text)} characters)")

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, entity: int) -> str:
        """What entity number ``entity`` is called."""
        if self.names:
            return self.names[entity]
        return " ".join(self.text[begin:end] for begin, end in self.spans[entity])


@dataclass(frozen=True)
class TextBatch:
    """P prompts, tokenised and padded to one length L."""

    prompts: tuple[Prompt, ...]
    input_ids: Tensor  # (P, L) int64
    attention_mask: Tensor  # (P, L) int64, 1 = token
    entity_tokens: tuple[Tensor, ...]  # per prompt (K_p, L) bool: tokens of each entity

    @classmethod
    def of_classes(cls, *lists: Mapping[int, str]) -> TextBatch:
        """Prompts that are lists of classes, label -> name, for detectors that do not read text: without tokens."""
        prompts = []
        for names in lists:
            ends = list(accumulate((len(name) + 2 for name in names.values()), initial=0))
            spans = tuple(((begin, begin + len(name)),) for begin, name in zip(ends, names.values(), strict=False))
            prompts.append(Prompt(", ".join(names.values()), spans, tuple(names)))
        nothing = torch.zeros(len(prompts), 0, dtype=torch.int64)
        tokens = tuple(torch.zeros(len(names), 0, dtype=torch.bool) for names in lists)
        return cls(tuple(prompts), nothing, nothing, tokens)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> TextBatch:
        """Prompt ``index`` alone, at the same length."""
        return TextBatch(
            (self.prompts[index],),
            self.input_ids[index : index + 1],
            self.attention_mask[index : index + 1],
            (self.entity_tokens[index],),
        )

    def select(self, rows: Sequence[int]) -> TextBatch:
        """The prompts of some rows, at the same length; a row may come more than once."""
        return TextBatch(
            tuple(self.prompts[row] for row in rows),
            self.input_ids[list(rows)],
            self.attention_mask[list(rows)],
            tuple(self.entity_tokens[row] for row in rows),
        )

    def to(self, device: torch.device | str) -> TextBatch:
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            entity_tokens=tuple(tokens.to(device) for tokens in self.entity_tokens),
        )
