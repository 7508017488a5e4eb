"""Words hidden for masked language modelling (BERT), in the order of draws of GLIP and FIBER."""

from __future__ import annotations

from random import Random

from torch import Tensor

RATIO = 0.15  # share of tokens that are chosen
HIDDEN, REPLACED = 0.8, 0.9  # of the chosen: this share becomes the mask token, up to that share a random one
NOT_ASKED = -100  # label of a token that nobody has to guess


def hide_words(
    input_ids: Tensor, rng: Random, mask_id: int, pad_id: int, vocab_size: int, maskable: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Hide some tokens of P texts, which are left as they are.

    One number is drawn for every position, padding included, row by row; a further one where a token is replaced.

    Args:
        input_ids: (P, L) int64.
        rng: Where the draws come from.
        mask_id: The token that hides another.
        pad_id: The token that is never hidden.
        vocab_size: Replacements are any of so many tokens.
        maskable: (P, L), 1: may be hidden, and has to be guessed; 0: may be hidden; -1: stays. None: 1 everywhere.

    Returns:
        (P, L) ids with tokens hidden, and (P, L) labels: the id that was there; -100 where there is nothing to guess.
    """
    ids, labels = input_ids.tolist(), input_ids.new_full(input_ids.shape, NOT_ASKED)
    rules = None if maskable is None else maskable.tolist()
    for row, tokens in enumerate(ids):
        for place, token in enumerate(tokens):
            draw = rng.random()
            rule = 1 if rules is None else rules[row][place]
            if draw >= RATIO or token == pad_id or rule == -1:
                continue
            if draw / RATIO < HIDDEN:
                tokens[place] = mask_id
            elif draw / RATIO < REPLACED:
                tokens[place] = rng.choice(range(vocab_size))
            if rule == 1:
                labels[row, place] = token
    return input_ids.new_tensor(ids).reshape(input_ids.shape), labels
