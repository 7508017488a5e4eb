"""Which tokens belong to which words, from the characters at which we wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from maskrcnn_benchmark.errors import PromptError
from maskrcnn_benchmark.structures.prompt import Prompt, Span, TextBatch
from maskrcnn_benchmark.text.tokenizer import TokenizedText, Tokenizer

WIDTH = 256  # text positions that the released networks see


def token_ids(text: TokenizedText, row: int, span: Span) -> list[int]:
    """Positions of the tokens of characters [begin, end); none when neither end of the span meets a token.

    A character without token (a space, a control character) may be up to two places away from one at either end.
    """
    begin, end = span
    first = _nearest(text, row, (begin, begin + 1, begin + 2))
    last = _nearest(text, row, (end - 1, end - 2, end - 3))
    return [] if first is None or last is None else list(range(first, last + 1))


def _nearest(text: TokenizedText, row: int, chars: Iterable[int]) -> int | None:
    return next((token for char in chars if (token := text.char_to_token(row, char)) is not None), None)


def entity_tokens(
    text: TokenizedText, row: int, entities: Sequence[Sequence[Span]], width: int | None = None
) -> Tensor:
    """Tokens of K entities, each with any number of spans.

    Returns:
        (K, L) bool; L is ``width`` (tokens beyond it are left out), or the length of the text batch.
    """
    width = text.input_ids.shape[1] if width is None else width
    rows = torch.zeros(len(entities), width, dtype=torch.bool)
    for tokens, spans in zip(rows, entities, strict=True):
        for span in spans:
            tokens[[i for i in token_ids(text, row, span) if i < width]] = True
    return rows


def positive_map(text: TokenizedText, row: int, boxes: Sequence[Sequence[Span]], width: int = WIDTH) -> Tensor:
    """Token weights of N boxes, each of which owns any number of spans: (N, width) float32.

    A row is even over its tokens and sums to just under 1 (0 for a box without tokens), as in MDETR and GLIP.
    """
    rows = entity_tokens(text, row, boxes, width).float()
    return rows / (rows.sum(-1, keepdim=True) + 1e-6)


def label_tokens(tokens: Tensor, ids: Sequence[int]) -> dict[int, list[int]]:
    """(K, L) tokens of entities -> {id: token positions}; ids without a token are left out."""
    return {label: row.nonzero().flatten().tolist() for label, row in zip(ids, tokens, strict=True) if row.any()}


def greenlight_map(text: TokenizedText, row: int, spans: Sequence[Sequence[int]], width: int = WIDTH) -> Tensor:
    """Tokens that masked language modelling may hide: (width,) float32, 1 on the spans.

    A span of three numbers, (-1, -1, -1), forbids the whole text: all -1.
    """
    if any(len(span) != 2 for span in spans):
        return torch.full((width,), -1.0)
    pairs = [(span[0], span[1]) for span in spans]
    return entity_tokens(text, row, [pairs], width)[0].float()


def od_label_map(text: TokenizedText, row: int, spans: Mapping[int, Span], width: int = WIDTH) -> Tensor:
    """The class id on each token of its name, -1 elsewhere: (width,) float32. A later class wins a shared token."""
    labels = torch.full((width,), -1.0)
    for label, span in spans.items():
        labels[[i for i in token_ids(text, row, span) if i < width]] = float(label)
    return labels


def text_batch(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, max_length: int = WIDTH, pad_to: int | None = None
) -> TextBatch:
    """Tokenise prompts for a network.

    Args:
        prompts: P prompts.
        tokenizer: The network's tokenizer.
        max_length: Tokens that a prompt may have; nothing is cut.
        pad_to: Length of the rows; None: that of the longest prompt.

    Raises:
        PromptError: a prompt is longer than ``max_length``.
    """
    limit = max_length if pad_to is None else min(max_length, pad_to)
    for prompt in prompts:
        if (count := tokenizer.count(prompt.text)) > limit:
            raise PromptError(
                f"the prompt {shorten(prompt.text)!r} takes {count} tokens, more than {limit}: shorten it"
            )
    text = tokenizer.encode([prompt.text for prompt in prompts], pad_to=pad_to)
    tokens = tuple(entity_tokens(text, row, prompt.spans) for row, prompt in enumerate(prompts))
    return TextBatch(tuple(prompts), text.input_ids, text.attention_mask, tokens)


def shorten(text: str, width: int = 60) -> str:
    """A text for a message."""
    return text if len(text) <= width else f"{text[: width - 3]}..."
