"""Chunked evaluation prompts, as recorded from the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskrcnn_benchmark.text.positive_map import label_tokens, text_batch
from maskrcnn_benchmark.text.prompts import PromptOptions, class_prompts
from maskrcnn_benchmark.text.tokenizer import load_tokenizer
from tests.golden.common import golden_cases, load_case, tokenizer_dir


@pytest.mark.parametrize("path", golden_cases("eval", "quer*"))
def test_chunked_queries(path: Path) -> None:
    record = load_case(path)[0]
    assert record["kind"] == "chunked_queries"
    for case in record["cases"]:
        tokenizer = load_tokenizer(tokenizer_dir(case["tokenizer"]))
        # The reference tokenises a prompt in full, however long.
        options = PromptOptions(case["separation_tokens"], case["caption_prompt"], (), case["chunk"], max_tokens=10_000)
        categories = sorted((int(label), name) for label, name in case["categories"].items())
        prompts = class_prompts(categories, options, tokenizer)
        assert [prompt.text for prompt in prompts] == case["queries"]
        for prompt, expected in zip(prompts, case["label_to_tokens"], strict=True):
            tokens = text_batch([prompt], tokenizer, max_length=10_000).entity_tokens[0]
            assert label_tokens(tokens, prompt.ids) == as_ints(expected)


def as_ints(table: dict[str, Any]) -> dict[int, Any]:
    return {int(label): tokens for label, tokens in table.items()}
