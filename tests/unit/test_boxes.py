"""Geometry of boxes and the box coder."""

from __future__ import annotations

import math

import pytest
import torch

from maskrcnn_benchmark.modeling.assign.box_coder import BoxCoder
from maskrcnn_benchmark.structures import boxes as geometry

A = torch.tensor([[0.0, 0, 9, 9], [5, 5, 14, 9]])


def test_area_and_iou_by_hand() -> None:
    assert geometry.area(A, plus_one=True).tolist() == [100, 50]
    assert geometry.area(A).tolist() == [81, 36]
    assert geometry.iou(A, A, plus_one=True)[0, 1].item() == pytest.approx(25 / 125)
    assert geometry.iou(A, A)[0, 1].item() == pytest.approx(16 / 101)
    assert geometry.iou(A, torch.zeros(0, 4)).shape == (2, 0)


def test_giou_by_hand() -> None:
    apart = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]])
    assert geometry.giou(*apart).item() == pytest.approx(-0.5)
    assert geometry.giou(A, A).diagonal().tolist() == [1, 1]


def test_clip_to_the_last_pixel_or_to_the_border() -> None:
    box = torch.tensor([[-3.0, 2, 50, 60]])
    assert geometry.clip(box, (40, 30), plus_one=True).tolist() == [[0, 2, 29, 39]]
    assert geometry.clip(box, (40, 30)).tolist() == [[0, 2, 30, 40]]


def test_small_and_broken_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, -0.5, 4], [0, 0, math.nan, 4], [0, 0, -2, 4]])
    assert geometry.large_enough(boxes, 0, plus_one=True).tolist() == [True, True, False, False]


@pytest.mark.parametrize("plus_one", [False, True])
def test_conversions_there_and_back(plus_one: bool) -> None:
    xywh = geometry.xyxy_to_xywh(A, plus_one)
    assert xywh[0].tolist() == [0, 0, 9 + plus_one, 9 + plus_one]
    assert torch.equal(geometry.xywh_to_xyxy(xywh, plus_one), A)
    assert torch.equal(geometry.cxcywh_to_xyxy(geometry.xyxy_to_cxcywh(A)), A)


def test_a_box_of_less_than_a_pixel_covers_one() -> None:
    assert geometry.xywh_to_xyxy(torch.tensor([[3.0, 4, 0.5, 0]]), plus_one=True).tolist() == [[3, 4, 3, 4]]


@pytest.mark.parametrize("plus_one", [False, True])
def test_box_coder_there_and_back(plus_one: bool) -> None:
    coder = BoxCoder(plus_one=plus_one)
    anchors = torch.tensor([[-28.5, -28.5, 34.5, 34.5]]).expand(2, 4)
    deltas = coder.encode(A, anchors)
    torch.testing.assert_close(coder.decode(deltas, anchors), A, atol=1e-5, rtol=0)
    assert coder.encode(anchors, anchors).abs().max() == 0


def test_box_coder_limits_growth() -> None:
    anchors = torch.tensor([[0.0, 0, 15, 15]])
    box = BoxCoder().decode(torch.tensor([[0.0, 0, 1e9, 0]]), anchors)
    assert geometry.xyxy_to_xywh(box, plus_one=True)[0, 2].item() == pytest.approx(1000, rel=1e-5)
