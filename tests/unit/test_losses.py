"""Loss functions on small tensors, against what they say in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.layers.losses import (
    alignment_loss,
    class_focal_loss,
    pairing_loss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("alpha", [0.25, 0.5])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_loss_is_weighted_cross_entropy(alpha: float, gamma: float) -> None:
    logits, targets = draw(4, 5), (draw(4, 5, seed=1) > 0).double()
    for loss, logit, target in zip(
        sigmoid_focal_loss(logits, targets, alpha, gamma).flatten().tolist(),
        logits.flatten().tolist(),
        targets.flatten().tolist(),
        strict=True,
    ):
        right = 1 / (1 + math.exp(-logit if target else logit))
        weight = alpha if target else 1 - alpha
        assert loss == pytest.approx(-weight * (1 - right) ** gamma * math.log(right))


@pytest.mark.parametrize("logit", [-5e4, -200.0, 0.0, 200.0, 5e4])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_focal_loss_and_its_gradient_are_finite(logit: float, target: float) -> None:
    x = torch.tensor([logit], requires_grad=True)
    loss = sigmoid_focal_loss(x, torch.tensor([target]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_classes_count_from_one() -> None:
    logits = draw(4, 3)
    loss = class_focal_loss(logits, torch.tensor([2, 0, -1, 3]))
    wanted = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.double)
    expected = sigmoid_focal_loss(logits, wanted)
    expected[2] = 0  # left out
    torch.testing.assert_close(loss, expected)


def test_softmax_focal_loss_sees_allowed_words_and_none_of_them() -> None:
    logits, targets = draw(1, 2, 4), torch.zeros(1, 2, 4, dtype=torch.double)
    targets[0, 0, :2] = 1
    targets[0, 1, 3] = 1  # no object
    mask = torch.tensor([[1, 1, 0, 0]])
    loss = softmax_focal_loss(logits, targets, mask, gamma=2.0)
    prob = logits[..., [0, 1, 3]].softmax(-1)  # the third place is padding, the last one is always there
    for box, (wanted, share) in enumerate((([0, 1], 0.5), ([2], 1.0))):
        terms = [-share * (max(share - p, 0.001) / share) ** 2 * math.log(p) for p in prob[0, box, wanted].tolist()]
        assert loss[0, box].sum().item() == pytest.approx(sum(terms))


def test_alignment_goes_both_ways() -> None:
    logits = draw(2, 3, 4)
    pairs = torch.zeros(2, 3, 4, dtype=torch.bool)
    pairs[0, 0, 1] = pairs[0, 0, 2] = pairs[0, 2, 1] = True
    rows = [logits[0, 0].logsumexp(0) - logits[0, 0, 1:3].mean(), logits[0, 2].logsumexp(0) - logits[0, 2, 1]]
    one, two = logits[0, :, 1], logits[0, :, 2]
    columns = [one.logsumexp(0) - one[[0, 2]].mean(), two.logsumexp(0) - two[0]]
    expected = torch.stack([(sum(rows) + sum(columns)) / 2, torch.zeros((), dtype=torch.double)])
    torch.testing.assert_close(alignment_loss(logits, pairs), expected, atol=1e-5, rtol=0)


def test_pairing_shares_evenly() -> None:
    logits, pairs = draw(3, 4), torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    log_prob = logits.log_softmax(-1)
    expected = torch.stack([-log_prob[0, [0, 2]].mean(), torch.zeros((), dtype=torch.double), -log_prob[2, 1]])
    torch.testing.assert_close(pairing_loss(logits, pairs), expected)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_pairing_of_nothing(shape: tuple[int, int]) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    loss = pairing_loss(logits, torch.zeros(shape, dtype=torch.bool)).sum()
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
