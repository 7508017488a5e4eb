"""DAP's pseudo boxes against the reference: maps to boxes, and pictures to boxes with whole classifiers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import models
from torchvision.models.resnet import Bottleneck, ResNet

from maskrcnn_benchmark.modeling.cam.boxes import BoxRule, boxes_of_map, suppress
from maskrcnn_benchmark.modeling.cam.build import map_net
from maskrcnn_benchmark.modeling.cam.maps import ClassMaps, at_scales
from maskrcnn_benchmark.structures import ImageBatch
from tests.golden.common import fill, golden_cases, load_case

LEVELS = (9, 8, 7, 6, 5)
NEAR_THRESHOLD = 1e-4  # the reference's own limit for the number of boxes to be certain


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    return boxes[suppress(np.array([0, len(boxes)]), boxes, scores, threshold)]


def close(found: np.ndarray, expected: Tensor, tolerance: float) -> None:
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected.numpy(), atol=tolerance, rtol=0)


def image_size(entry: dict[str, Any]) -> tuple[int, int]:
    """(h, w)."""
    width, height = entry["img_size_wh"]
    return height, width


@pytest.mark.parametrize("path", golden_cases("dap", "cam_boxes*"))
def test_boxes_of_a_map(path: Path) -> None:
    case, tensors = load_case(path)
    sets = {name.split()[0]: tuple(values) for name, values in case["threshold sets"].items()}
    for number, entry in enumerate(case["maps"]):
        values, size = tensors[f"cam_{number}"].numpy(), image_size(entry)
        cell = 32 * min(size) / 576
        for name, thresholds in sets.items():
            rule = BoxRule(thresholds, most=case["k"], bias=case["bias"])
            boxes, scores = boxes_of_map(values, size, cell, rule)
            close(boxes, tensors[f"boxes_{number}_{name}"], 1e-3)
            close(scores, tensors[f"scores_{number}_{name}"], 1e-5)
            for level in LEVELS:
                close(nms(boxes, scores, level / 10), tensors[f"nms{level}_{number}_{name}"], 1e-3)
        for key in (key for key in tensors if key.startswith(f"single_{number}_")):
            rule = BoxRule((int(key.split("_")[-1]) / 100,), most=case["k"], bias=case["bias"])
            close(boxes_of_map(values, size, cell, rule)[0], tensors[key], 1e-3)


def classifier(case: dict[str, Any]) -> ClassMaps:
    """The network that the case describes, with its weights."""
    told = case["classifier"]
    number = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", told)}
    if blocks := re.search(r"ResNet\(Bottleneck, \[([\d, ]+)\]", told):
        net = ResNet(Bottleneck, [int(count) for count in blocks[1].split(",")], **number)
    else:
        net = models.get_model(told.split()[1].split("(")[0], weights=None, **number)
    return map_net(fill.fill_(net, case["fill_"]["seed"]).eval(), told)


def check_features(net: ClassMaps, batch: ImageBatch, entry: dict[str, Any], scale: int, raw: Tensor) -> None:
    """Input, last feature map and the class's output of the picture alone, without its mirror image."""
    pixels = net.normalise(batch).pixels
    if stats := entry.get(f"input{scale} stats"):
        np.testing.assert_allclose(pixels.flatten()[:32], stats["first32"], atol=1e-5)
        assert float(pixels.mean()) == pytest.approx(stats["mean"], abs=1e-5)
    with torch.inference_mode():
        features = net.features(pixels)
    stats = entry[f"layer4_{scale}"]
    assert list(features.shape) == stats["shape"]
    np.testing.assert_allclose(features.flatten()[:32], stats["first32"], atol=1e-4)
    found = torch.einsum("chw,c->hw", features[0], net.weight[entry["label0"]]) + net.bias[entry["label0"]]
    np.testing.assert_allclose(found, raw, atol=1e-4)


WHOLE = [
    pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.full])
    for case in golden_cases("dap", "cam_full*", but=("cam_full_small*",))
]


@pytest.mark.parametrize("path", [*golden_cases("dap", "cam_full_small*"), *WHOLE])
def test_boxes_of_a_picture(path: Path) -> None:
    case, tensors = load_case(path)
    net = classifier(case)
    for number, entry in enumerate(case["images"]):
        pixels = fill.image(*entry["image"]["fill.image"])
        scales = at_scales([Image.fromarray(pixels)], case["scales"])
        for scale, batch in zip(case["scales"], scales, strict=True):
            assert list(batch.pixels.shape[1:]) == entry[f"input{scale}"]
            check_features(net, batch, entry, scale, tensors[f"rawcam{scale}_noflip_{number}"])
        found = net(scales, torch.tensor([entry["label0"]]))
        assert found.stride == 32
        np.testing.assert_allclose(found.values[0], tensors[f"cam_{number}"], atol=2e-4)
        size = pixels.shape[:2]
        rule = BoxRule(tuple(case["thresholds"]))
        boxes, scores = boxes_of_map(found.values[0].numpy(), size, 32 * min(size) / 576, rule)
        values, thresholds = tensors[f"cam_{number}"].flatten(), torch.tensor(case["thresholds"])
        if len(boxes) != len(tensors[f"boxes_{number}"]):
            assert float((values[:, None] - thresholds).abs().min()) < NEAR_THRESHOLD
            continue
        close(boxes, tensors[f"boxes_{number}"], 0.05)
        np.testing.assert_allclose(scores, tensors[f"scores_{number}"], atol=1e-3)
        close(nms(boxes, scores, 0.8), tensors[f"nms8_{number}"], 0.05)
