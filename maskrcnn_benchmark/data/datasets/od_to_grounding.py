"""Boxes with class labels as grounding data: a prompt that names what is there and some of what is not.

The order of the random draws is that of GLIP and FIBER (https://github.com/microsoft/FIBER), so that equal generators
give equal prompts. Every function draws from the generators that it is given, ``random.Random`` and numpy's
``RandomState``, and from nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from numpy.random import RandomState

from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.structures.prompt import Prompt, Span
from maskrcnn_benchmark.text.prompts import class_phrases, clean_name, write_prompt
from maskrcnn_benchmark.text.tokenizer import Tokenizer

MOST_NEGATIVES = 85  # DATASETS.RANDOM_SAMPLE_NEG
BUDGET = 254  # tokens of a prompt without its start and end


def every_class_prompt(
    names: Mapping[int, str],
    separator: str = " ",
    caption_prompt: Sequence[Mapping[str, str]] | None = None,
    opening: str = "",
    rng: Random | None = None,
) -> Prompt:
    """A prompt with every class: sorted by label, or shuffled by ``rng``.

    Args:
        names: Label to name, without background.
        separator: Between two names.
        caption_prompt: Words around each name, in the order of the labels.
        opening: What the prompt starts with.
        rng: None keeps the order of the labels.

    Raises:
        ConfigError: a caption prompt is to be shuffled.
        PromptError: the caption prompt is for another number of classes.
    """
    labels = sorted(names)
    if rng is not None:
        if caption_prompt is not None:
            raise ConfigError(
                "DATASETS.CAPTION_PROMPT needs DATASETS.DISABLE_SHUFFLE True: it is in the order of the labels"
            )
        rng.shuffle(labels)
    phrases = class_phrases([(label, names[label]) for label in labels], caption_prompt, cleaned=True)
    return write_prompt(phrases, separator, opening)


def boxes_that_fit(
    labels: Sequence[int], names: Mapping[int, str], tokenizer: Tokenizer, rng: Random, budget: int = BUDGET
) -> tuple[list[int], int]:
    """Leave out boxes of random classes when the names of all classes present would be too long.

    Args:
        labels: Of N boxes.
        names: Label to name.
        tokenizer: Counts tokens, name by name.
        rng: Shuffles the classes.
        budget: Tokens that fit.

    Returns:
        The indices of the boxes to keep, and the tokens counted, with those of the first class that did not fit.
    """
    present = _in_order(labels)
    rng.shuffle(present)
    kept, length = set(), 0
    for label in present:
        length += _length(names[label], tokenizer)
        if length > budget:
            break
        kept.add(label)
    return [i for i, label in enumerate(labels) if label in kept], length


def sampled_prompt(
    labels: Sequence[int],
    names: Mapping[int, str],
    tokenizer: Tokenizer,
    rng: Random,
    np_rng: RandomState,
    *,
    control: Sequence[float],
    positive_length: int,
    most_negatives: int = MOST_NEGATIVES,
    max_num_labels: int = -1,
    budget: int = BUDGET,
    separator: str = ". ",
    opening: str = "",
    candidates: Sequence[int] | None = None,
) -> Prompt:
    """A shuffled prompt of the classes present and of random others.

    Args:
        labels: Of the boxes that :func:`boxes_that_fit` kept.
        names: Label to name; background may be among them, and then be drawn.
        tokenizer: Counts tokens.
        rng: Python's generator.
        np_rng: numpy's generator.
        control: Probabilities of one negative, of none, and of as many as there may be; what is left: a random number
            of them. A fourth entry (drop positives) has no effect.
        positive_length: Tokens of the classes present, from :func:`boxes_that_fit`.
        most_negatives: Negatives that there may be.
        max_num_labels: Classes that there may be altogether; 0 or less: any number.
        budget: Tokens that fit.
        separator: Between two names.
        opening: What the prompt starts with.
        candidates: Labels to draw negatives from; None: all of ``names``, in its order.
    """
    population = list(names if candidates is None else candidates)
    present = _in_order(labels)
    most = most_negatives if max_num_labels <= 0 else max(min(max_num_labels - len(present), most_negatives), 0)
    most = min(most, len(population))
    drawn = min(_number_of_negatives(control, most, rng, np_rng), len(population))
    negatives = _in_order(
        [i for i in np_rng.choice(population, size=drawn, replace=False).tolist() if i not in present]
    )
    rng.shuffle(present)
    rng.shuffle(negatives)
    chosen = _affordable(negatives, names, tokenizer, budget - positive_length) + present
    rng.shuffle(chosen)
    return write_prompt(class_phrases([(i, names[i]) for i in chosen], None, cleaned=True), separator, opening)


def fixed_prompt(names: Mapping[int, str], separator: str = ". ", opening: str = "") -> Prompt:
    """Every class but the first, which is taken for the background, in the order of the labels."""
    labels = sorted(names)[1:]
    return write_prompt(class_phrases([(i, names[i]) for i in labels], None, cleaned=True), separator, opening)


def box_spans(labels: Sequence[int], prompt: Prompt) -> list[tuple[Span, ...] | None]:
    """What each box is called: the characters of its class in the prompt, None where the prompt does not name it."""
    spans = dict(zip(prompt.ids, prompt.spans, strict=True))
    return [spans.get(label) for label in labels]


def _in_order(labels: Sequence[int]) -> list[int]:
    """Distinct labels in the order in which a set that grew by them gives them back, which is what gets shuffled."""
    distinct: set[int] = set()
    for label in labels:
        distinct.add(label)
    return list(distinct)


def _number_of_negatives(control: Sequence[float], most: int, rng: Random, np_rng: RandomState) -> int:
    one, none, full = control[:3]
    draw = rng.random()
    if draw < one:
        return 1
    if draw < none + one:
        return 0
    if draw < full + none + one:
        return most
    rng.random()  # the reference draws here and after, for choices that always go one way
    number = int(np_rng.choice(max(1, most))) + 1
    rng.random()
    return number


def _affordable(labels: Sequence[int], names: Mapping[int, str], tokenizer: Tokenizer, budget: int) -> list[int]:
    """The first labels whose names together stay below ``budget`` tokens."""
    chosen = []
    for label in labels:
        budget -= _length(names[label], tokenizer)
        if budget <= 0:
            break
        chosen.append(label)
    return chosen


def _length(name: str, tokenizer: Tokenizer) -> int:
    """Tokens of a name and its separator; RoBERTa counts the space at the end too, one more than the prompt has."""
    return len(tokenizer.tokenize(clean_name(name) + ". "))
