"""Text-prompted object detection: FIBER, GLIP and their relatives on today's PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Detections", "Predictor", "load_model"]

if TYPE_CHECKING:
    from maskrcnn_benchmark.api import Predictor, load_model
    from maskrcnn_benchmark.structures import Detections


def __getattr__(name: str) -> Any:
    """Import torch and the networks only when one of the public names is used."""
    if name == "Detections":
        from maskrcnn_benchmark.structures import Detections

        return Detections
    if name in __all__:
        from maskrcnn_benchmark import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
