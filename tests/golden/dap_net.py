"""Faster R-CNN and RetinaNet of golden cases: the detector of a config, weights from a seed, what stages compute."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint.io import load_weights
from maskrcnn_benchmark.checkpoint.names import rename
from maskrcnn_benchmark.checkpoint.rules import FASTER_RCNN
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target
from tests.golden.common import fill

Case = dict[str, Any]
ANCHORS = "anchor_generator.cell_anchors."
DEPTH = {6: 50, 23: 101, 36: 152}  # by the blocks in the third stage


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of a nest of mappings."""
    return [
        pair
        for name, value in tree.items()
        for pair in (leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)])
    ]


def case_config(case: Case) -> Cfg:
    """The config of a case, the overrides of its training included: nothing that they set counts in detection."""
    pairs = [
        (key, value)
        for key, value in leaves(case["effective config (eval)"])
        if not key.startswith("INPUT.") or key.rpartition(".")[2] in ("PIXEL_MEAN", "PIXEL_STD", "TO_BGR255")
    ]
    opts = [str(word) for pair in pairs for word in pair]
    return load_cfg(opts=[*opts, *map(str, case["train-only overrides"])])


def case_detector(case: Case, folder: Path) -> nn.Module:
    """The detector of a case, its weights read from a checkpoint file under the released names.

    A file whose anchors are not those of the config is refused, so the made-up anchors of a case are put in by hand.
    """
    detector = build_detector(case_config(case))
    skip = case["fill_"].get("skip", ())
    ours = detector.state_dict()
    weights = {}
    for name, released in rename(ours, FASTER_RCNN, outward=True).items():
        value = ours[name].clone()
        if value.is_floating_point() and released not in skip:
            filled = fill.values(released, tuple(value.shape), case["fill_"]["seed"])
            value = torch.from_numpy(filled).reshape(value.shape) * case["after fill_, multiply"].get(released, 1.0)
        weights[released] = value
    path = folder / "weights.safetensors"
    save_file({name: value for name, value in weights.items() if ANCHORS not in name}, path)
    report = load_weights(detector, path, rules=FASTER_RCNN)
    assert not report.missing
    path.unlink()
    for name, value in ours.items():
        if ANCHORS in name:
            value.copy_(weights[name])
    return detector


def case_batch(case: Case) -> Batch:
    """The drawn pictures of a case, not resized, and what is in them."""
    cfg = case_config(case)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    pictures, metas = [], []
    for index, drawn in enumerate(case["images"]):
        seed, height, width = drawn["fill.image"]
        rgb = torch.from_numpy(fill.image(seed, height, width)).permute(2, 0, 1).float() / 255
        pixels = rgb.flip(0) * 255 if cfg.INPUT.TO_BGR255 else rgb
        pictures.append((pixels - mean) / std)
        metas.append(ImageMeta(index, (height, width), (height, width)))
    targets = [
        Target(torch.tensor(target["boxes_xyxy"]).float(), torch.tensor(target["labels"]), meta)
        for target, meta in zip(case["targets"], metas, strict=True)
    ]
    images = ImageBatch.pad(pictures, metas, cfg.DATALOADER.SIZE_DIVISIBILITY)
    assert list(images.pixels.shape) == case["batch shape"]
    return Batch(images, targets)


def stages(detector: nn.Module, pixels: Tensor, proposals: Sequence[Tensor]) -> dict[str, Tensor]:
    """What the stages of a detector hand on, under the names of the cases; the second stage sees given proposals."""
    taps: dict[str, Tensor] = {}

    def before(name: str) -> Any:
        return lambda module, inputs: taps.__setitem__(name, inputs[0])

    def after(name: str) -> Any:
        return lambda module, inputs, output: taps.__setitem__(name, output)

    body = detector.backbone.body
    hooks = [body.layer1.register_forward_pre_hook(before("backbone.body.stem"))]
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        hooks.append(body.get_submodule(stage).register_forward_hook(after(f"backbone.body.{stage}")))
    maps = detector.backbone(pixels)
    for hook in hooks:
        hook.remove()
    taps |= {f"backbone.fpn[{level}]": x for level, x in enumerate(maps)}
    for part, levels in enumerate(detector.rpn.head(maps)):
        taps |= {f"rpn.head[{part}][{level}]": x for level, x in enumerate(levels)}
    if hasattr(detector, "roi_heads"):
        box = detector.roi_heads.box
        taps["roi_heads.box.feature_extractor.pooler"] = box.feature_extractor.pooler(maps, proposals)
        features = box.feature_extractor(maps, proposals)
        taps["roi_heads.box.feature_extractor"] = features
        for part, value in enumerate(box.predictor(features)):
            taps[f"roi_heads.box.predictor[{part}]"] = value
    return taps


def partners(
    found: Sequence[Tensor], expected: Sequence[Tensor], box_tolerance: float, score_tolerance: float
) -> tuple[float, bool]:
    """How many of the expected boxes were found, and whether these are in the same order.

    Args:
        found: Boxes, scores and, where there are any, labels.
        expected: The same.
    """
    same = (found[0][None] - expected[0][:, None]).abs().amax(2) <= box_tolerance
    same &= (found[1][None] - expected[1][:, None]).abs() <= score_tolerance
    for labels, wanted in zip(found[2:], expected[2:], strict=True):
        same &= labels[None] == wanted[:, None]
    hit = same.any(1)
    places = same.float().argmax(1)[hit]
    ordered = bool((places.diff() >= 0).float().mean() >= 0.99) if len(places) > 1 else True
    return hit.float().mean().item(), ordered


def manual_seed(case: Case) -> int | None:
    """The seed of the draws of a case; None where there are none."""
    match = re.search(r"manual_seed\((\d+)\)", case["sampling"])
    return int(match[1]) if match else None


def list_options(keys: Mapping[str, Sequence[int]]) -> list[str]:
    """The config, as KEY VALUE words, of the model that a released list of names and shapes belongs to."""

    def shape(name: str) -> Sequence[int]:
        return keys[f"{name}.weight"]

    retinanet = "rpn.head.cls_tower.0.weight" in keys
    blocks = {name.split(".")[3] for name in keys if name.startswith("backbone.body.layer3.")}
    deform = [any(f"body.layer{i}." in name and ".conv2.offset." in name for name in keys) for i in range(1, 5)]
    rows = [shape[0] for name, shape in keys.items() if name.endswith("conv2.offset.bias")]
    options: dict[str, object] = {
        "MODEL.BACKBONE.CONV_BODY": f"R-{DEPTH[len(blocks)]}-FPN{'-RETINANET' if retinanet else ''}",
        "MODEL.RETINANET_ON": retinanet,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": shape("backbone.body.stem.conv1")[0],
        "MODEL.RESNETS.RES2_OUT_CHANNELS": shape("backbone.body.layer1.0.conv3")[0],
        "MODEL.RESNETS.WIDTH_PER_GROUP": shape("backbone.body.layer1.0.conv1")[0],
        "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": shape("backbone.fpn.fpn_inner2")[0],
        "MODEL.RESNETS.STAGE_WITH_DCN": deform,
        "MODEL.RESNETS.WITH_MODULATED_DCN": rows[:1] == [27],
        "MODEL.RPN.ANCHOR_STRIDE": (4, 8, 16, 32, 64),
        "MODEL.ROI_BOX_HEAD.POOLER_SCALES": (0.25, 0.125, 0.0625, 0.03125),
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    }
    if retinanet:
        options["MODEL.RETINANET.NUM_CLASSES"] = shape("rpn.head.cls_logits")[0] // 9 + 1
    else:
        classes, width = shape("roi_heads.box.predictor.cls_score")
        options["MODEL.ROI_BOX_HEAD.NUM_CLASSES"] = classes
        options["MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM"] = width
        options["MODEL.CLS_AGNOSTIC_BBOX_REG"] = shape("roi_heads.box.predictor.bbox_pred")[0] == 8
    return [str(word) for pair in options.items() for word in pair]
