"""Which words are hidden for masked language modelling."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from maskrcnn_benchmark.text.masking import hide_words

MASK, PAD, VOCABULARY = 3, 1, 1000


def hide(ids: Tensor, maskable: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    return hide_words(ids, Random(seed), MASK, PAD, VOCABULARY, maskable)


def words(rows: int, length: int) -> Tensor:
    return torch.arange(rows * length).reshape(rows, length) % 900 + 50


def test_shares_are_those_of_bert() -> None:
    ids = words(60, 256)
    hidden, labels = hide(ids)
    asked = labels != -100
    assert torch.equal(labels[asked], ids[asked])
    assert abs(asked.float().mean().item() - 0.15) < 0.01
    assert torch.equal(hidden[~asked], ids[~asked])
    chosen = hidden[asked]
    assert abs((chosen == MASK).float().mean().item() - 0.8) < 0.03
    assert abs((chosen == ids[asked]).float().mean().item() - 0.1) < 0.03
    assert hidden.max() < VOCABULARY


def test_rules_of_tokens() -> None:
    ids = words(3, 256)
    rules = torch.tensor([1.0, 0.0, -1.0])[:, None].expand(3, 256)
    hidden, labels = hide(ids, rules)
    assert (labels[0] != -100).any()
    assert (hidden[1] != ids[1]).any()  # may be hidden, but nobody has to guess it
    assert (labels[1:] == -100).all()
    assert torch.equal(hidden[2], ids[2])


def test_padding_stays_and_what_is_given_is_not_changed() -> None:
    ids = words(4, 256)
    ids[:, 100:] = PAD
    before = ids.clone()
    hidden, labels = hide(ids)
    assert torch.equal(ids, before)
    assert (hidden[:, 100:] == PAD).all()
    assert (labels[:, 100:] == -100).all()


def test_a_text_is_drawn_for_by_itself() -> None:
    """One number for each place and one for each replacement: rows alone give what they give together."""
    ids = words(3, 256)
    rng = Random(7)
    alone = [hide_words(row[None], rng, MASK, PAD, VOCABULARY) for row in ids]
    hidden, labels = hide(ids, seed=7)
    assert torch.equal(torch.cat([row for row, _ in alone]), hidden)
    assert torch.equal(torch.cat([row for _, row in alone]), labels)


def test_places_that_stay_are_drawn_for_too() -> None:
    ids = words(2, 256)
    rules = torch.ones(2, 256)
    rules[0] = -1
    first, _ = hide(ids, rules, seed=3)
    rng = Random(3)
    for _ in range(256):
        rng.random()
    assert torch.equal(first[1:], hide_words(ids[1:], rng, MASK, PAD, VOCABULARY)[0])
