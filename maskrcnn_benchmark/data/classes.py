"""Classes of a detector that reads no text: those of the data that it is trained on, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.config.defaults.decola import ARCHITECTURES
from maskrcnn_benchmark.config.defaults.rcnn import ARCHITECTURE
from maskrcnn_benchmark.errors import ConfigError

SHOWN = 3  # names in a message


def closed_vocabulary(cfg: Cfg) -> bool:
    """Whether the detector of a config knows a fixed list of classes, and reads no text."""
    return cfg.MODEL.META_ARCHITECTURE in (ARCHITECTURE, *ARCHITECTURES)


def class_count(cfg: Cfg) -> int:
    """How many classes the head of a closed-vocabulary detector has, without the background."""
    _, group, background = _head(cfg)
    return int(group.NUM_CLASSES) - background


def check_classes(cfg: Cfg, dataset: str, names: Sequence[str]) -> None:
    """That the head of a closed-vocabulary detector has the classes of a data set.

    Raises:
        ConfigError: it has more or fewer of them.
    """
    count = class_count(cfg)
    if count != len(names):
        group, _, background = _head(cfg)
        key, said = f"{group}.NUM_CLASSES", f"{count} classes{' and the background' if background else ''}"
        first = f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        other = "choose another data set" if len(names) > count else "give it a file whose categories are all of them"
        raise ConfigError(
            f"{key} {count + background} ({cfg.source(key)}) is for {said}, and {dataset} has {len(names)} ({first}): "
            f"set it to {len(names) + background}, or {other}"
        )


def _head(cfg: Cfg) -> tuple[str, Cfg, int]:
    """The keys of the head, with their name, and how many of its classes are the background."""
    if cfg.MODEL.META_ARCHITECTURE == "CenterNet2RCNN":
        return "MODEL.ROI_HEADS", cfg.MODEL.ROI_HEADS, 0
    if cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES:
        return "MODEL.DEFORMABLE_DETR", cfg.MODEL.DEFORMABLE_DETR, 0
    if cfg.MODEL.RETINANET_ON:
        return "MODEL.RETINANET", cfg.MODEL.RETINANET, 1
    return "MODEL.ROI_BOX_HEAD", cfg.MODEL.ROI_BOX_HEAD, 1
