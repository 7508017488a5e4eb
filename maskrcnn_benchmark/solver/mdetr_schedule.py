"""The learning rates of MDETR (https://github.com/ashkamath/mdetr), which are those of a step before."""

from __future__ import annotations

from torch.optim import Optimizer

from maskrcnn_benchmark.solver.plan import Plan
from maskrcnn_benchmark.solver.schedule import Schedule, Warmup

DROPPED = {"step": 0.1, "multistep": 0.5, "linear_with_warmup": 0.1}
"""Schedule -> factor of a drop."""
LINEAR = ("linear_with_warmup", "all_linear_with_warmup")
AFTER = 50  # epochs from one drop of multistep to the next


class MdetrSchedule(Schedule):
    """Sets rates as MDETR does, after a step and for the next one: the first step has the full rates.

    ======================== =========================================================================================
    step                     a tenth after ``drop`` epochs, and again every ``drop`` epochs
    multistep                half after ``drop`` epochs, and again every 50 epochs
    linear_with_warmup       as "step"; the text encoder from 0 to its full rate in the warm-up, then down to 0
    all_linear_with_warmup   everything as the text encoder
    ======================== =========================================================================================

    Args:
        optimizer: A group with ``text`` True is of the text encoder.
        name: A row of the table.
        plan: Of the training.
        drop: Epochs.
        warmup: Share of the training, 0..1.
    """

    def __init__(self, optimizer: Optimizer, name: str, plan: Plan, drop: int = 35, warmup: float = 0.01) -> None:
        self.name, self.plan, self.drop = name, plan, drop
        self.warmup_steps = round(warmup * plan.steps)
        super().__init__(optimizer, Warmup())

    def factor(self, text: bool) -> float:
        """What the next step multiplies the full rates by."""
        if not self.done:
            return 1.0
        if self.name == LINEAR[1] or (text and self.name == LINEAR[0]):
            return self._ramp(self.done - 1)
        epoch, _ = self.plan.position(self.done - 1)
        drops = epoch // self.drop
        if self.name == "multistep":
            drops = 0 if epoch < self.drop else (epoch - self.drop) // AFTER + 1
        return DROPPED[self.name] ** drops

    def _ramp(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        return max(0.0, (self.plan.steps - step) / max(1, self.plan.steps - self.warmup_steps))

    def apply(self) -> None:
        """See :meth:`Schedule.apply`."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(group.get("text", False))
