"""DECOLA and its baselines of golden cases: the detector of a case's config and overrides, its weights, its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors.deformable_detr import QueryDetector
from maskrcnn_benchmark.modeling.heads.zero_shot import ZeroShotClassifier
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta
from tests.golden.common import fill

Case = dict[str, Any]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
NOT_FILLED = ("zs_weight", "fed_loss_weight", "freq_weight")


def case_config(case: Case, changes: Sequence[str] = ()) -> Cfg:
    return load_cfg(f"configs/decola/{case['config']}.yaml", opts=[*case["overrides"], *changes])


def case_detector(case: Case, changes: Sequence[str] = ()) -> QueryDetector:
    """The detector of a case with its weights, in evaluation mode.

    Args:
        case: Of phase 1, phase 2 or a baseline.
        changes: More KEY VALUE words.
    """
    detector = build_detector(case_config(case, changes))
    assert isinstance(detector, QueryDetector)
    fill_in(detector, case["seed"])
    return detector


def fill_in(detector: nn.Module, seed: int) -> None:
    """The weights of a case; embeddings of classes are those of its table."""
    names = [name for name in detector.state_dict() if name.endswith(NOT_FILLED)]
    fill.fill_(detector, seed, tuple(names))
    for module in detector.modules():
        if isinstance(module, ZeroShotClassifier):
            table = case_table(module, seed)
            module.zs_weight.copy_(module.stored(module.unit(table)))


def case_table(classifier: ZeroShotClassifier, seed: int) -> Tensor:
    """Embeddings before they are normalised: of the classes, and where the classifier has one the object row."""
    prompted = type(classifier).__name__ == "PromptClassifier"
    count, width = len(classifier.rows), classifier.linear.out_features
    rows = torch.from_numpy(fill.values("zs_table", (count, width), seed))
    return torch.cat((rows, torch.from_numpy(fill.values("zs_object", (1, width), seed)))) if prompted else rows


def pictures(images: Sequence[Mapping[str, Any]]) -> ImageBatch:
    """Drawn pictures, padded only to the largest of them."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    drawn = [torch.from_numpy(fill.image(one["seed"], one["h"], one["w"])).permute(2, 0, 1).float() for one in images]
    metas = [
        ImageMeta(i, (one["h"], one["w"]), (one.get("oh", one["h"]), one.get("ow", one["w"])))
        for i, one in enumerate(images)
    ]
    return ImageBatch.pad([(x - mean) / std for x in drawn], metas, 0)


class Taps:
    """What modules give during one forward pass."""

    def __init__(self, **modules: nn.Module) -> None:
        self.values: dict[str, Tensor] = {}
        self.hooks = [module.register_forward_hook(self._keep(name)) for name, module in modules.items()]

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: Any) -> None:
            self.values[name] = output

        return hook

    def close(self) -> dict[str, Tensor]:
        for hook in self.hooks:
            hook.remove()
        return self.values
