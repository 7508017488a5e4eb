"""What people type into one line."""

from __future__ import annotations

import pytest

from maskrcnn_benchmark.errors import PromptError
from maskrcnn_benchmark.text.prompts import find_phrases
from maskrcnn_benchmark.text.typed import split_names, split_phrases


def test_names_are_split_at_commas_outside_quotes() -> None:
    names = split_names('dog, "salt, pepper and 5\' pipe" ,, 7" nail,')
    assert names == ["dog", "salt, pepper and 5' pipe", '7" nail']
    assert split_names("") == []


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a red circle left of the dog", ["red circle", "dog"]),
        ("the man's hat is near the left side of a bus-stop.", ["man's hat", "bus-stop"]),
        ("Two people, one with an umbrella", ["Two people", "one", "umbrella"]),
        ("an apple and an apple", ["apple", "apple"]),
        ("数字", ["数字"]),
        ("on the of", None),
    ],
)
def test_phrases_are_the_words_between_small_words(text: str, phrases: list[str] | None) -> None:
    caption, found = split_phrases(text)
    assert (caption, found) == (text, phrases)
    assert found is None or len(find_phrases(caption, found)) == len(found)


def test_brackets_choose_phrases() -> None:
    assert split_phrases("the [red cup] on a [table]") == ("the red cup on a table", ["red cup", "table"])
    assert split_phrases("a [dog] and a [dog]") == ("a dog and a dog", ["dog", "dog"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a [dog", "pairs"),
        ("a dog]", "pairs"),
        ("a [red [dog]]", "pairs"),
        ("a dog and a [dog]", "before without brackets"),
        ("a [ ] dog", "no words"),
    ],
)
def test_brackets_that_cannot_be_meant(text: str, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        split_phrases(text)
