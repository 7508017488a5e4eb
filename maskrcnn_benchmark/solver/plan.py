"""How long a training is, and where in the data each of its steps is."""

from __future__ import annotations

from dataclasses import dataclass

from maskrcnn_benchmark.config import Cfg


@dataclass(frozen=True)
class Plan:
    """Numbers of a training that follow from the config and the size of the data."""

    batches_per_epoch: int
    accumulation: int  # batches in a step
    steps: int  # in all
    period: int  # steps between checkpoints, and between evaluations

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.steps * self.accumulation / self.batches_per_epoch

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, batch of that epoch) at which the step after ``step`` steps begins."""
        return divmod(step * self.accumulation, self.batches_per_epoch)


def make_plan(cfg: Cfg, batches_per_epoch: int) -> Plan:
    """The plan of a config.

    Args:
        cfg: ``SOLVER.MAX_EPOCH`` decides where it is above 0, else ``MAX_ITER``, which counts steps.
        batches_per_epoch: Batches that a process gets from one pass over the data, at least 1.
    """
    solver = cfg.SOLVER
    accumulation, epochs, per_epoch = solver.ACCUMULATION, solver.MAX_EPOCH, solver.CHECKPOINT_PER_EPOCH
    steps, period = solver.MAX_ITER, solver.CHECKPOINT_PERIOD
    if epochs > 0:
        steps = -(-epochs * batches_per_epoch // accumulation)
        if per_epoch != -1:
            period = int(steps * per_epoch // epochs)
    return Plan(batches_per_epoch, accumulation, steps, max(1, period))
