"""Prompts, tokens and maps of FIBER and GLIP, as recorded from the reference."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from numpy.random import RandomState

from maskrcnn_benchmark.data.datasets.od_to_grounding import (
    box_spans,
    boxes_that_fit,
    every_class_prompt,
    sampled_prompt,
)
from maskrcnn_benchmark.structures.prompt import Prompt
from maskrcnn_benchmark.text.positive_map import (
    entity_tokens,
    greenlight_map,
    label_tokens,
    od_label_map,
    positive_map,
    text_batch,
)
from maskrcnn_benchmark.text.prompts import PromptOptions, class_phrases, write_prompt
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer
from tests.golden.common import golden_cases, load_case, tokenizer_dir


@cache
def tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(tokenizer_dir(name))


def int_keys(table: dict[str, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in table.items()}


def options(opts: list[str]) -> PromptOptions:
    """Recorded KEY VALUE pairs on top of the pre-training config, whose separator is ". "."""
    pairs = dict(zip(opts[::2], opts[1::2], strict=True))

    def value(key: str) -> Any:
        text = pairs.get(f"DATASETS.{key}", "None")
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    return PromptOptions(
        separator=pairs.get("DATASETS.SEPARATION_TOKENS", ". "),
        caption_prompt=value("CAPTION_PROMPT") if value("USE_CAPTION_PROMPT") else None,
        suppress=tuple(value("SUPRESS_QUERY") or ()) if value("USE_SUPRESS_QUERY") else (),
    )


def nonzero(row: torch.Tensor) -> dict[str, float]:
    return {str(i): row[i].item() for i in row.nonzero().flatten().tolist()}


@pytest.mark.parametrize("path", golden_cases("fiber", "text_eval_prompt*"))
def test_evaluation_prompts(path: Path) -> None:
    for case in load_case(path)[0]["cases"]:
        how = options(case["opts"])
        categories = list(zip(case["labels"], case["names"], strict=True))
        # Written as one prompt: the recorded names may be empty, or more than fit.
        prompt = write_prompt(
            class_phrases(categories, how.caption_prompt, False), how.separator, suppress=how.suppress
        )
        text = tokenizer(case["tokenizer"]).encode([prompt.text])
        assert prompt.text == case["caption"]
        assert text.input_ids[0].tolist() == case["input_ids"]
        assert [list(offset) for offset in text.offsets(0)] == case["offsets"]
        tokens = label_tokens(entity_tokens(text, 0, prompt.spans), prompt.ids)
        assert tokens == int_keys(case["positive_map_label_to_token"])
        if len(case["input_ids"]) <= 256:
            batch = text_batch([prompt], tokenizer(case["tokenizer"]), pad_to=256)
            assert label_tokens(batch.entity_tokens[0], prompt.ids) == tokens
            assert batch.attention_mask.sum() == len(case["input_ids"])


@pytest.mark.parametrize("path", golden_cases("fiber", "text_grounding*"))
def test_grounding_maps(path: Path) -> None:
    for case in load_case(path)[0]["cases"]:
        text = tokenizer(case["tokenizer"]).encode([case["caption"]], max_length=256)
        boxes = case["tokens_positive"]
        assert text.attention_mask.sum() == case["n_tokens"]
        rows = positive_map(text, 0, boxes)
        for row, expected in zip(rows, case["positive_map_rows (index:value)"], strict=True):
            assert nonzero(row) == pytest.approx(expected, rel=1e-6)
        found = {i: row.nonzero().flatten().tolist() for i, row in enumerate(rows, 1)}
        assert found == int_keys(case["label_to_token_plus1"])
        spans = [span for box in boxes for span in box]
        green = greenlight_map(text, 0, spans)
        assert green.nonzero().flatten().tolist() == case["greenlight_map_ones"]
        special = greenlight_map(text, 0, [*spans, (-1, -1, -1)])
        assert special.unique().tolist() == [case["greenlight_special(-1,-1,-1) first"]]
        labels = od_label_map(text, 0, {10 * i: tuple(box[0]) for i, box in enumerate(boxes, 1)})
        assert {str(i): v for i, v in enumerate(labels.tolist()) if v != -1} == case[
            "positive_map_for_od_labels (non -1)"
        ]


@pytest.mark.parametrize("path", golden_cases("fiber", "text_simple*"))
def test_prompts_of_every_class(path: Path) -> None:
    for case in load_case(path)[0]["cases"]:
        rng = None if case["disable_shuffle"] else Random(case["random_seed"])
        names = int_keys(case["names"])
        prompt = every_class_prompt(names, ". ", case["caption_prompt"], rng=rng)
        assert prompt.text == case["caption"]
        assert as_lists(box_spans(case["box_labels"], prompt)) == case["tokens_positive"]


@pytest.mark.parametrize("path", golden_cases("fiber", "text_training*"))
def test_sampled_training_prompts(path: Path) -> None:
    record = load_case(path)[0]
    names = int_keys(record["ind_to_class"])
    for case in record["cases"]:
        words, rng, np_rng = tokenizer(case["tokenizer"]), Random(case["random_seed"]), RandomState(case["numpy_seed"])
        budget = case["max_query_len"] - 2
        kept, length = boxes_that_fit(case["labels"], names, words, rng, budget)
        labels = [case["labels"][i] for i in kept]
        assert labels == case["kept_box_labels"]
        assert length == case["positive_caption_length"]
        prompt = sampled_prompt(
            labels,
            names,
            words,
            rng,
            np_rng,
            control=case["control_probabilities"],
            positive_length=length,
            most_negatives=case["random_sample_negative"],
            max_num_labels=case["max_num_labels"],
            budget=budget,
        )
        assert prompt.text == case["caption"]
        assert positions(prompt) == int_keys(case["label_to_positions"])
        assert as_lists(box_spans(labels, prompt)) == case["annotation_tokens_positive"]
        assert words.count(prompt.text) == case["n_tokens"]


def positions(prompt: Prompt) -> dict[int, list[int]]:
    return {label: list(spans[0]) for label, spans in zip(prompt.ids, prompt.spans, strict=True)}


def as_lists(spans: list[Any]) -> list[list[list[int]]]:
    return [[list(span) for span in box] for box in spans]
