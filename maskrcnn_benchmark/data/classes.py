"""Classes of a detector that reads no text: those of the data that it is trained on, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.config.defaults.rcnn import ARCHITECTURE
from maskrcnn_benchmark.errors import ConfigError

SHOWN = 3  # names in a message


def closed_vocabulary(cfg: Cfg) -> bool:
    """Whether the detector of a config knows a fixed list of classes, and reads no text."""
    return bool(cfg.MODEL.META_ARCHITECTURE == ARCHITECTURE)


def class_count(cfg: Cfg) -> int:
    """How many classes the head of a closed-vocabulary detector has, without the background."""
    return int(_group(cfg)[1].NUM_CLASSES) - 1


def check_classes(cfg: Cfg, dataset: str, names: Sequence[str]) -> None:
    """That the head of a closed-vocabulary detector has the classes of a data set.

    Raises:
        ConfigError: it has more or fewer of them.
    """
    count = class_count(cfg)
    if count != len(names):
        key = f"{_group(cfg)[0]}.NUM_CLASSES"
        first = f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        raise ConfigError(
            f"{key} {count + 1} ({cfg.source(key)}) is for {count} classes and the background, and {dataset} has "
            f"{len(names)} ({first}): set it to {len(names) + 1}, or choose another data set"
        )


def _group(cfg: Cfg) -> tuple[str, Cfg]:
    """The keys of the head, with their name."""
    if cfg.MODEL.RETINANET_ON:
        return "MODEL.RETINANET", cfg.MODEL.RETINANET
    return "MODEL.ROI_BOX_HEAD", cfg.MODEL.ROI_BOX_HEAD
