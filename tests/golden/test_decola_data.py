"""Golden cases of DECOLA's training data: which pictures, in which batches, changed how."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image

from maskrcnn_benchmark.data.label_transforms import (
    Crop,
    DetrAugment,
    EfficientDetResizeCrop,
    Resize,
    Step,
    apply,
)
from maskrcnn_benchmark.data.set_samplers import bucketed, drawn, repeat_factors, set_weights
from maskrcnn_benchmark.structures import ImageMeta, Target
from tests.golden.common import fill, golden_cases, load_case

SHORT_SIDES = tuple(range(480, 801, 32))
LARGEST = 1333
BATCH = (2, 8)


def _target(boxes: torch.Tensor, labels: list[int], size: tuple[int, int]) -> Target:
    meta = ImageMeta(1, size=size, orig_size=size, file="", dataset="")
    return Target(boxes.float(), torch.tensor(labels), meta)


def _as_whole_numbers(steps: list[Step], boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) xyxy of whole numbers through steps, cut to whole numbers after each, as the reference's arrays."""
    boxes, (height, width) = boxes.astype(np.float64), size
    for step in steps:
        if isinstance(step, Resize):
            boxes = np.trunc(boxes * np.tile([step.width / width, step.height / height], 2))
            height, width = step.height, step.width
        elif isinstance(step, Crop):
            boxes = boxes - np.tile([step.left, step.top], 2)
            height, width = step.height, step.width
        else:
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    boxes = np.clip(boxes, 0, np.tile([width, height], 2))
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]


def _detr(case: dict[str, Any]) -> None:
    height, width = case["hw"]
    steps = DetrAugment(SHORT_SIDES, LARGEST).plan(height, width, RandomState(case["np_seed"]))
    boxes = torch.tensor([[100, 50, 300, 300], [600, 400, 630, 420]])
    picture = Image.fromarray(fill.image(case["image_seed"], height, width))
    pixels, target = apply(steps, picture, _target(boxes, [3, 5], (height, width)))
    assert list(pixels.shape[1:]) == case["out_hw"] == list(target.meta.size)
    assert float(pixels.double().mean()) == pytest.approx(case["mean"], rel=1e-6)
    assert target.labels.tolist() == case["classes"]
    assert _as_whole_numbers(steps, boxes.numpy(), (height, width)).tolist() == case["boxes"]
    np.testing.assert_allclose(target.boxes.numpy(), case["boxes"], atol=5)  # theirs lost up to a pixel in each step


def _efficient(case: dict[str, Any]) -> None:
    height, width = case["hw"]
    augment = EfficientDetResizeCrop(case["size"], tuple(case["scale"]))
    resize, crop, *_ = augment.plan(height, width, RandomState(case["np_seed"]))
    assert isinstance(resize, Resize)
    assert isinstance(crop, Crop)
    assert [resize.height, resize.width] == case["scaled_hw"]
    assert [crop.top, crop.left] == case["offset_yx"]
    assert resize.scale == pytest.approx(case["img_scale"], rel=1e-12)
    picture = Image.fromarray(fill.image(case["image_seed"], height, width))
    boxes = torch.tensor([case["box_in"]])
    pixels, target = apply([resize, crop], picture, _target(boxes, [1], (height, width)))
    assert list(pixels.shape[1:]) == case["out_hw"]
    assert float(pixels.double().mean()) == pytest.approx(case["mean"], rel=1e-6)
    rows, columns = case["out_hw"]
    expected = np.clip(case["box_out_unclipped"], 0, [columns, rows, columns, rows])
    np.testing.assert_allclose(target.boxes[0].numpy(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("path", golden_cases("decola", "augmentations"))
def test_augmentations(path: Path) -> None:
    case, _ = load_case(path)
    for row in case["detr"]:
        _detr(row)
    for row in case["efficientdet"]:
        _efficient(row)


@pytest.mark.parametrize("path", golden_cases("decola", "multi_dataset_sampler"))
def test_sets_in_proportion(path: Path) -> None:
    case, _ = load_case(path)
    rows = case["dicts"]
    sources = np.array([row["dataset_source"] for row in rows])
    sets = [[row for row in rows if row["dataset_source"] == number] for number in sorted(set(sources.tolist()))]
    known = [
        [
            np.array([thing["category_id"] for thing in row["annotations"]] or row.get("pos_category_ids", []))
            for row in part
        ]
        for part in sets
    ]
    factors = [repeat_factors(classes, case["repeat_threshold"]) for classes in known]
    lengths, ratio = [len(part) for part in sets], case["dataset_ratio"]
    boxes_only = set_weights([factors[0], *[None] * (len(sets) - 1)], lengths, ratio)
    np.testing.assert_allclose(boxes_only.numpy(), case["weights_rfs_box_only"], rtol=1e-6)
    np.testing.assert_allclose(set_weights(factors, lengths, ratio).numpy(), case["weights_rfs_both"], rtol=1e-6)
    first = case["first60"]
    assert list(islice(drawn(boxes_only, seed=7), len(first))) == first
    wide = np.array([row["width"] > row["height"] for row in rows])
    batches = bucketed(iter(first), sources, wide, BATCH)
    assert [[rows[sample]["image_id"] for sample in batch] for batch in batches] == case["batches_image_ids"]
