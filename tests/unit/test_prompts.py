"""Class names and captions as prompts: spans, chunks, budgets and messages."""

from __future__ import annotations

import logging
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState

from maskrcnn_benchmark.data.datasets.od_to_grounding import (
    box_spans,
    boxes_that_fit,
    every_class_prompt,
    fixed_prompt,
    sampled_prompt,
)
from maskrcnn_benchmark.errors import ConfigError, PromptError
from maskrcnn_benchmark.structures.prompt import OWN_WORDS, Prompt
from maskrcnn_benchmark.text.positive_map import label_tokens, od_label_map, positive_map, text_batch, token_ids
from maskrcnn_benchmark.text.prompts import (
    PromptOptions,
    caption_prompt,
    class_prompts,
    clean_name,
    find_phrases,
    grounding_prompt,
    label_prompts,
)
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer
from tests.unit.tiny_tokenizers import write_bpe, write_wordpiece

OPTIONS = PromptOptions()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    folder: Path = tmp_path_factory.mktemp("tokenizers")
    return load_tokenizer(write_bpe(folder / "roberta")), load_tokenizer(write_wordpiece(folder / "bert"))


@pytest.fixture(params=[0, 1], ids=["roberta", "bert"])
def words(request: pytest.FixtureRequest, both: tuple[Tokenizer, Tokenizer]) -> Tokenizer:
    return both[request.param]


def written(prompt: Prompt) -> list[str]:
    """What each entity's characters say."""
    return [prompt.text[begin:end] for spans in prompt.spans for begin, end in spans]


def covered(prompt: Prompt, words: Tokenizer) -> list[str]:
    """The characters under the tokens of each entity."""
    text = words.encode([prompt.text])
    tokens = label_tokens(text_batch([prompt], words).entity_tokens[0], range(len(prompt)))
    offsets = text.offsets(0)
    return [prompt.text[offsets[ids[0]][0] : offsets[ids[-1]][1]] for ids in tokens.values()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("traffic_light", "traffic light"),
        ("bow_(weapon)", "bow "),
        ("a (b) c (d) e", "a e"),
        ("a  b    c", "a b  c"),
        ("yoke_(animal", "yoke (animal"),
    ],
)
def test_clean_name(name: str, expected: str) -> None:
    assert clean_name(name) == expected


@pytest.mark.parametrize(
    "names",
    [
        ["container", "container number"],
        ["container number", "container", "number", "con"],
        ["dog", "hot dog", "dog hot"],
        [".*", "a+b", "[dog]", "(?P<cat>", "$^", "\\d"],
        ["café", "東京", "🐕", "dog 🐕 dog", "ÉTÉ"],
        ["a", "a.", "a. a", ". a"],
    ],
)
def test_each_name_owns_its_own_characters(names: list[str], words: Tokenizer) -> None:
    options = PromptOptions(max_tokens=200)
    (prompt,) = class_prompts(list(enumerate(names, 1)), options, words)
    assert written(prompt) == [clean_name(name) for name in names]
    assert prompt.text == ". ".join(map(clean_name, names))
    assert prompt.names == tuple(names)
    for name, chars in zip(names, covered(prompt, words), strict=True):
        assert clean_name(name) in (chars, chars.removesuffix("."))


NAMES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=8)
TRICKY = st.lists(st.text("ab ._()*+?[]\\^$|é\u0301\u200b🐕東", min_size=1, max_size=8), min_size=1, max_size=8)


@settings(deadline=None, max_examples=150)
@given(names=NAMES | TRICKY)
def test_tokens_cover_their_name_and_no_other(names: list[str], both: tuple[Tokenizer, Tokenizer]) -> None:
    for words in both:
        prompts = class_prompts(list(enumerate(names, 1)), PromptOptions(max_tokens=2000), words)
        for prompt in prompts:
            check_cover(prompt, words)


def check_cover(prompt: Prompt, words: Tokenizer) -> None:
    text = words.encode([prompt.text])
    offsets = text.offsets(0)
    owner = {char: i for i, ((begin, end),) in enumerate(prompt.spans) for char in range(begin, end)}
    for entity, ((begin, end),) in enumerate(prompt.spans):
        ids = token_ids(text, 0, (begin, end))
        chars = {char for i in ids for char in range(*offsets[i])}
        assert {owner[char] for char in chars & owner.keys()} <= {entity}
        assert all(offsets[i][0] < end and offsets[i][1] > begin for i in ids if offsets[i][0] < offsets[i][1])
        if ids:
            assert {c for c in range(begin, end) if text.char_to_token(0, c) is not None} <= chars


def test_chunks_keep_labels_and_slice_the_caption_prompt(words: Tokenizer) -> None:
    prompt = [{"prefix": f"p{i} ", "name": f"dog {i}", "suffix": f" s{i}"} for i in range(5)]
    options = PromptOptions(chunk_size=2, caption_prompt=prompt)
    prompts = class_prompts([(i, f"category {i}") for i in (3, 7, 1, 9, 4)], options, words)
    assert [p.text for p in prompts] == ["p0 dog 0 s0. p1 dog 1 s1", "p2 dog 2 s2. p3 dog 3 s3", "p4 dog 4 s4"]
    assert [p.ids for p in prompts] == [(3, 7), (1, 9), (4,)]
    assert [w for p in prompts for w in written(p)] == [f"dog {i}" for i in range(5)]
    assert prompts[1].names == ("category 1", "category 9")


def test_caption_prompt_of_another_length_is_refused(words: Tokenizer) -> None:
    options = PromptOptions(caption_prompt=[{"prefix": "", "name": "dog", "suffix": ""}])
    with pytest.raises(PromptError, match="CAPTION_PROMPT has 1 entries for 2 categories"):
        class_prompts([(1, "dog"), (2, "cat")], options, words)


def test_suppressed_words_follow_in_every_prompt_without_a_label(words: Tokenizer) -> None:
    options = PromptOptions(suppress=("street", "sign"), chunk_size=1)
    prompts = class_prompts([(1, "dog"), (2, "cat")], options, words)
    assert [p.text for p in prompts] == ["dog. street. sign", "cat. street. sign"]
    assert [p.ids for p in prompts] == [(1,), (2,)]


def test_a_prompt_that_does_not_fit_is_split_and_never_cut(words: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"hot dog {i}" for i in range(30)]
    options = PromptOptions(max_tokens=40, suppress=("cat",))
    with caplog.at_level(logging.WARNING):
        prompts = class_prompts(list(enumerate(names, 1)), options, words)
    assert [name for p in prompts for name in written(p)] == names
    assert [label for p in prompts for label in p.ids] == list(range(1, 31))
    assert all(words.count(p.text) <= 40 for p in prompts)
    assert all(text_batch([p], words, 40).entity_tokens[0].any(1).all() for p in prompts)
    assert (
        f"30 names take more than the 40 tokens of MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN: {len(prompts)} prompts"
        in (caplog.text)
    )


def test_chunks_that_do_not_fit_are_split_further(words: Tokenizer) -> None:
    options = PromptOptions(max_tokens=25, chunk_size=10)
    prompts = class_prompts([(i, f"hot dog {i}") for i in range(1, 21)], options, words)
    assert len(prompts) > 2
    assert [label for p in prompts for label in p.ids] == list(range(1, 21))
    assert any(p.ids[0] == 11 for p in prompts), "a chunk is never joined with the next"


def test_one_name_that_does_not_fit_is_named(words: Tokenizer) -> None:
    long = "hot dog " * 40
    with pytest.raises(
        PromptError, match=r"the name 'hot dog hot.*\.\.\.' takes \d+ tokens in its prompt, more than 30"
    ):
        class_prompts([(1, "cat"), (2, long)], PromptOptions(max_tokens=30), words)


@pytest.mark.parametrize("categories", [[], [(0, "things")], [(1, "__background__"), (0, "x")]])
def test_no_categories(categories: list[tuple[int, str]], words: Tokenizer) -> None:
    with pytest.raises(PromptError, match="no class names to look for"):
        class_prompts(categories, OPTIONS, words)


def test_background_is_not_asked_for(words: Tokenizer) -> None:
    (prompt,) = class_prompts([(0, "creatures"), (1, "__background__"), (2, "dog"), (3, "cat")], OPTIONS, words)
    assert (prompt.text, prompt.ids) == ("dog. cat", (2, 3))


def test_categories_of_one_name_and_names_without_token_are_logged(
    words: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    (prompt,) = class_prompts([(1, "bow_(a)"), (2, "bow_(b)"), (3, "(x)"), (4, "dog")], OPTIONS, words)
    assert "categories [1, 2] are all written 'bow'" in caplog.text
    assert "no token for the categories '(x)': they score 0" in caplog.text
    tokens = label_tokens(text_batch([prompt], words).entity_tokens[0], prompt.ids)
    assert set(tokens) == {1, 2, 4}
    assert not set(tokens[1]) & set(tokens[2])


def test_a_users_labels(words: Tokenizer) -> None:
    (prompt,) = label_prompts([" traffic_light", "hot  \t dog", "bow (weapon)"], OPTIONS, words)
    assert prompt.text == "traffic light. hot dog. bow"
    assert prompt.ids == (1, 2, 3)
    assert prompt.names == (" traffic_light", "hot  \t dog", "bow (weapon)")


def test_a_users_labels_ignore_the_caption_prompt_of_a_data_set(words: Tokenizer) -> None:
    options = PromptOptions(caption_prompt=[{"prefix": "a ", "name": "fish", "suffix": ""}])
    assert label_prompts(["dog", "cat"], options, words)[0].text == "dog. cat"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "the list of labels is empty"),
        (["dog", 3], "label 2 must be a text, got 3"),
        (["dog", " "], r"label 2 \(' '\) has no word in it"),
        (["(dog)"], r"label 1 \('\(dog\)'\) has no word in it"),
        (["dog", "cat", "dog"], r"labels 1 \('dog'\) and 3 \('dog'\) are both written 'dog'"),
        (["bow_(a)", "bow"], r"labels 1 \('bow_\(a\)'\) and 2 \('bow'\) are both written 'bow'"),
        (["dog", "\u200b\u200b\u200b" + "dog"], None),
        (["x\ud800"], "is not valid Unicode"),
    ],
)
def test_labels_that_make_no_prompt(labels: list[str], message: str | None, both: tuple[Tokenizer, Tokenizer]) -> None:
    words = both[1]
    with pytest.raises(PromptError, match=message or r"label '.*dog' has no token in bert: use other words"):
        label_prompts(labels, OPTIONS, words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 0}, "TEST.CHUNKED_EVALUATION must be -1 .* got 0"),
        ({"max_tokens": 2}, "MAX_QUERY_LEN must be at least 3, got 2"),
        ({"caption_prompt": [{"name": "dog"}]}, "CAPTION_PROMPT entry 0 must have texts 'prefix', 'name' and 'suffix'"),
        ({"caption_prompt": ["dog"]}, "CAPTION_PROMPT entry 0"),
    ],
)
def test_impossible_options(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptOptions(**change)  # type: ignore[arg-type]


def test_phrases_are_found_in_order_and_as_whole_words(words: Tokenizer) -> None:
    caption = "a woman and a man by a container and a container number"
    phrases = ["man", "container", "container number"]
    prompt = caption_prompt(caption, phrases, OPTIONS, words)
    assert written(prompt) == phrases
    assert prompt.spans[0] == ((14, 17),)
    assert prompt.ids == (1, 2, 3)
    assert find_phrases("東京タワー", ["タワー"]) == [(2, 5)]


def test_a_whole_caption(words: Tokenizer) -> None:
    prompt = caption_prompt("the dog, left", None, OPTIONS, words)
    assert prompt.spans == (((0, 3),), ((4, 7),), ((9, 13),))
    assert prompt.ids == (1, 1, 1)
    assert {prompt.name(entity) for entity in range(3)} == {"the dog, left"}
    assert caption_prompt("?!", None, OPTIONS, words).spans == (((0, 2),),)


def test_the_words_of_a_caption(words: Tokenizer) -> None:
    prompt = caption_prompt("The dog's ball, a T-shirt .", None, PromptOptions(own_words=True), words)
    assert written(prompt) == ["The dog's ball, a T-shirt .", "The", "dog's", "ball", "a", "T-shirt"]
    assert prompt.ids == (OWN_WORDS, 1, 2, 3, 4, 5)
    phrases = caption_prompt("the dog", ["dog"], PromptOptions(own_words=True), words)
    assert (phrases.spans, phrases.ids) == ((((4, 7),),), (1,))


@pytest.mark.parametrize(
    ("caption", "phrases", "message"),
    [
        ("  ", None, "the caption has no words"),
        ("a dog", [], "the list of phrases is empty"),
        ("a dog", ["cat"], r"phrase 1 \('cat'\) is not in the caption 'a dog' as you wrote it"),
        ("a dog, a cat", ["cat", "dog"], r"phrase 2 \('dog'\) is not in .* after the phrases before it"),
        ("a dog", [" "], "phrase 1 has no words"),
        ("hot dog " * 60, None, r"the caption 'hot .*\.\.\.' takes \d+ tokens, more than 50"),
    ],
)
def test_captions_that_make_no_prompt(caption: str, phrases: list[str] | None, message: str, words: Tokenizer) -> None:
    with pytest.raises(PromptError, match=message):
        caption_prompt(caption, phrases, PromptOptions(max_tokens=50), words)


def test_text_batch_pads_and_refuses_what_is_too_long(words: Tokenizer) -> None:
    prompts = label_prompts(["dog", "hot dog"], PromptOptions(chunk_size=1), words)
    short, padded = text_batch(prompts, words), text_batch(prompts, words, pad_to=20)
    length = short.input_ids.shape[1]
    assert length == max(words.count(p.text) for p in prompts)
    assert padded.input_ids.shape == (2, 20)
    assert padded.input_ids[:, :length].equal(short.input_ids)
    assert padded.input_ids[:, length:].eq(words.pad_id).all()
    assert padded.attention_mask.sum(1).equal(short.attention_mask.sum(1))
    assert [t.shape for t in padded.entity_tokens] == [(1, 20), (1, 20)]
    with pytest.raises(PromptError, match=r"the prompt 'dog' takes \d+ tokens, more than 2"):
        text_batch(prompts, words, max_length=2)


def test_maps_of_boxes_with_several_spans(words: Tokenizer) -> None:
    prompt = grounding_prompt("dog and cat and dog", [[(0, 3), (16, 19)], [(8, 11)], []])
    text = words.encode([prompt.text])
    rows = positive_map(text, 0, prompt.spans)
    assert rows.shape == (3, 256)
    assert rows.sum(1).tolist() == pytest.approx([1, 1, 0], abs=1e-5)
    assert rows[0].bool().equal((positive_map(text, 0, [[(0, 3)]]) + positive_map(text, 0, [[(16, 19)]]))[0].bool())
    assert not (rows[0].bool() & rows[1].bool()).any()
    labels = od_label_map(text, 0, {5: (0, 3), 6: (0, 3), 7: (8, 11)})
    assert set(labels.tolist()) == {-1.0, 6.0, 7.0}


LABELS = {1: "dog", 2: "hot_dog", 3: "cat_(animal)", 4: "fish", 5: "shark", 0: "__background__"}


def test_every_class_prompt_shuffles_only_without_a_caption_prompt() -> None:
    names = {label: LABELS[label] for label in (3, 1, 2)}
    assert (
        every_class_prompt(names, ". ", opening="object detection : ").text == "object detection : dog. hot dog. cat "
    )
    orders = {every_class_prompt(names, ". ", rng=Random(seed)).ids for seed in range(20)}
    assert len(orders) > 3
    with pytest.raises(ConfigError, match=r"CAPTION_PROMPT needs DATASETS\.DISABLE_SHUFFLE True"):
        every_class_prompt(names, ". ", [{"prefix": "", "name": "x", "suffix": ""}] * 3, rng=Random(0))


def test_fixed_prompt_leaves_the_first_class_out() -> None:
    assert fixed_prompt(LABELS).ids == (1, 2, 3, 4, 5)


def test_boxes_that_fit(words: Tokenizer) -> None:
    labels = [1, 2, 1, 3, 5]
    everything, length = boxes_that_fit(labels, LABELS, words, Random(0))
    assert everything == [0, 1, 2, 3, 4]
    some, counted = boxes_that_fit(labels, LABELS, words, Random(0), budget=length - 1)
    assert some != everything
    assert counted >= length - 1
    kept = {labels[i] for i in some}
    assert some == [i for i, label in enumerate(labels) if label in kept]


@pytest.mark.parametrize(
    ("control", "negatives"),
    [((1, 0, 0, 0.2), {0, 1}), ((0, 1, 0), {0}), ((0, 0, 1), {4}), ((0, 0, 0), {0, 1, 2, 3, 4})],
)
def test_control_chooses_the_number_of_negatives(
    control: tuple[float, ...], negatives: set[int], words: Tokenizer
) -> None:
    seen = set()
    for seed in range(150):
        prompt = sampled_prompt(
            [1, 2, 1], LABELS, words, Random(seed), RandomState(seed), control=control, positive_length=5
        )
        assert {1, 2} <= set(prompt.ids)
        assert box_spans([1, 4], prompt)[0] is not None
        seen.add(len(prompt) - 2)
    assert seen == negatives


def test_negatives_come_from_the_candidates_and_within_the_limits(words: Tokenizer) -> None:
    def draw(**limits: object) -> Prompt:
        generators = Random(0), RandomState(0)
        return sampled_prompt([1], LABELS, words, *generators, control=(0, 0, 1), positive_length=5, **limits)  # type: ignore[arg-type]

    assert set(draw(candidates=[4, 5]).ids) == {1, 4, 5}
    assert len(draw(max_num_labels=2)) <= 2
    assert draw(budget=5).ids == (1,)
