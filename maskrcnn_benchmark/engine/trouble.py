"""What goes wrong in a step of a training, in words that help: memory that is full, losses that are no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from maskrcnn_benchmark.errors import UserError
from maskrcnn_benchmark.modeling.interface import Batch, Losses

ADVICE = (
    "halve SOLVER.IMS_PER_BATCH and double SOLVER.ACCUMULATION, lower INPUT.MAX_SIZE_TRAIN and "
    "AUGMENT.MULT_MIN_SIZE_TRAIN, or set MODEL.BACKBONE.USE_CHECKPOINT True, MODEL.DYHEAD.USE_CHECKPOINT True or "
    "SOLVER.USE_AMP True; run again to go on"
)


class OutOfMemory(UserError):
    """A batch does not fit into the memory.

    Args:
        told: Shapes and advice.
        whole: No weight has changed since the last whole step.
    """

    exit_code = 3

    def __init__(self, told: str, whole: bool = True) -> None:
        super().__init__(told)
        self.whole = whole


class BadStep(Exception):
    """A loss or a gradient is no number.

    Args:
        told: What, and in which pictures.
        counted: The solver has counted the step already.
    """

    def __init__(self, told: str, counted: bool = False) -> None:
        super().__init__(told)
        self.told, self.counted = told, counted


def files(batch: Batch) -> list[str]:
    """The pictures of a batch, as a user knows them."""
    return [meta.file or str(meta.image_id) for meta in batch.images.metas]


def not_finite(losses: Losses, total: Tensor, batch: Batch) -> str:
    """Which losses of this process are no numbers, and in which pictures; empty where all are."""
    if bool(total.isfinite()):
        return ""
    terms = [f"{name} {value.item():g}" for name, value in losses.terms.items() if not bool(value.isfinite())]
    return f"{', '.join(terms) or 'the sum of the losses'} for {', '.join(files(batch))}"


@contextmanager
def memory_advice(batch: Batch, step: int, whole: bool = True) -> Iterator[None]:
    """Turns "out of memory" into the shapes of the batch and what can be done; ``whole``: see :class:`OutOfMemory`.

    Raises:
        OutOfMemory: it was that.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(f"step {step}: out of memory with {shapes(batch)}: {ADVICE}", whole) from error


def shapes(batch: Batch) -> str:
    """How large a batch is, in words."""
    count, _, height, width = batch.images.pixels.shape
    boxes = ", ".join(str(len(target.boxes)) for target in batch.targets)
    tokens = f", {batch.text.input_ids.shape[1]} tokens" if batch.text is not None else ""
    return f"{count} pictures in {height} x {width} pixels{tokens}, {boxes} boxes ({', '.join(files(batch))})"
