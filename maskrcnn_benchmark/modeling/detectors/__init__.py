"""Detectors. Each module ends in ``build(cfg)`` and registers it under the names that configs use."""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.modeling.interface import Detector
from maskrcnn_benchmark.modeling.registry import Registry

DETECTORS: Registry[Callable[[Cfg], Detector]] = Registry("detector", "MODEL.META_ARCHITECTURE")
