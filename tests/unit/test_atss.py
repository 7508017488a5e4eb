"""Anchors, assignment and decoding of the dense grounding head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.errors import UserError
from maskrcnn_benchmark.modeling.assign.atss import atss_assign, centerness_targets
from maskrcnn_benchmark.modeling.heads.anchors import AnchorGenerator
from maskrcnn_benchmark.modeling.heads.atss_decode import AtssDecode
from maskrcnn_benchmark.modeling.heads.outputs import HeadOutputs

SIZES = [(4, 6), (2, 3)]
PICTURE = (30, 44)


def generator() -> AnchorGenerator:
    return AnchorGenerator(sizes=(16, 32), strides=(8, 16))


def outputs(logits: dict[tuple[int, int, int], float], tokens: int = 6, centerness: float = 20.0) -> HeadOutputs:
    """One picture; every logit is -20 but those at (level, anchor, token)."""
    token_logits = [torch.full((1, h * w, tokens), -20.0) for h, w in SIZES]
    for (level, anchor, token), value in logits.items():
        token_logits[level][0, anchor, token] = value
    return HeadOutputs(
        box_deltas=[torch.zeros(1, 4, h, w) for h, w in SIZES],
        centerness=[torch.full((1, 1, h, w), centerness) for h, w in SIZES],
        token_logits=token_logits,
    )


def owned(*rows: tuple[int, ...], tokens: int = 6) -> Tensor:
    mask = torch.zeros(len(rows), tokens, dtype=torch.bool)
    for row, own in zip(mask, rows, strict=True):
        row[list(own)] = True
    return mask


def logit(prob: float) -> float:
    return math.log(prob / (1 - prob))


def test_anchors_lie_around_cell_centres() -> None:
    first, second = generator()(SIZES)
    assert first[0].tolist() == [-4, -4, 11, 11]
    assert first[1].tolist() == [4, -4, 19, 11]  # row by row: the next cell is to the right
    assert second[3].tolist() == [-8, 8, 23, 39]
    assert list(generator().state_dict()) == ["cell_anchors.0", "cell_anchors.1"]


def test_anchors_of_several_ratios_and_scales() -> None:
    anchors = AnchorGenerator((32,), (16,), (0.5, 1.0, 2.0), scales_per_octave=2)
    boxes = anchors([(1, 1)])[0]
    assert anchors.num_per_cell == len(boxes) == 6
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).tolist()
    assert sides[2] == [32, 32]
    assert sides[4] == [22, 44]
    assert sides[3] == pytest.approx([32 * 2**0.5] * 2)
    with pytest.raises(ValueError, match="2 sizes for 1 strides"):
        AnchorGenerator((32, 64), (16,))


def test_assignment_prefers_the_better_overlap_and_leaves_the_rest() -> None:
    anchors = generator()(SIZES)
    objects = torch.tensor([[4.0, 4, 19, 19], [0, 0, 30, 30], [40, 20, 41, 21]])
    match = atss_assign(anchors, objects, topk=2)
    assert match.shape == (30,)
    assert match[7] == 0  # the anchor [4, 4, 19, 19]
    assert set(match.unique().tolist()) <= {-1, 0, 1, 2}
    assert (match == -1).sum() > 20


def test_assignment_of_a_picture_without_objects() -> None:
    assert atss_assign(generator()(SIZES), torch.zeros(0, 4)).tolist() == [-1] * 30


def test_centerness_is_one_in_the_middle_and_zero_at_a_side() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 20]]).expand(3, 4)
    points = torch.tensor([[5.0, 10], [0, 10], [2.5, 10]])
    torch.testing.assert_close(centerness_targets(points, boxes), torch.tensor([1.0, 0.0, (1 / 3) ** 0.5]))


@pytest.mark.parametrize(
    ("agg", "expected"),
    [("MEAN", (0.9 + 0.4) / 2), ("MAX", 0.9), ("POWER", (0.9 * 0.4) ** 0.5)],
)
def test_scores_of_a_phrase(agg: str, expected: float) -> None:
    raw = outputs({(0, 7, 1): logit(0.9), (0, 7, 2): logit(0.4)})
    ((boxes, scores, labels),) = AtssDecode(agg)(raw, generator()(SIZES), [PICTURE], [owned((1, 2))], [(5,)])
    assert labels.tolist() == [5]
    assert boxes.tolist() == [[4, 4, 19, 19]]
    assert scores.item() == pytest.approx(expected**0.5, rel=1e-5)


def test_onehot_takes_the_first_tokens_as_labels() -> None:
    raw = outputs({(0, 7, 1): logit(0.9), (0, 20, 3): logit(0.9)})
    decode = AtssDecode("ONEHOT")
    ((_, _, labels),) = decode(raw, generator()(SIZES), [PICTURE], [owned((4,), (5,))], [(1, 2)])
    assert labels.tolist() == [2]  # the token at place 3 lies beyond the two labels


def test_threshold_is_tested_before_centerness() -> None:
    raw = outputs({(0, 7, 1): logit(0.06), (0, 20, 1): logit(0.04)}, centerness=logit(0.01))
    ((_, scores, _),) = AtssDecode()(raw, generator()(SIZES), [PICTURE], [owned((1,))], [(1,)])
    assert scores.tolist() == pytest.approx([(0.06 * 0.01) ** 0.5], rel=1e-4)


def test_boxes_are_clipped_to_the_picture_without_its_padding() -> None:
    raw = outputs({(1, 5, 0): 5.0})
    ((boxes, _, _),) = AtssDecode()(raw, generator()(SIZES), [PICTURE], [owned((0,))], [(1,)])
    assert boxes.tolist() == [[24, 8, 43, 29]]


def test_nms_is_within_a_label_and_order_is_that_of_the_anchors() -> None:
    raw = outputs({(0, 0, 0): 1.0, (0, 0, 1): 2.0, (0, 7, 0): 3.0})
    anchors = generator()(SIZES)
    anchors[0][7] = anchors[0][0]
    ((_, scores, labels),) = AtssDecode()(raw, anchors, [PICTURE], [owned((0,), (1,))], [(1, 2)])
    assert sorted(labels.tolist()) == [1, 2]
    assert scores[labels == 1].item() == pytest.approx(torch.tensor(3.0).sigmoid().sqrt().item(), rel=1e-5)
    ((_, scores, _),) = AtssDecode(nms_threshold=0)(raw, anchors, [PICTURE], [owned((0,), (1,))], [(1, 2)])
    assert len(scores) == 3


def test_limits_per_level_and_per_picture_keep_ties_of_the_picture() -> None:
    everywhere = {(level, anchor, 0): 1.0 for level, (h, w) in enumerate(SIZES) for anchor in range(h * w)}
    raw = outputs(everywhere | {(0, 0, 0): 2.0})
    anchors = generator()(SIZES)
    run = {"nms_threshold": 0.0, "pre_nms_top_n": 5}
    ((_, scores, _),) = AtssDecode(max_detections=0, **run)(raw, anchors, [PICTURE], [owned((0,))], [(1,)])
    assert len(scores) == 10
    ((_, scores, _),) = AtssDecode(max_detections=1, **run)(raw, anchors, [PICTURE], [owned((0,))], [(1,)])
    assert len(scores) == 1
    ((_, scores, _),) = AtssDecode(max_detections=2, **run)(raw, anchors, [PICTURE], [owned((0,))], [(1,)])
    assert len(scores) == 10  # nine share the second place


def test_each_picture_has_its_own_prompt_and_may_find_nothing() -> None:
    raw = outputs({(0, 7, 1): 3.0})
    both = HeadOutputs(
        *([torch.cat((x, x)) for x in part] for part in (raw.box_deltas, raw.centerness, raw.token_logits))
    )
    found = AtssDecode()(both, generator()(SIZES), [PICTURE] * 2, [owned((1,)), owned((0,), ())], [(3,), (1, 2)])
    assert [len(scores) for _, scores, _ in found] == [1, 0]
    boxes, scores, labels = AtssDecode()(raw, generator()(SIZES), [PICTURE], [owned(())], [(1,)])[0]
    assert (boxes.shape, scores.shape, labels.shape, labels.dtype) == ((0, 4), (0,), (0,), torch.int64)


def test_labels_beyond_an_explicit_table_name_the_setting() -> None:
    raw, anchors = outputs({(0, 7, 0): 3.0}), generator()(SIZES)
    ((_, _, labels),) = AtssDecode()(raw, anchors, [PICTURE], [owned((0,))], [(4000,)])
    assert labels.tolist() == [4000]
    with pytest.raises(
        UserError, match=r"label 81 .* 80 columns; set TEST.MDETR_STYLE_AGGREGATE_CLASS_NUM to at least 81"
    ):
        AtssDecode(table_columns=80)(raw, anchors, [PICTURE], [owned((0,))], [(81,)])
    with pytest.raises(UserError, match="SCORE_AGG"):
        AtssDecode("MEDIAN")  # type: ignore[arg-type]


def test_half_precision_outputs_are_decoded_in_float32() -> None:
    raw = outputs({(0, 7, 1): 3.0})
    half = HeadOutputs(*([x.bfloat16() for x in part] for part in (raw.box_deltas, raw.centerness, raw.token_logits)))
    ((boxes, scores, _),) = AtssDecode()(half, generator()(SIZES), [PICTURE], [owned((1,))], [(3,)])
    assert (boxes.dtype, scores.dtype) == (torch.float32, torch.float32)
