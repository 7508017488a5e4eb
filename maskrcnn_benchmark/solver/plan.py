"""How long a training is, and where in the data each of its steps is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from maskrcnn_benchmark.config import Cfg


@dataclass(frozen=True)
class Plan:
    """Numbers of a training that follow from the config and the size of the data."""

    batches_per_epoch: int
    accumulation: int  # batches in a step
    steps: int  # in all
    period: int  # steps between checkpoints
    test_period: int = 0  # steps between evaluations; 0: there is one with each checkpoint

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.steps * self.accumulation / self.batches_per_epoch

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, batch of that epoch) at which the step after ``step`` steps begins."""
        return divmod(step * self.accumulation, self.batches_per_epoch)

    def saves(self, step: int) -> bool:
        """Whether there is a checkpoint after ``step`` steps."""
        return step % self.period == 0 or step == self.steps

    def tests(self, step: int) -> bool:
        """Whether there is an evaluation after ``step`` steps."""
        return step % self.test_period == 0 if self.test_period else self.saves(step)


def make_plan(cfg: Cfg, batches_per_epoch: int, epoch: float | None = None) -> Plan:
    """The plan of a config.

    Args:
        cfg: ``SOLVER.MAX_EPOCH`` decides where it is above 0, else ``MAX_ITER``, which counts steps.
        batches_per_epoch: Batches that a process gets from one pass over the data, at least 1.
        epoch: The length of a pass in batches where what does not fill a batch counts too, as DAP reckons; None: whole
            batches count, as GLIP and FIBER reckon.
    """
    solver = cfg.SOLVER
    accumulation, epochs, per_epoch = solver.ACCUMULATION, solver.MAX_EPOCH, solver.CHECKPOINT_PER_EPOCH
    steps = solver.MAX_ITER
    if epochs > 0:
        whole = math.ceil(epochs * batches_per_epoch / accumulation)
        steps = max(1, round(epochs * epoch / accumulation)) if epoch else whole
    period = solver.CHECKPOINT_PERIOD or steps
    if epochs > 0 and solver.CHECKPOINT_EPOCH > 0:
        period = round(solver.CHECKPOINT_EPOCH * steps / epochs)
    elif epochs > 0 and per_epoch != -1:
        period = int(steps * per_epoch // epochs)
    test_period = solver.TEST_PERIOD
    if epochs > 0 and not test_period and cfg.TEST.EVAL_EPOCH_PERIOD > 0:
        test_period = max(1, round(cfg.TEST.EVAL_EPOCH_PERIOD * steps / epochs))
    return Plan(batches_per_epoch, accumulation, steps, max(1, period), test_period)
