"""Learning rates and weight decays over a training, and when to stop it.

A schedule knows how many steps are done and sets what the next one uses. All state is in ``state_dict``, plain numbers.
Formulas are those of GLIP and FIBER (https://github.com/microsoft/GLIP).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from maskrcnn_benchmark.errors import WeightsError


@dataclass(frozen=True)
class Warmup:
    """Linear growth from ``factor`` to 1 over the first ``steps`` steps."""

    steps: int = 0
    factor: float = 1.0

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return 1.0
        done = step / self.steps
        return self.factor * (1 - done) + done


class Schedule:
    """Sets the learning rate of every group of an optimizer; this one only warms up.

    Args:
        optimizer: Its groups start at their full rates (``initial_lr`` where an earlier schedule left it).
        warmup: How it begins.
    """

    def __init__(self, optimizer: Optimizer, warmup: Warmup) -> None:
        self.optimizer, self.warmup = optimizer, warmup
        self.done = 0  # steps
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.apply()

    def lr(self, base: float) -> float:
        """Rate of the next step for a group whose full rate is ``base``."""
        return base * self.warmup(self.done)

    def step(self) -> None:
        """Count a step of the optimizer."""
        self.done += 1
        self.apply()

    def apply(self) -> None:
        """Give the optimizer the rates of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(group["initial_lr"])

    def evaluated(self, score: float) -> bool:
        """Hear of a score, the higher the better; returns whether it made the rates drop."""
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another left off.

        Raises:
            WeightsError: it was another kind of schedule.
        """
        if state.get("kind") != type(self).__name__:
            raise WeightsError(
                f"the checkpoint was trained with the schedule {state.get('kind')!r}, the config asks for "
                f"{type(self).__name__!r}: keep SOLVER.USE_COSINE and SOLVER.USE_AUTOSTEP as they were"
            )
        for name in self.state_dict():
            if name != "kind":
                setattr(self, name, state[name])
        self.apply()


class MultiStep(Schedule):
    """``base * gamma`` to the number of milestones that are reached."""

    def __init__(self, optimizer: Optimizer, warmup: Warmup, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = tuple(sorted(milestones)), gamma
        super().__init__(optimizer, warmup)

    def lr(self, base: float) -> float:
        return base * self.warmup(self.done) * self.gamma ** bisect_right(self.milestones, self.done)


class Cosine(Schedule):
    """Half a cosine from the full rate towards ``min_lr``.

    Its period is counted from the end of the warm-up, as in the reference, so a training of ``period`` steps ends a
    little above ``min_lr``.
    """

    def __init__(self, optimizer: Optimizer, warmup: Warmup, period: int, min_lr: float = 0.0) -> None:
        self.period, self.min_lr = period, min_lr
        super().__init__(optimizer, warmup)

    def lr(self, base: float) -> float:
        after = self.done - self.warmup.steps
        if after < 0:
            return super().lr(base)
        return self._cosine(base, after)

    def _cosine(self, base: float, step: int) -> float:
        return self.min_lr + (base - self.min_lr) * (1 + math.cos(math.pi * step / self.period)) / 2


class InterpolatedCosine(Cosine):
    """Half a cosine over the whole training, as in detectron2 (https://github.com/facebookresearch/detectron2).

    The warm-up, which may be all of the training but no more, goes straight from its share of the full rate to what the
    cosine is at its end.
    """

    def lr(self, base: float) -> float:
        steps = min(self.warmup.steps, self.period)
        if self.done >= steps:
            return self._cosine(base, self.done)
        done = self.done / steps
        return (1 - done) * self.warmup.factor * base + done * self._cosine(base, steps)


class Plateau(Schedule):
    """Drops the rates when the score has not grown for more than ``patience`` evaluations ("autostep").

    Args:
        optimizer: See :class:`Schedule`.
        warmup: Evaluations that fall into it do not count.
        gamma: Factor of a drop.
        patience: Evaluations without growth that are put up with.
        min_lr: No rate drops below it.
        growth: Share by which a score must exceed the best one to count as growth.
    """

    SMALLEST = 1e-8  # drops of less are left out, as in torch

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: Warmup,
        gamma: float = 0.1,
        patience: int = 5,
        min_lr: float = 0.0,
        growth: float = 1e-4,
    ) -> None:
        self.gamma, self.patience, self.min_lr, self.growth = gamma, patience, min_lr, growth
        self.best, self.waited, self.drops = -math.inf, 0, 0
        super().__init__(optimizer, warmup)

    def lr(self, base: float) -> float:
        rate = base
        for _ in range(self.drops):
            lower = max(rate * self.gamma, self.min_lr)
            rate = lower if rate - lower > self.SMALLEST else rate
        return rate * self.warmup(self.done)

    def evaluated(self, score: float) -> bool:
        """See :meth:`Schedule.evaluated`. A score of exactly 0 does not count: nothing has been learnt yet."""
        if self.done < self.warmup.steps or not score:
            return False
        if score > self.best * (1 + self.growth):
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        if self.waited <= self.patience:
            return False
        self.waited, self.drops = 0, self.drops + 1
        self.apply()
        return True

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best, "waited": self.waited, "drops": self.drops}


class WeightDecayDrops:
    """Multiplies the weight decay by ``gamma`` at ``ratio`` of the way to each milestone of the learning rate.

    What applies follows from the number of steps alone, so there is no state.
    """

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1, ratio: float = 0.667
    ) -> None:
        self.optimizer, self.gamma = optimizer, gamma
        self.places = sorted(milestone * ratio for milestone in milestones)
        for group in optimizer.param_groups:
            group.setdefault("initial_weight_decay", group["weight_decay"])

    def apply(self, done: int) -> None:
        """Give the optimizer the decays that apply after ``done`` steps."""
        factor = self.gamma ** bisect_right(self.places, done)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = group["initial_weight_decay"] * factor


@dataclass
class Best:
    """Keeps the best score, and says when there has been no new one for too long.

    A score as good as the best one is a new best, as in the reference.
    """

    patience: int | None = None  # evaluations below the best that are put up with; None: any number
    score: float = 0.0
    step: int = 0  # at which it was reached
    waited: int = 0

    def update(self, score: float, step: int) -> bool:
        """Hear of a score, the higher the better; returns whether it is the best so far."""
        if score < self.score:
            self.waited += 1
            return False
        self.score, self.step, self.waited = score, step, 0
        return True

    @property
    def stop(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.step, self.waited = state["score"], state["step"], state["waited"]
