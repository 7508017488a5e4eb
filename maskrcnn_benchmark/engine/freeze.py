"""Which parts of a detector train: the ``FREEZE`` keys, and the tuning modes of GLIP and FIBER that set them.

==================  ============================================================================
full                everything (but what ``FREEZE_CONV_BODY_AT`` and the losses leave out)
linear_prob         the predictors: boxes, centerness, projection, temperature and biases of words
language_prompt_v1  the text encoder
language_prompt_v2  a learnt vector for each position of the prompt, nothing else
language_prompt_v3  as v1
language_prompt_v4  as v2
==================  ============================================================================

In a fused backbone what lets the picture look at text belongs to the picture's part, and the other way round.
"""

from __future__ import annotations

import logging

from prettytable import PrettyTable
from torch import nn

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.interface import Detector

logger = logging.getLogger(__name__)

_KEYS = (
    "MODEL.BACKBONE.FREEZE",
    "MODEL.FPN.FREEZE",
    "MODEL.LANGUAGE_BACKBONE.FREEZE",
    "MODEL.RPN.FREEZE",
    "MODEL.LINEAR_PROB",
    "MODEL.DYHEAD.FUSE_CONFIG.ADD_LINEAR_LAYER",
)
_ON, _OFF = True, False
TUNING: dict[str, tuple[bool, ...]] = {  # values of _KEYS
    "full": (_OFF, _OFF, _OFF, _OFF, _OFF, _OFF),
    "linear_prob": (_ON, _ON, _ON, _OFF, _ON, _OFF),
    "language_prompt_v1": (_ON, _ON, _OFF, _ON, _OFF, _OFF),
    "language_prompt_v2": (_ON, _ON, _ON, _ON, _OFF, _ON),
    "language_prompt_v3": (_ON, _ON, _OFF, _ON, _ON, _OFF),
    "language_prompt_v4": (_ON, _ON, _ON, _ON, _ON, _ON),
}
PREDICTORS = ("bbox_pred", "cls_logits", "centerness", "dot_product_projection_text", "log_scale", "bias_lang", "bias0")
"""Of the head, what ``MODEL.LINEAR_PROB`` leaves to train."""

MDETR_TEXT = "transformer.text_encoder"
"""Of MDETR; it keeps its dropout when it is frozen, as published."""


def with_tuning(cfg: Cfg) -> Cfg:
    """The config that ``SOLVER.TUNING_HIGHLEVEL_OVERRIDE`` makes of a config; to be used for building and all else."""
    mode = cfg.SOLVER.TUNING_HIGHLEVEL_OVERRIDE
    if mode is None:
        return cfg
    values: dict[str, object] = dict(zip(_KEYS, TUNING[mode], strict=True))
    if mode == "linear_prob":
        values["MODEL.DYHEAD.USE_CHECKPOINT"] = False  # the tower has no gradients to save memory for
    return cfg.override(values, f"SOLVER.TUNING_HIGHLEVEL_OVERRIDE {mode}")


def freeze(cfg: Cfg, model: Detector) -> None:
    """Freeze what the config says: no gradients, and evaluation mode also in later calls of ``train()``.

    Args:
        cfg: From :func:`with_tuning`.
        model: FIBER, GLIP, MDETR, DECOLA or what it is measured against.

    Raises:
        ConfigError: a linear probe on parts that train, or a part that the model does not have.
    """
    root = "fusion_backbone." if hasattr(model, "fusion_backbone") else ""
    asked = {
        "MODEL.BACKBONE.FREEZE": (
            cfg.MODEL.BACKBONE.FREEZE,
            [_part_of(model, "backbone.0.body", "detr.backbone.0.backbone", otherwise=f"{root}backbone.body")],
        ),
        "MODEL.FPN.FREEZE": (cfg.MODEL.FPN.FREEZE, [f"{root}backbone.fpn"]),
        "MODEL.LANGUAGE_BACKBONE.FREEZE": (
            cfg.MODEL.LANGUAGE_BACKBONE.FREEZE,
            [_part_of(model, MDETR_TEXT, otherwise=f"{root}language_backbone.body")],
        ),
        "MODEL.RPN.FREEZE": (cfg.MODEL.RPN.FREEZE, ["rpn.head", *_beside_head(model)]),
    }
    parts = list(model.frozen)
    for key, (on, names) in asked.items():
        if on and not _has(model, names[0]):
            raise ConfigError(f"{key} True ({cfg.source(key)}): this model has no {names[0]}, set it to False")
        parts += names if on else []
    if cfg.MODEL.LINEAR_PROB:
        _check_probe(cfg)
        head = model.get_submodule("rpn.head")  # all parameters of its own are predictors
        parts += [f"rpn.head.{name}" for name, _ in head.named_children() if name not in PREDICTORS]
        parts += _beside_head(model)
    if cfg.MODEL.DYHEAD.FUSE_CONFIG.USE_DOT_PRODUCT_TOKEN_LOSS and _has(model, "rpn.head.cls_logits"):
        parts.append("rpn.head.cls_logits")  # words are the classifier
    for part in parts:
        model.get_submodule(part).requires_grad_(False)
    model.frozen = tuple(dict.fromkeys(part for part in parts if not part.endswith(MDETR_TEXT)))
    model.train(model.training)


def _has(model: nn.Module, part: str) -> bool:
    return any(name == part for name, _ in model.named_modules())


def _part_of(model: nn.Module, *names: str, otherwise: str) -> str:
    """The name of a part in this kind of model: the first one there is; with a mask head it is in ``detr``."""
    there = [*names, *(f"detr.{name}" for name in names)]
    return next((name for name in there if _has(model, name)), otherwise)


def _beside_head(model: nn.Module) -> list[str]:
    """What freezes with the head: projections for losses and the like, but not a learnt prompt."""
    rpn = getattr(model, "rpn", nn.Module())
    return [f"rpn.{name}" for name, _ in rpn.named_children() if name not in ("head", "tunable_linear")]


def _check_probe(cfg: Cfg) -> None:
    for key in _KEYS[:2]:
        if not cfg.peek(key):
            told = f"MODEL.LINEAR_PROB True ({cfg.source('MODEL.LINEAR_PROB')})"
            raise ConfigError(f"{told} wants what lies before the head frozen: set {key} to True")


def count_table(model: Detector) -> str:
    """What trains and what does not, by part, in numbers of weights."""
    shown = PrettyTable(["part", "trained", "frozen", "mode"], align="r")
    shown.align["part"] = "l"
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        row = rows.setdefault(_part(name), [0, 0])
        row[not parameter.requires_grad] += parameter.numel()
    for part, (trained, frozen) in rows.items():
        inside = not trained and any(name.startswith(f"{part}.") for name in model.frozen)
        evaluating = inside or any(part == name or part.startswith(f"{name}.") for name in model.frozen)
        shown.add_row([part, f"{trained:,}", f"{frozen:,}", "evaluation" if evaluating else "training"])
    totals = [f"{sum(row[i] for row in rows.values()):,}" for i in (0, 1)]
    shown.add_row(["all", *totals, ""])
    return shown.get_string()


def _part(name: str) -> str:
    """The row of a parameter: ``backbone.body``, ``fusion_backbone.backbone.body``, ``rpn.head.bbox_pred``, ..."""
    modules = name.split(".")[:-1]
    return ".".join(modules[: 3 if modules[:1] in (["fusion_backbone"], ["rpn"]) else 2]) or name
