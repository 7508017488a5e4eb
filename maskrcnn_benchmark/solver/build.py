"""From a config to an optimizer with all that goes with it, and the step that it takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.config.defaults import decola
from maskrcnn_benchmark.config.node import DEFAULT
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.solver.ema import Ema
from maskrcnn_benchmark.solver.mdetr_schedule import MdetrSchedule
from maskrcnn_benchmark.solver.param_groups import Rates, optimizer_groups, param_groups, table
from maskrcnn_benchmark.solver.plan import Plan
from maskrcnn_benchmark.solver.schedule import (
    Best,
    Cosine,
    InterpolatedCosine,
    MultiStep,
    Plateau,
    Schedule,
    Warmup,
    WeightDecayDrops,
)

logger = logging.getLogger(__name__)

PARTS = dict.fromkeys(("MDETR", "MDETR_SEGM", *decola.ARCHITECTURES), ("text_encoder", "backbone"))
"""``MODEL.META_ARCHITECTURE`` -> what the names of parameters of the text encoder and of the backbone contain, where it
is not as in GLIP."""
MOST_SKIPPED = 20  # steps in a row without finite gradients, before fp16 is given up


@dataclass(frozen=True)
class Step:
    """What a step did."""

    gradient_norm: float  # L2 over all parameters, before clipping
    taken: bool  # False: a gradient was not finite, or there was none, and the weights are as they were


class Solver:
    """Turns gradients into weights, and keeps count.

    Args:
        optimizer: Over the trainable parameters.
        schedule: Of its learning rates.
        weight_decay: When its weight decays drop; None: never.
        ema: Average of the weights; None: there is none.
        clip_norm: Largest L2 norm of all gradients together; infinity: any.
        clip_value: Largest absolute value of a single gradient; infinity: any.
        scaler: Of the loss, for fp16; None: no scaling.
        best: Scores seen so far.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        weight_decay: WeightDecayDrops | None = None,
        ema: Ema | None = None,
        clip_norm: float = math.inf,
        clip_value: float = math.inf,
        scaler: torch.amp.GradScaler | None = None,
        best: Best | None = None,
    ) -> None:
        self.optimizer, self.schedule, self.weight_decay, self.ema = optimizer, schedule, weight_decay, ema
        self.clip_norm, self.clip_value, self.best = clip_norm, clip_value, best or Best()
        self.scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
        self.skipped = 0  # steps in a row that were not taken

    @property
    def done(self) -> int:
        """Steps so far; those that were not taken count."""
        return self.schedule.done

    def backward(self, loss: Tensor, parts: int = 1) -> None:
        """Add the gradients of one of ``parts`` batches that make a step."""
        self.scaler.scale(loss / parts if parts > 1 else loss).backward()

    def step(self) -> Step:
        """Clip, change the weights, move on; gradients are gone afterwards.

        Raises:
            ConfigError: fp16 has found no finite gradients for many steps.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        finite = bool(norm.isfinite())
        if finite and math.isfinite(self.clip_norm):
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        if finite and math.isfinite(self.clip_value):
            nn.utils.clip_grad_value_(parameters, self.clip_value)
        if parameters and (finite or self.scaler.is_enabled()):  # the scaler sees for itself, and lowers its factor
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.drop()
        self.skipped = 0 if finite else self.skipped + 1
        if self.scaler.is_enabled() and self.skipped >= MOST_SKIPPED:
            raise ConfigError(
                f"no finite gradients in {self.skipped} steps in a row, the scale of the fp16 loss is down to "
                f"{self.scaler.get_scale():g}: set SOLVER.AMP_DTYPE bf16 or SOLVER.USE_AMP False"
            )
        self.schedule.step()
        if self.weight_decay is not None:
            self.weight_decay.apply(self.schedule.done)
        if self.ema is not None:
            self.ema.update()
        return Step(float(norm), taken=finite and bool(parameters))

    def drop(self) -> None:
        """Forget gradients that were gathered, such as those of a bad batch."""
        self.optimizer.zero_grad(set_to_none=True)

    def evaluated(self, score: float) -> bool:
        """Hear of a score, the higher the better; returns whether it is the best so far. See also :attr:`stop`."""
        if self.schedule.evaluated(score):
            rates = sorted({group["lr"] for group in self.optimizer.param_groups})
            logger.info("the score no longer grows: learning rates drop to %s", ", ".join(f"{r:g}" for r in rates))
        return self.best.update(score, self.done)

    @property
    def stop(self) -> bool:
        """Whether the score has not grown for so long that training is over."""
        return self.best.stop

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights, under the names of released checkpoints, plain types and tensors only."""
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "counters": {"best": self.best.state_dict(), "skipped": self.skipped},
        }
        if self.ema is not None:
            state["model_ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            WeightsError: it was trained with other parameters, another optimizer or another schedule.
        """
        self._check(state)
        given = [(group["initial_lr"], group.get("initial_weight_decay")) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        kept = [(group["initial_lr"], group.get("initial_weight_decay")) for group in self.optimizer.param_groups]
        if given != kept:
            logger.warning("the learning rates or weight decays of the checkpoint go on, not those of the config")
        self.schedule.load_state_dict(state["scheduler"])
        if self.weight_decay is not None:
            self.weight_decay.apply(self.schedule.done)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.best.load_state_dict(state["counters"]["best"])
        self.skipped = state["counters"]["skipped"]
        if self.ema is not None:
            self.ema.load_state_dict(state["model_ema"])

    def _check(self, state: Mapping[str, Any]) -> None:
        absent = [key for key in self.state_dict() if key not in state]
        if absent:
            raise WeightsError(
                f"the checkpoint cannot be gone on from, it has no {', '.join(absent)}: give it as MODEL.WEIGHT with "
                "another OUTPUT_DIR, to start from its weights"
            )
        ours, theirs = (
            [g.get("param_names") for g in groups["param_groups"]]
            for groups in (self.optimizer.state_dict(), state["optimizer"])
        )
        if ours != theirs:
            raise WeightsError(
                "the checkpoint was trained with other parameters or other groups of them: keep SOLVER, FREEZE and "
                "TUNING_HIGHLEVEL_OVERRIDE as they were, or choose another OUTPUT_DIR"
            )


def build_solver(cfg: Cfg, model: nn.Module, plan: Plan, scaler: torch.amp.GradScaler | None = None) -> Solver:
    """The solver of a config, and a line in the log for each kind of parameter.

    Args:
        cfg: The keys of ``SOLVER``.
        model: On its device, frozen where it should be, not wrapped for several processes.
        plan: Of the training.
        scaler: From :mod:`maskrcnn_benchmark.engine.amp`.

    Raises:
        ConfigError: nothing is left to train.
    """
    solver = cfg.SOLVER
    groups = param_groups(model, build_rates(cfg))
    if not groups:
        raise ConfigError("nothing to train: every parameter is frozen (FREEZE keys, SOLVER.TUNING_HIGHLEVEL_OVERRIDE)")
    logger.info("%s\n%s", solver.OPTIMIZER, table(groups))
    optimizer: Optimizer
    if solver.OPTIMIZER == "SGD":
        optimizer = SGD(optimizer_groups(groups), lr=solver.BASE_LR, momentum=solver.MOMENTUM)
    else:
        optimizer = AdamW(optimizer_groups(groups), lr=solver.BASE_LR)
    clip = solver.CLIP_GRADIENTS
    most = clip.CLIP_VALUE if clip.ENABLED and clip.CLIP_VALUE > 0 else math.inf
    patience = solver.AUTO_TERMINATE_PATIENCE
    return Solver(
        optimizer,
        _schedule(cfg, optimizer, plan),
        _weight_decay(cfg, optimizer, plan),
        ema=Ema(model, solver.MODEL_EMA) if solver.MODEL_EMA > 0 else None,
        **{"clip_value" if clip.CLIP_TYPE == "value" else "clip_norm": most},
        scaler=scaler,
        best=Best(patience if patience > 0 else None),
    )


def build_rates(cfg: Cfg) -> Rates:
    """Base values and factors of the parameter groups."""
    solver = cfg.SOLVER
    text_part, body_part = PARTS.get(cfg.MODEL.META_ARCHITECTURE, (Rates.text_part, Rates.body_part))
    return Rates(
        base_lr=solver.BASE_LR,
        language_lr=solver.LANG_LR,
        body_lr_factor=solver.BACKBONE_BODY_LR_FACTOR,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay=solver.WEIGHT_DECAY,
        bias_weight_decay=solver.WEIGHT_DECAY_BIAS,
        norm_weight_decay_factor=solver.WEIGHT_DECAY_NORM_FACTOR,
        text_part=text_part,
        body_part=body_part,
        body_lr=solver.BACKBONE_LR if solver.BACKBONE_LR >= 0 else None,
        custom_parts=tuple(solver.CUSTOM_LR_NAMES),
        custom_lr_factor=solver.CUSTOM_LR_FACTOR,
    )


def milestones(cfg: Cfg, plan: Plan) -> list[int]:
    """Steps at which the rate drops.

    With ``SOLVER.MAX_EPOCH`` they are ``STEPS_EPOCH``; else ``STEPS``, fractions of the training or numbers of steps.
    The default of ``STEPS`` goes with that of ``MAX_ITER``, and is none of a training that is counted in epochs.
    """
    solver, source = cfg.SOLVER, cfg.source("SOLVER.STEPS")
    if solver.MAX_EPOCH > 0 and solver.STEPS_EPOCH:
        return [round(epoch * plan.steps / solver.MAX_EPOCH) for epoch in solver.STEPS_EPOCH]
    if solver.MAX_EPOCH > 0 and source == DEFAULT:
        return []
    if any(isinstance(step, float) and step == 1 for step in solver.STEPS):
        logger.warning("SOLVER.STEPS (%s): 1.0 is step 1; fractions of the training are below 1", source)
    return [round(step * plan.steps) if step < 1 else int(step) for step in solver.STEPS]


def _schedule(cfg: Cfg, optimizer: Optimizer, plan: Plan) -> Schedule:
    solver = cfg.SOLVER
    if solver.MDETR_SCHEDULE:
        return MdetrSchedule(
            optimizer, solver.MDETR_SCHEDULE, plan, drop=solver.MDETR_LR_DROP, warmup=solver.WARMUP_FRACTION
        )
    warmup = Warmup(solver.WARMUP_ITERS, solver.WARMUP_FACTOR)
    if solver.USE_COSINE:
        cosine = InterpolatedCosine if cfg.MODEL.META_ARCHITECTURE in decola.ARCHITECTURES else Cosine
        return cosine(optimizer, warmup, plan.steps, solver.MIN_LR)
    if solver.USE_AUTOSTEP:
        return Plateau(optimizer, warmup, solver.GAMMA, solver.STEP_PATIENCE, solver.MIN_LR)
    return MultiStep(optimizer, warmup, milestones(cfg, plan), solver.GAMMA)


def _weight_decay(cfg: Cfg, optimizer: Optimizer, plan: Plan) -> WeightDecayDrops | None:
    solver = cfg.SOLVER
    if not solver.WEIGHT_DECAY_SCHEDULE:
        return None
    if solver.USE_COSINE or solver.USE_AUTOSTEP:
        logger.warning("SOLVER.WEIGHT_DECAY_SCHEDULE has no effect here: it follows SOLVER.STEPS, which are not used")
        return None
    return WeightDecayDrops(optimizer, milestones(cfg, plan), solver.GAMMA, solver.WEIGHT_DECAY_SCHEDULE_RATIO)
