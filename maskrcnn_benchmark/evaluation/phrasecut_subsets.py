"""The diagnostic subsets of PhraseCut: which of them a phrase is in (https://github.com/ChenyunWu/PhraseCutDataset)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

WORDS = Path(__file__).with_name("phrasecut_words.yaml")
KINDS = (*("a_color", "a_shape", "a_material", "a_texture", "a_state", "a_adj", "a_noun", "a_loc", "a_count", "a_bad"),)
"""By the words that a phrase's attributes are among."""
SUBSETS = (
    *("all", "c_coco", "c20", "c100", "c500", "c21-100", "c101-500", "c500+", "i_single", "i_multi", "i_many"),
    *("p_name", "p_att", "p_att+", "p_rel", "p_rel+", "p_verbose", "p_attm", "p_relm", "t_stuff", "t_obj"),
    *("s_small", "s_mid", "s_large", "a20", "a100", "a200", "a21-100", "a101-200", "a200+"),
    *(*KINDS, "p_att_rel", "d_cocotv", "d_notcocotv"),
)
"""In the order in which they are reported."""
PHRASE_TYPES = {"name": "p_name", "attribute": "p_att+", "relation": "p_rel+", "verbose": "p_verbose"}
MANY = 5  # instances
SMALL, LARGE = 0.02, 0.2  # share of the picture


@dataclass(frozen=True)
class PhraseStructure:
    """What a phrase consists of.

    Attributes:
        name: The category.
        attributes: Words that qualify it.
        relations: How many descriptions of relations it has.
        kind: What sets it apart from other things of the category: "name", "attribute", "relation" or "verbose".
    """

    name: str
    attributes: tuple[str, ...]
    relations: int
    kind: str


class Ranks:
    """How frequent categories and attributes are in the data.

    Args:
        categories: The most frequent one first.
        attributes: Likewise.
    """

    def __init__(self, categories: Sequence[str], attributes: Sequence[str]):
        self._categories = {name: rank for rank, name in reversed(list(enumerate(categories)))}
        self._attributes = {name: rank for rank, name in reversed(list(enumerate(attributes)))}

    def subsets(self, phrase: PhraseStructure) -> set[str]:
        """A category that is not listed is in c500+; a phrase without a listed attribute in a200+."""
        category = self._categories.get(phrase.name, 500)
        attribute = min((self._attributes.get(name, 200) for name in phrase.attributes), default=200)
        return _bands("c", category, (20, 100, 500)) | _bands("a", attribute, (20, 100, 200))


def _bands(letter: str, rank: int, limits: tuple[int, int, int]) -> set[str]:
    """Rank from 0 -> "c20", "c100", "c500" (cumulative), and one of "c21-100", "c101-500", "c500+"."""
    low, middle, high = limits
    found = {f"{letter}{limit}" for limit in limits if rank < limit}
    if low <= rank < middle:
        found.add(f"{letter}{low + 1}-{middle}")
    elif middle <= rank < high:
        found.add(f"{letter}{middle + 1}-{high}")
    return found or {f"{letter}{high}+"}


@cache
def _words() -> Mapping[str, frozenset[str]]:
    return {name: frozenset(words) for name, words in yaml.safe_load(WORDS.read_text(encoding="utf-8")).items()}


def subsets_of(phrase: PhraseStructure, ranks: Ranks, instances: int, share: float, from_coco: bool) -> set[str]:
    """Names of the subsets that a phrase is in, "all" among them.

    Args:
        phrase: What it consists of.
        ranks: Of the data set.
        instances: Things that it is about.
        share: Of the picture that they cover, 0..1.
        from_coco: The picture is in COCO's training or validation set.
    """
    words = _words()
    found = {"all", "d_cocotv" if from_coco else "d_notcocotv"} | ranks.subsets(phrase)
    found |= {PHRASE_TYPES[phrase.kind]} if phrase.kind in PHRASE_TYPES else set()
    found |= {"c_coco"} if phrase.name in words["c_coco"] else set()
    found.add("t_stuff" if any(word in phrase.name for word in words["t_stuff"]) else "t_obj")
    found |= {kind for kind in KINDS if not words[kind].isdisjoint(phrase.attributes)}
    counts = {"p_att": len(phrase.attributes) > 0, "p_attm": len(phrase.attributes) > 1}
    counts |= {"p_rel": phrase.relations > 0, "p_relm": phrase.relations > 1}
    found |= {name for name, is_in in counts.items() if is_in}
    found |= {"p_att_rel"} if counts["p_att"] and counts["p_rel"] else set()
    if instances:
        found.add("i_single" if instances == 1 else "i_multi" if instances < MANY else "i_many")
    found.add("s_small" if share < SMALL else "s_large" if share > LARGE else "s_mid")
    return found
