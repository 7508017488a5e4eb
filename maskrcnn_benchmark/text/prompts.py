"""Class names and captions as prompts: what is written, and which characters of it belong to which name."""

from __future__ import annotations

import logging
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from maskrcnn_benchmark.errors import ConfigError, PromptError
from maskrcnn_benchmark.structures.prompt import OWN_WORDS, Prompt, Span
from maskrcnn_benchmark.text.positive_map import WIDTH, entity_tokens, shorten
from maskrcnn_benchmark.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

BACKGROUND = "__background__"
PARTS = ("prefix", "name", "suffix")
WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")

Category = tuple[int, str]  # label, name


@dataclass(frozen=True)
class PromptOptions:
    """How class names are written.

    Attributes:
        separator: Between two names.
        caption_prompt: Per class, the words before, in the place of, and after its name (None: the bare names).
        suppress: Words at the end that belong to no class.
        chunk_size: Classes per prompt, -1 for all in one.
        max_tokens: Tokens that a prompt may take, with start and end token; one that takes more is split.
        own_words: Of a caption without phrases, each box says which of its words it belongs to.
    """

    separator: str = ". "
    caption_prompt: Sequence[Mapping[str, str]] | None = None
    suppress: tuple[str, ...] = ()
    chunk_size: int = -1
    max_tokens: int = WIDTH
    own_words: bool = False

    def __post_init__(self) -> None:
        if self.chunk_size != -1 and self.chunk_size < 1:
            raise ConfigError(f"TEST.CHUNKED_EVALUATION must be -1 (one prompt) or at least 1, got {self.chunk_size}")
        if self.max_tokens < 3:
            raise ConfigError(f"MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN must be at least 3, got {self.max_tokens}")
        for i, entry in enumerate(self.caption_prompt or ()):
            if not isinstance(entry, Mapping) or not all(isinstance(entry.get(part), str) for part in PARTS):
                raise ConfigError(
                    f"DATASETS.CAPTION_PROMPT entry {i} must have texts 'prefix', 'name' and 'suffix', got {entry!r}"
                )


@dataclass(frozen=True)
class Phrase:
    """One name in a prompt, and the words around it that are not its own."""

    label: int
    text: str  # as it is written
    name: str  # as it is known to people
    before: str = ""
    after: str = ""


def clean_name(name: str) -> str:
    """A category name as words: no (remark), spaces for underscores; a space may be left at its end, as released."""
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def write_prompt(phrases: Sequence[Phrase], separator: str, opening: str = "", suppress: Sequence[str] = ()) -> Prompt:
    """Join phrases, noting where each name begins and ends."""
    text, spans = opening, []
    for i, phrase in enumerate(phrases):
        text += (separator if i else "") + phrase.before
        spans.append(((len(text), len(text) + len(phrase.text)),))
        text += phrase.text + phrase.after
    text += "".join(separator + word for word in suppress)
    return Prompt(text, tuple(spans), tuple(p.label for p in phrases), tuple(p.name for p in phrases))


def class_prompts(categories: Sequence[Category], options: PromptOptions, tokenizer: Tokenizer) -> list[Prompt]:
    """Prompts that name the categories of a data set, in the order given.

    Categories may share a name: each keeps its own span. A name without a token stays in the prompt and scores 0. Both
    are logged. Background (label 0 or ``__background__``) is left out.

    Raises:
        PromptError: there are no categories, or one name alone does not fit.
    """
    categories = [(label, name) for label, name in categories if label != 0 and name != BACKGROUND]
    if not categories:
        raise PromptError("no class names to look for: the data set has no categories besides the background")
    phrases = class_phrases(categories, options.caption_prompt, cleaned=False)
    for written, labels in _same(phrases).items():
        logger.warning("categories %s are all written %r: each has its own place in the prompt", labels, written)
    prompts = _chunks(phrases, options, tokenizer)
    silent = [name for prompt in prompts for name in _without_token(prompt, tokenizer)]
    if silent:
        logger.warning("no token for the categories %s: they score 0", ", ".join(map(repr, silent)))
    return prompts


def label_prompts(labels: Sequence[str], options: PromptOptions, tokenizer: Tokenizer) -> list[Prompt]:
    """Prompts for names that a user typed; label ``i`` of the result is the ``i``-th name, from 1.

    Names are cleaned as those of a data set and white space is made even; a caption prompt is not applied.

    Raises:
        PromptError: the list is empty, a name is no text, has no word in it, is there twice or alone does not fit.
    """
    if not labels:
        raise PromptError("the list of labels is empty: give at least one name")
    phrases = []
    for i, name in enumerate(labels, 1):
        if not isinstance(name, str):
            raise PromptError(f"label {i} must be a text, got {name!r}")
        written = " ".join(clean_name(name).split())
        if not written:
            raise PromptError(f"label {i} ({name!r}) has no word in it: remove it, or give it a name")
        phrases.append(Phrase(i, written, name))
    for written, numbers in _same(phrases).items():
        names = " and ".join(f"{i} ({labels[i - 1]!r})" for i in numbers)
        raise PromptError(f"labels {names} are both written {written!r}: keep one of them")
    prompts = _chunks(phrases, replace(options, caption_prompt=None), tokenizer)
    for prompt in prompts:
        for name in _without_token(prompt, tokenizer):
            raise PromptError(f"label {name!r} has no token in {tokenizer.name}: use other words")
    return prompts


def caption_prompt(caption: str, phrases: Sequence[str] | None, options: PromptOptions, tokenizer: Tokenizer) -> Prompt:
    """A sentence as a prompt.

    Args:
        caption: The sentence.
        phrases: Parts of it, word for word and in its order; phrase ``i`` is label ``i``, from 1. None: the whole,
            label 1, by each of its words, so that a box scores as the word that fits it best: few of them name the
            thing itself, and the others would draw a mean down. With ``options.own_words`` whatever it speaks of.
        options: Gives the number of tokens that fit.
        tokenizer: The network's.

    Raises:
        PromptError: the caption has no words or too many, or a phrase is not in it.
    """
    if not isinstance(caption, str) or not caption.strip():
        raise PromptError(f"the caption has no words: {caption!r}")
    if phrases is not None and not phrases:
        raise PromptError("the list of phrases is empty: give at least one, or none to look for the whole caption")
    words = [match.span() for match in WORD.finditer(caption)]
    if phrases is not None:
        prompt = grounding_prompt(caption, [[span] for span in find_phrases(caption, phrases)])
    elif options.own_words:
        spans, ids = [(0, len(caption)), *words], (OWN_WORDS, *range(1, len(words) + 1))
        prompt = grounding_prompt(caption, [[span] for span in spans], ids)
    else:
        words = words or [(0, len(caption))]
        prompt = Prompt(caption, tuple((span,) for span in words), (1,) * len(words), (caption,) * len(words))
    if (count := tokenizer.count(caption)) > options.max_tokens:
        raise PromptError(
            f"the caption {shorten(caption)!r} takes {count} tokens, more than {options.max_tokens}: shorten it"
        )
    for name in _without_token(prompt, tokenizer):
        raise PromptError(f"phrase {name!r} has no token in {tokenizer.name}: use other words")
    return prompt


def grounding_prompt(caption: str, spans: Sequence[Sequence[Span]], ids: Sequence[int] | None = None) -> Prompt:
    """A caption with known character spans per phrase; ``ids`` default to 1, 2, ..."""
    numbers = range(1, len(spans) + 1) if ids is None else ids
    return Prompt(caption, tuple(tuple((b, e) for b, e in phrase) for phrase in spans), tuple(numbers))


def find_phrases(caption: str, phrases: Sequence[str]) -> list[Span]:
    """Where phrases are in a caption, one after the other; whole words are preferred ("man" is not in "woman").

    Raises:
        PromptError: a phrase is not in what is left of the caption.
    """
    spans, start = [], 0
    for i, phrase in enumerate(phrases, 1):
        if not isinstance(phrase, str) or not phrase.strip():
            raise PromptError(f"phrase {i} has no words: {phrase!r}")
        whole = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)").search(caption, start)
        begin = whole.start() if whole else caption.find(phrase, start)
        if begin < 0:
            where = "after the phrases before it" if phrase in caption else "as you wrote it"
            raise PromptError(f"phrase {i} ({phrase!r}) is not in the caption {shorten(caption)!r} {where}")
        start = begin + len(phrase)
        spans.append((begin, start))
    return spans


def class_phrases(
    categories: Sequence[Category], caption_prompt: Sequence[Mapping[str, str]] | None, cleaned: bool
) -> list[Phrase]:
    """Categories as phrases; ``cleaned`` cleans the names of a caption prompt too (training does, evaluation does not).

    Raises:
        PromptError: the caption prompt is for another number of categories.
    """
    if caption_prompt is None:
        return [Phrase(label, clean_name(name), name) for label, name in categories]
    if len(caption_prompt) != len(categories):
        raise PromptError(
            f"DATASETS.CAPTION_PROMPT has {len(caption_prompt)} entries for {len(categories)} categories: "
            "give one per category, in the order of their labels"
        )
    return [
        Phrase(label, clean_name(words["name"]) if cleaned else words["name"], name, words["prefix"], words["suffix"])
        for (label, name), words in zip(categories, caption_prompt, strict=True)
    ]


def _chunks(phrases: Sequence[Phrase], options: PromptOptions, tokenizer: Tokenizer) -> list[Prompt]:
    """Prompts of ``chunk_size`` phrases, split further where the tokens do not fit."""
    size = len(phrases) if options.chunk_size == -1 else options.chunk_size
    chunks = [phrases[i : i + size] for i in range(0, len(phrases), size)]
    prompts = [prompt for chunk in chunks for prompt in _split(chunk, options, tokenizer)]
    if len(prompts) > len(chunks):
        logger.warning(
            "%d names take more than the %d tokens of MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN: %d prompts instead of %d",
            len(phrases),
            options.max_tokens,
            len(prompts),
            len(chunks),
        )
    return prompts


def _split(phrases: Sequence[Phrase], options: PromptOptions, tokenizer: Tokenizer) -> list[Prompt]:
    def write(number: int) -> Prompt:
        return write_prompt(phrases[:number], options.separator, suppress=options.suppress)

    def count(number: int) -> int:
        return tokenizer.count(write(number).text)

    prompts = []
    while phrases:
        most = 1
        while most < len(phrases) and count(most) <= options.max_tokens:
            most = min(2 * most, len(phrases))
        fits = bisect_right(range(1, most + 1), options.max_tokens, key=count)
        if fits == 0:
            raise PromptError(
                f"the name {shorten(phrases[0].name)!r} takes {count(1)} tokens in its prompt, more than "
                f"{options.max_tokens} (MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN): shorten it"
            )
        prompts.append(write(fits))
        phrases = phrases[fits:]
    return prompts


def _same(phrases: Sequence[Phrase]) -> dict[str, list[int]]:
    """Labels that are written alike: {text: labels}."""
    labels: dict[str, list[int]] = {}
    for phrase in phrases:
        labels.setdefault(phrase.text.strip(), []).append(phrase.label)
    return {text: group for text, group in labels.items() if len(group) > 1}


def _without_token(prompt: Prompt, tokenizer: Tokenizer) -> list[str]:
    """Names of the entities that no token belongs to."""
    found = entity_tokens(tokenizer.encode([prompt.text]), 0, prompt.spans).any(1).tolist()
    return [prompt.name(i) for i, has_token in enumerate(found) if not has_token]
