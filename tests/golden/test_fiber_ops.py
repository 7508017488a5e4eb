"""Anchors, ATSS assignment and post-processing of FIBER against the reference's: golden cases op_anchors*, op_post*."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.layers.losses import giou_loss
from maskrcnn_benchmark.layers.ops import batched_nms, use_backend
from maskrcnn_benchmark.modeling.assign.atss import atss_assign, centerness_targets
from maskrcnn_benchmark.modeling.assign.box_coder import BoxCoder
from maskrcnn_benchmark.modeling.heads.anchors import AnchorGenerator
from maskrcnn_benchmark.modeling.heads.atss_decode import AtssDecode
from maskrcnn_benchmark.modeling.heads.outputs import HeadOutputs
from tests.golden.common import golden_cases, load_case, shared_path

STRIDES = (8, 16, 32, 64, 128)
TEXT_LENGTH = 256


def pyramid(padded: tuple[int, int]) -> list[tuple[int, int]]:
    """(h, w) of each level's map for a padded picture."""
    return [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in STRIDES]


@pytest.mark.parametrize("path", golden_cases("fiber", "op_anchors_atss*"))
def test_anchors_and_assignment(path: Path) -> None:
    case, expected = load_case(path)
    anchors = AnchorGenerator()(pyramid(tuple(case["padded"])))
    for level, boxes in enumerate(anchors, 3):
        torch.testing.assert_close(boxes, expected[f"anchors.p{level}"], atol=1e-4, rtol=0)
    height, width = case["image_sizes"][1]
    for level, boxes in enumerate(anchors, 3):
        inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] < width) & (boxes[:, 3] < height)
        assert torch.equal(inside.long(), expected[f"visibility_image1.p{level}"])
    for i in range(len(case["image_sizes"])):
        check_assignment(anchors, expected, str(i))


def check_assignment(anchors: list[Tensor], expected: dict[str, Tensor], i: str) -> None:
    gt = expected["gt" + i]
    match = atss_assign(anchors, gt)
    assert torch.equal(match + 1, expected["labels" + i])
    positive = match >= 0
    assert torch.equal(match[positive] * 2 + 1, expected["pos_token_argfirst" + i])
    owners = torch.cat(anchors)[positive]
    coder = BoxCoder()
    targets = coder.encode(gt[match[positive]], owners)
    torch.testing.assert_close(targets, expected["pos_reg_targets" + i], atol=1e-4, rtol=0)
    boxes = coder.decode(targets, owners)
    weights = centerness_targets((owners[:, :2] + owners[:, 2:]) / 2, boxes)
    torch.testing.assert_close(weights, expected["centerness_targets" + i], atol=1e-4, rtol=0)
    decoded = coder.decode(expected["giou_pred" + i], owners)
    torch.testing.assert_close(decoded, expected["decoded" + i], atol=1e-4, rtol=0)
    loss = (giou_loss(decoded, boxes) * weights).sum()
    torch.testing.assert_close(loss, expected["giou_loss_sum" + i].squeeze(), atol=1e-4, rtol=0)


POST_PROCESS = golden_cases("fiber", "op_postprocess*")


@pytest.mark.parametrize("backend", ["torchvision", "torch"])
@pytest.mark.parametrize("path", POST_PROCESS)
def test_nms(path: Path, backend: str) -> None:
    _, expected = load_case(path)
    keeps = [name for name in expected if name.startswith("nms.keep_")]
    assert keeps
    with use_backend(backend):
        for name in keeps:
            boxes, scores, labels = (expected["nms." + key] for key in ("boxes", "scores", "labels"))
            threshold = float(name.removeprefix("nms.keep_"))
            kept = batched_nms(boxes, scores, labels, threshold, plus_one=True, sort="index")
            assert torch.equal(kept, expected[name]), name


@pytest.mark.parametrize("path", POST_PROCESS)
def test_post_processing(path: Path) -> None:
    case, expected = load_case(path)
    anchor_case, _ = load_case(shared_path("golden/fiber/cases/op_anchors_atss.json"))
    sizes = pyramid(tuple(anchor_case["padded"]))
    anchors = AnchorGenerator()(sizes)
    outputs = synthetic_outputs(sizes, case["S"])
    ids = tuple(int(label) for label in case["positive_map_label_to_token"])
    owns = torch.zeros(len(ids), TEXT_LENGTH, dtype=torch.bool)
    for row, tokens in zip(owns, case["positive_map_label_to_token"].values(), strict=True):
        row[tokens] = True
    pictures = [tuple(size) for size in anchor_case["image_sizes"]]
    runs = sorted({name.rsplit(".det", 1)[0] for name in expected if ".det" in name})
    assert runs
    for run in runs:
        agg, setting = run.split(".")
        decode = decoder(agg, case["settings"][setting], case["NMS_TH"])
        found = decode(outputs, anchors, pictures, [owns] * len(pictures), [ids] * len(pictures))
        for i, detections in enumerate(found):
            compare(detections, {key: expected[f"{run}.det{i}.{key}"] for key in ("boxes", "scores", "labels")})


def decoder(agg: str, setting: str, nms_threshold: float) -> AtssDecode:
    """From a line such as "AGG -1, INFERENCE_TH .05, PRE_NMS 1000, DET 100" (TH 0.05, PRE_NMS 1000 when unsaid)."""
    values = {name: float(value) for name, value in re.findall(r"(\w+) (-?[\d.]+)", setting)}
    columns = int(values.get("MDETR_STYLE_AGGREGATE_CLASS_NUM", values.get("AGG", -1)))
    return AtssDecode(
        agg,  # type: ignore[arg-type]
        values.get("TH", values.get("INFERENCE_TH", 0.05)),
        int(values.get("PRE_NMS", 1000)),
        nms_threshold,
        int(values["DET"]),
        table_columns=None if columns == -1 else columns,
    )


def synthetic_outputs(sizes: list[tuple[int, int]], shift: int) -> HeadOutputs:
    def draw(seed: int, level: int, *shape: int) -> Tensor:
        return torch.from_numpy(np.random.RandomState(seed + level + shift).standard_normal(shape)).float()

    levels = list(enumerate(sizes))
    return HeadOutputs(
        box_deltas=[draw(80, level, 2, 4, h, w) * 0.8 for level, (h, w) in levels],
        centerness=[draw(90, level, 2, 1, h, w) for level, (h, w) in levels],
        token_logits=[draw(100, level, 2, h * w, TEXT_LENGTH) * 1.5 - 2 for level, (h, w) in levels],
    )


def compare(found: tuple[Tensor, Tensor, Tensor], expected: dict[str, Tensor]) -> None:
    """The same boxes; the order inside a level is not part of the contract, so both are put in order of score."""
    boxes, scores, labels = found
    assert len(scores) == len(expected["scores"])
    ours, theirs = (s.argsort(descending=True, stable=True) for s in (scores, expected["scores"]))
    torch.testing.assert_close(scores[ours], expected["scores"][theirs], atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes[ours], expected["boxes"][theirs], atol=1e-4, rtol=0)
    assert torch.equal(labels[ours], expected["labels"][theirs])
