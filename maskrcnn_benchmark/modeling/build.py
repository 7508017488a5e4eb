"""From a config to a detector."""

from __future__ import annotations

import importlib

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.detectors import (
    DETECTORS,
    centernet2,
    decola,
    deformable_detr,
    grounding,
    mdetr,
    mdetr_segm,
    rcnn,
)
from maskrcnn_benchmark.modeling.interface import Detector

__all__ = [
    "DETECTORS",
    "build_detector",
    "centernet2",
    "decola",
    "deformable_detr",
    "grounding",
    "mdetr",
    "mdetr_segm",
    "rcnn",
]


def build_detector(cfg: Cfg) -> Detector:
    """The detector of ``MODEL.META_ARCHITECTURE`` with fresh weights, on the CPU, in evaluation mode.

    Modules named in ``MODEL.IMPORTS`` are imported first, so that they can register detectors and parts of their own.

    Raises:
        ConfigError: a name or a combination that there is no network for.
    """
    for module in cfg.MODEL.IMPORTS:
        try:
            importlib.import_module(module)
        except ImportError as error:
            source = cfg.source("MODEL.IMPORTS")
            raise ConfigError(f"MODEL.IMPORTS ({source}): cannot import {module!r}: {error}") from error
    return DETECTORS.chosen(cfg)(cfg).eval()
