"""CenterNet2 of golden cases: the detector of a released config, weights from a seed, drawn pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint.io import load_weights
from maskrcnn_benchmark.checkpoint.names import rename
from maskrcnn_benchmark.checkpoint.rules import CENTERNET2, RELEASED
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors.centernet2 import CenterNet2
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target
from tests.golden.common import fill, shared_path

Case = dict[str, Any]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
DIVISIBILITY = 32
LIVELY = {"bbox_pred.bias": (3.0, 1.0), "scale": (1.0, 5.0)}  # of the proposals: shift and factor of the filled values


def case_detector(case: Case, folder: Path) -> CenterNet2:
    """The detector of a case, its weights read from a checkpoint file under the released names."""
    detector = build_detector(
        load_cfg(f"configs/decola/{case['config']}.yaml", opts=["MODEL.DEVICE", "cpu", *case["overrides"]])
    )
    assert isinstance(detector, CenterNet2)
    ours = detector.state_dict()
    weights = {
        released: torch.from_numpy(_values(released, tuple(ours[name].shape), case["seed"]))
        for name, released in rename(ours, CENTERNET2, outward=True).items()
    }
    path = folder / "weights.safetensors"
    save_file(weights, path)
    report = load_weights(detector, path, rules=RELEASED)
    assert not report.missing
    path.unlink()
    return detector


def _values(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if name.endswith("zs_weight"):
        return _table(shape, seed)
    if name.endswith("freq_weight"):
        return _counts() ** 0.5
    values = fill.values(name, shape, seed)
    if name.startswith("proposal_generator.centernet_head.") and name.endswith(tuple(LIVELY)):
        shift, factor = next(pair for end, pair in LIVELY.items() if name.endswith(end))
        values = shift + factor * values
    return values.reshape(shape).astype(np.float32)


def _table(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """(E, C + 1) unit columns, the last one zero."""
    rows = torch.from_numpy(fill.values("zs_table", (shape[1] - 1, shape[0]), seed))
    return torch.cat((nn.functional.normalize(rows), torch.zeros(1, shape[0]))).t().contiguous().numpy()


def _counts() -> np.ndarray:
    """Pictures of each class of LVIS."""
    rows = json.loads(shared_path("spec", "decola_data", "lvis_v1_categories.json").read_text())
    rows = rows["categories"] if isinstance(rows, dict) else rows
    return np.array([row["image_count"] for row in sorted(rows, key=lambda row: row["id"])], np.float32)


def case_batch(case: Case) -> Batch:
    """The drawn pictures of a case, not resized, and what is known of them."""
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in (MEAN, STD))
    pictures, metas, targets = [], [], []
    for number, drawn in enumerate(case["images"]):
        size = (drawn["h"], drawn["w"])
        rgb = torch.from_numpy(fill.image(drawn["seed"], *size)).permute(2, 0, 1).float()
        pictures.append((rgb - mean) / std)
        metas.append(ImageMeta(number, size, (drawn.get("oh", size[0]), drawn.get("ow", size[1]))))
        targets.append(_target(drawn, metas[-1]))
    return Batch(ImageBatch.pad(pictures, metas, DIVISIBILITY), targets)


def _target(drawn: Mapping[str, Any], meta: ImageMeta) -> Target:
    if "pos_category_ids" in drawn:
        labels = torch.tensor(drawn["pos_category_ids"]) + 1
        return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), meta, image_labels=labels)
    boxes = torch.tensor(drawn.get("boxes", [])).float().reshape(-1, 4)
    labels = torch.tensor(drawn.get("classes", []), dtype=torch.int64) + 1
    return Target(boxes, labels, meta, polygons=tuple((_bitten(box),) for box in boxes.double().numpy()))


def _bitten(box: np.ndarray) -> np.ndarray:
    """A rectangle with a notch from its lower side to its centre."""
    x1, y1, x2, y2 = box
    return np.array([x1, y1, x2, y1, x2, y2, (x1 + x2) / 2, (y1 + y2) / 2, x1, y2])


def stages(detector: CenterNet2, pixels: Tensor) -> dict[str, Tensor]:
    """What the stages of a detection hand on, under the names of the cases."""
    taps: dict[str, Tensor] = {}

    def after(*names: str) -> Any:
        def note(module: nn.Module, inputs: object, output: Any) -> None:
            taps.update(zip(names, [output] if isinstance(output, Tensor) else output, strict=True))

        return note

    hooks = [
        detector.backbone.body.register_forward_hook(after("", *(f"bottom_up.layer{i}" for i in (3, 4, 5)))),  # type: ignore[union-attr]
        detector.backbone.register_forward_hook(after(*(f"fpn.p{i}" for i in range(3, 8)))),
    ]
    for stage, head in enumerate(detector.roi_heads.box_head):
        hooks.append(head.register_forward_hook(after(f"box_head{stage}")))
        predictor = detector.roi_heads.predictors[stage]
        hooks.append(predictor.cls_score.register_forward_hook(after(f"box_predictor{stage}.scores")))  # type: ignore[union-attr]
        hooks.append(predictor.bbox_pred.register_forward_hook(after(f"box_predictor{stage}.deltas")))
    maps = detector.backbone(pixels)
    heat, reach = detector.proposal_generator.centernet_head(maps)
    taps |= {f"centernet.agn_hm{level}": x for level, x in enumerate(heat)}
    taps |= {f"centernet.reg{level}": x for level, x in enumerate(reach)}
    detector.find(maps, [(pixels.shape[-2], pixels.shape[-1])])
    for hook in hooks:
        hook.remove()
    return taps
