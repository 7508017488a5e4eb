"""Which learning rate and weight decay each parameter gets: the rules of GLIP, FIBER and MDETR, by parts of its name.

``"bias"`` is looked for anywhere in the name, as the reference does, so it also catches relative_position_bias_table,
bias_lang and bias0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prettytable import PrettyTable
from torch import nn


@dataclass(frozen=True)
class Rates:
    """Base values and factors.

    Attributes:
        text_part: Parameters with this in their name are of the text encoder.
        body_part: Others with this in their name are of the backbone.
        body_lr: Rate of the backbone; None: the base rate times ``body_lr_factor``.
        custom_parts: The rates of parameters with one of these in their name, whatever part they are of, are
            multiplied with ``custom_lr_factor``.
    """

    base_lr: float
    language_lr: float
    body_lr_factor: float = 1.0
    bias_lr_factor: float = 2.0
    weight_decay: float = 0.0005
    bias_weight_decay: float = 0.0
    norm_weight_decay_factor: float = 1.0
    text_part: str = "language_backbone"
    body_part: str = "backbone.body"
    body_lr: float | None = None
    custom_parts: tuple[str, ...] = ()
    custom_lr_factor: float = 1.0


@dataclass(frozen=True)
class ParamGroup:
    """One trainable parameter."""

    name: str
    parameter: nn.Parameter
    pattern: str  # which rules made its values
    lr: float
    weight_decay: float
    text: bool = False  # it is of the text encoder


def param_groups(model: nn.Module, rates: Rates) -> list[ParamGroup]:
    """The trainable parameters of a model, in its order; frozen ones are left out."""
    return [
        ParamGroup(name, parameter, *_values(name, rates), text=rates.text_part in name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def _values(name: str, rates: Rates) -> tuple[str, float, float]:
    """(pattern, learning rate, weight decay)."""
    pattern, lr, decay = "others", rates.base_lr, rates.weight_decay
    if rates.text_part in name:
        pattern, lr = f"*{rates.text_part}*", rates.language_lr
    elif rates.body_part in name:
        body_lr = rates.base_lr * rates.body_lr_factor if rates.body_lr is None else rates.body_lr
        pattern, lr = f"*{rates.body_part}*", body_lr
    if custom := [part for part in rates.custom_parts if part in name]:
        pattern, lr = f"{pattern} *{custom[0]}*", lr * rates.custom_lr_factor
    if "bias" in name:
        pattern, lr, decay = f"{pattern} *bias*", lr * rates.bias_lr_factor, rates.bias_weight_decay
    if "norm" in name or "Norm" in name:
        pattern, decay = f"{pattern} *norm*", decay * rates.norm_weight_decay_factor
    return pattern, lr, decay


def optimizer_groups(groups: Sequence[ParamGroup]) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, one for each pair of values; the text encoder, whose schedule may differ, apart.

    An optimizer works through a group at once, which is much faster than one group for each of hundreds of parameters
    and changes nothing else. Names go along, so that a checkpoint knows what it holds.
    """
    merged: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for group in groups:
        lr, decay = group.lr, group.weight_decay
        values = {"lr": lr, "weight_decay": decay, "text": group.text}
        entry = merged.setdefault((lr, decay, group.text), {"params": [], **values})
        entry["params"].append((group.name, group.parameter))
    return list(merged.values())


def table(groups: Sequence[ParamGroup]) -> str:
    """Patterns, how many tensors and numbers each has, learning rate, weight decay."""
    rows: dict[tuple[str, float, float], list[int]] = {}
    for group in groups:
        row = rows.setdefault((group.pattern, group.lr, group.weight_decay), [0, 0])
        row[0] += 1
        row[1] += group.parameter.numel()
    shown = PrettyTable(["parameters", "tensors", "numbers", "lr", "weight decay"], align="r")
    shown.align["parameters"] = "l"
    for (pattern, lr, decay), (tensors, numbers) in sorted(rows.items()):
        shown.add_row([pattern, tensors, f"{numbers:,}", f"{lr:g}", f"{decay:g}"])
    shown.add_row(["all", len(groups), f"{sum(group.parameter.numel() for group in groups):,}", "", ""])
    return shown.get_string()
