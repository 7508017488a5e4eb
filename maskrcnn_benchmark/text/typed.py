"""What people type into one line: names between commas, or a sentence with phrases to look for."""

from __future__ import annotations

import csv
import re

from maskrcnn_benchmark.errors import PromptError
from maskrcnn_benchmark.text.prompts import find_phrases

_PLACES = "left|right|top|bottom|front|back|side|middle|centre|center|edge|end"
_WORDS = (
    "a an the this that these those some any each every another both all no its his her their our my your "
    "about above across after against along among around as at before behind below beneath beside besides between "
    "beyond by down during for from in inside into near of off on onto out outside over past through to toward towards "
    "under underneath up upon via while with within without and or but nor than then so is are was were be been being "
    "has have had do does did can could will would there here it he she they we you i who whom whose which what where "
    "when holding wearing riding sitting standing lying playing walking running looking watching carrying"
)
_PART = r"[\w'\u2019-]"  # of a word
_BETWEEN = re.compile(
    rf"[^\w\s'\u2019-]+|(?<!{_PART})(?:(?:(?:{_PLACES})\s+)+of|next\s+to|{'|'.join(_WORDS.split())})(?!{_PART})",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


def split_names(text: str) -> list[str]:
    """Names between commas, without the spaces around them; one in double quotes may have commas of its own."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip()]


def split_phrases(text: str) -> tuple[str, list[str] | None]:
    """A sentence and the phrases of it to look for, word for word and in its order.

    Phrases are what stands in square brackets, ``the [red cup] on a [table]``. Where there are none, they are the words
    between articles, prepositions and the like, a rule of thumb for English; None: no words are left over.

    Raises:
        PromptError: brackets do not close, or the words in them are there before without brackets.
    """
    pieces = _BRACKETS.split(text)
    if any("[" in piece or "]" in piece for piece in pieces):
        raise PromptError(f"brackets must come in pairs, not one in another: {text!r}")
    caption, phrases = "".join(pieces), pieces[1::2]
    if not phrases:
        return text, [part.strip(" \t'-") for part in _BETWEEN.split(text) if re.search(r"\w", part)] or None
    begins = [sum(map(len, pieces[:i])) for i in range(1, len(pieces), 2)]
    for phrase, begin, (found, _) in zip(phrases, begins, find_phrases(caption, phrases), strict=True):
        if found != begin:
            raise PromptError(f"{phrase!r} is there before without brackets: put those words in brackets too")
    return caption, phrases
