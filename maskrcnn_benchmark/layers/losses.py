"""Loss terms per element; sums and weights are the caller's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from maskrcnn_benchmark.structures.boxes import area

EPS = 1e-7  # keeps the quotients of GIoU finite
MASKED = -1e6  # a logit that no softmax sees


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU of each box with its own target (https://arxiv.org/abs/1902.09630): (N, 4), (N, 4) xyxy -> (N,).

    The right and bottom sides of ``boxes`` count from their left and top ones at least, so that an inverted prediction
    is an empty box.
    """
    boxes = torch.cat((boxes[:, :2], torch.maximum(boxes[:, :2], boxes[:, 2:])), dim=1)
    side = (torch.minimum(boxes[:, 2:], targets[:, 2:]) - torch.maximum(boxes[:, :2], targets[:, :2])).clamp(min=0)
    shared = side.prod(dim=1)
    union = area(boxes) + area(targets) - shared + EPS
    hull = (torch.maximum(boxes[:, 2:], targets[:, 2:]) - torch.minimum(boxes[:, :2], targets[:, :2])).prod(dim=1) + EPS
    return 1 - (shared / union - (hull - union) / hull)


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of independent yes-or-no questions (https://arxiv.org/abs/1708.02002).

    Finite for every finite logit: the logarithms are taken of the logits, not of rounded probabilities.

    Args:
        logits: Any shape.
        targets: 0 or 1, of that shape and type.
        alpha: Weight of the ones; the zeros have 1 - alpha.
        gamma: How much less an answer counts the better it is.

    Returns:
        The loss of each element.
    """
    missed = (targets - logits.sigmoid()).abs()  # 1 minus the probability of the right answer
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * missed**gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def class_focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of a fixed list of classes.

    Args:
        logits: (N, C); column k - 1 is class k.
        labels: (N,) from 1; 0 is background, a row labelled -1 costs nothing.
        alpha: See :func:`sigmoid_focal_loss`.
        gamma: See :func:`sigmoid_focal_loss`.

    Returns:
        (N, C).
    """
    classes = torch.arange(1, logits.shape[1] + 1, device=labels.device)
    targets = (labels[:, None] == classes).to(logits.dtype)
    return sigmoid_focal_loss(logits, targets, alpha, gamma) * (labels >= 0)[:, None]


def softmax_focal_loss(logits: Tensor, targets: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss of one question with several right answers, GLIP's other version of its token loss.

    Args:
        logits: (B, A, L), of which the last column stands for "none of the words".
        targets: (B, A, L), 1 at right answers.
        mask: (B, L), 1 at answers that may be given; the last one always may.
        gamma: How much less an answer counts the nearer its probability is to its share.

    Returns:
        (B, A, L), 0 at wrong answers.
    """
    allowed = mask.bool()
    allowed = torch.cat((allowed[:, :-1], torch.ones_like(allowed[:, -1:])), dim=1)[:, None]
    log_prob = logits.masked_fill(~allowed, MASKED).log_softmax(-1)
    share = targets / (targets.sum(-1, keepdim=True) + 1e-8)
    short = (share - log_prob.exp()).clamp(min=0.001) / torch.where(share > 0, share, 1.0)
    return -share * short**gamma * log_prob


def alignment_loss(logits: Tensor, pairs: Tensor) -> Tensor:
    """Contrastive alignment of boxes and words, as in MDETR (https://arxiv.org/abs/2104.12763).

    A row with partners should have all of its weight on them, and so should a column.

    Args:
        logits: (B, A, L) similarities.
        pairs: (B, A, L) bool, what belongs together.

    Returns:
        (B,): mean of the sum over rows and the sum over columns.
    """
    total = logits.new_zeros(len(logits))
    for dim in (2, 1):
        count = pairs.sum(dim)
        own = (logits * pairs).sum(dim) / (count + 1e-6)
        cost = logits.logsumexp(dim) - own
        total = total + torch.where(count > 0, cost, 0.0).sum(1)
    return total / 2


def pairing_loss(logits: Tensor, pairs: Tensor) -> Tensor:
    """Cross-entropy of each row with an even share for each of its partners: (N, M), (N, M) bool -> (N,)."""
    share = pairs / pairs.sum(-1, keepdim=True).clamp(min=1)
    return -(share * logits.log_softmax(-1)).sum(-1)
