"""From what is in a picture to the text that a grounding detector is trained with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from maskrcnn_benchmark.data.datasets.od_to_grounding import (
    MOST_NEGATIVES,
    box_spans,
    boxes_that_fit,
    every_class_prompt,
    fixed_prompt,
    sampled_prompt,
)
from maskrcnn_benchmark.data.draws import Draws, rng_for
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.structures import ImageMeta, Prompt, Target
from maskrcnn_benchmark.structures.prompt import Span
from maskrcnn_benchmark.text.positive_map import WIDTH
from maskrcnn_benchmark.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

OPENING = "object detection : "  # DATASETS.ADD_DET_PROMPT


@dataclass(frozen=True)
class Worded:
    """A target and its text."""

    target: Target  # the boxes that the text has a place for
    prompt: Prompt
    spans: list[tuple[Span, ...]]  # what each box owns
    maskable: list[Span]  # what masked language modelling may hide and ask for
    labels: dict[int, Span] = field(default_factory=dict)  # class names, where labels mean the same in every picture
    lost: int = 0  # boxes whose names did not fit


@dataclass(frozen=True)
class ClassOptions:
    """How class names become a prompt.

    Attributes:
        separator: Between two names.
        max_tokens: That fit, with start and end.
        caption_prompt: Words around each name, in the order of the labels.
        with_opening: Begin with "object detection : ".
        shuffled: Names in random order.
        most_negatives: Absent classes in a sampled prompt; 0 or less: 85, as in all released configs.
        control: Probabilities of how many of them, see :func:`sampled_prompt`; None: always as many as fit.
        max_num_labels: Classes in a sampled prompt; 0 or less: any number.
    """

    separator: str = ". "
    max_tokens: int = WIDTH
    caption_prompt: Sequence[Mapping[str, str]] | None = None
    with_opening: bool = False
    shuffled: bool = True
    most_negatives: int = -1
    control: tuple[float, ...] | None = None
    max_num_labels: int = -1


class Wording(Protocol):
    """Finds the words for a picture; all that is random comes from the draws."""

    def __call__(self, target: Target, draws: Draws) -> Worded: ...


class Captions:
    """The caption that the data have; box ``i`` is entity ``i`` of it."""

    def __call__(self, target: Target, draws: Draws) -> Worded:
        prompt = target.prompt
        assert prompt is not None
        return Worded(target, prompt, list(prompt.spans), [(0, len(prompt.text))])


@dataclass(frozen=True)
class EveryClass:
    """All classes in every prompt, in random order or in that of their labels (COCO, ODinW)."""

    names: Mapping[int, str]
    separator: str
    caption_prompt: Sequence[Mapping[str, str]] | None = None
    opening: str = ""
    shuffled: bool = True

    def __call__(self, target: Target, draws: Draws) -> Worded:
        rng = draws.python if self.shuffled else None
        prompt = every_class_prompt(self.names, self.separator, self.caption_prompt, self.opening, rng)
        return _of_classes(target, prompt)


@dataclass(frozen=True)
class SampledClasses:
    """The classes of the picture and some others, in random order (Objects365, LVIS).

    Attributes:
        control: Probabilities of the number of others, see :func:`sampled_prompt`.
        budget: Tokens that fit, without start and end.
        labelled: Labels mean the same in all pictures, which the shallow contrastive loss makes use of.
    """

    names: Mapping[int, str]
    separator: str
    tokenizer: Tokenizer
    control: Sequence[float]
    budget: int
    most_negatives: int = MOST_NEGATIVES
    max_num_labels: int = -1
    opening: str = ""
    labelled: bool = False

    def __call__(self, target: Target, draws: Draws) -> Worded:
        labels = target.labels.tolist()
        kept, length = boxes_that_fit(labels, self.names, self.tokenizer, draws.python, self.budget)
        prompt = sampled_prompt(
            [labels[index] for index in kept],
            self.names,
            self.tokenizer,
            draws.python,
            draws.numpy,
            control=self.control,
            positive_length=length,
            most_negatives=self.most_negatives,
            max_num_labels=self.max_num_labels,
            budget=self.budget,
            separator=self.separator,
            opening=self.opening,
        )
        return _of_classes(
            target[torch.tensor(kept, dtype=torch.int64)], prompt, self.labelled, len(labels) - len(kept)
        )


@dataclass(frozen=True)
class FixedClasses:
    """All classes but the background in the order of their labels, for sets whose first label is the background."""

    names: Mapping[int, str]
    separator: str
    opening: str = ""
    labelled: bool = False

    def __call__(self, target: Target, draws: Draws) -> Worded:
        return _of_classes(target, fixed_prompt(self.names, self.separator, self.opening), self.labelled)


def _of_classes(target: Target, prompt: Prompt, labelled: bool = False, lost: int = 0) -> Worded:
    """Boxes own the names of their classes; a box whose class the prompt does not name has no place in it."""
    spans = box_spans(target.labels.tolist(), prompt)
    named = torch.tensor([span is not None for span in spans], dtype=torch.bool)
    own = [span for span in spans if span is not None]
    labels = {label: span[0] for label, span in zip(prompt.ids, prompt.spans, strict=True)} if labelled else {}
    masked = [span[0] for span in own]
    return Worded(target[named], prompt, own, masked, labels, lost + len(spans) - len(own))


def word_classes(
    name: str, names: Mapping[int, str], tokenizer: Tokenizer, options: ClassOptions, sampled: bool, tabular: bool
) -> Wording:
    """The wording of a detection set.

    Args:
        name: Of the data set, for messages.
        names: Label to name.
        tokenizer: Counts tokens.
        options: From the config.
        sampled: Name the classes of the picture and some others; else all of them, if they fit.
        tabular: The set's labels begin with a background and mean the same in all pictures (TSV).

    Raises:
        ConfigError: the options do not fit each other, or the names do not fit into a prompt.
        PromptError: the caption prompt is for another number of classes.
    """
    opening = OPENING if options.with_opening else ""
    every: Wording
    if tabular:
        every = FixedClasses(names, options.separator, opening, labelled=True)
    else:
        every = EveryClass(names, options.separator, options.caption_prompt, opening, options.shuffled)
    if sampled and options.caption_prompt is not None:
        raise ConfigError(
            f"{name}: DATASETS.USE_CAPTION_PROMPT cannot be combined with "
            "DATASETS.SPECIAL_SAFEGUARD_FOR_COCO_GROUNDING: one names all classes, the other some"
        )
    if not (sampled and options.shuffled):
        count = tokenizer.count(_example(every).text)
        if count <= options.max_tokens:
            return every
        if not options.shuffled or options.caption_prompt is not None:
            key = "DISABLE_SHUFFLE" if not options.shuffled else "USE_CAPTION_PROMPT"
            raise ConfigError(
                f"{name}: its {len(names)} class names take {count} tokens, more than the {options.max_tokens} of "
                f"MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN: set DATASETS.{key} False, and prompts name some of them"
            )
        logger.warning(
            "%s: its %d class names take %d tokens, more than the %d of MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN: prompts "
            "name those of the picture and as many others as fit (DATASETS.SPECIAL_SAFEGUARD_FOR_COCO_GROUNDING)",
            name,
            len(names),
            count,
            options.max_tokens,
        )
    return SampledClasses(
        names,
        options.separator,
        tokenizer,
        control=_control(name, options.control),
        budget=options.max_tokens - 2,
        most_negatives=options.most_negatives if options.most_negatives > 0 else MOST_NEGATIVES,
        max_num_labels=options.max_num_labels,
        opening=opening if tabular else "",
        labelled=tabular,
    )


def _example(wording: Wording) -> Prompt:
    """What a wording makes of a picture without boxes."""
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), ImageMeta(0, (1, 1), (1, 1)))
    return wording(nothing, rng_for(0)).prompt


def _control(name: str, given: tuple[float, ...] | None) -> tuple[float, ...]:
    """Checked probabilities; the fourth, to drop classes of the picture, has no effect (the original stops at it)."""
    if given is None:
        return (0.0, 0.0, 1.0, 0.0)
    if len(given) != 4 or min(given) < 0 or sum(given[:3]) > 1:
        raise ConfigError(
            f"{name}: DATASETS.CONTROL_PROB is {given}: it must be four numbers from 0, the first three together "
            "1 at most, such as (0.0, 0.0, 0.5, 0.0)"
        )
    if given[3]:
        logger.info("%s: the fourth number of DATASETS.CONTROL_PROB, %g, has no effect", name, given[3])
    return given
