"""Faster R-CNN and RetinaNet as a whole: a second opinion by torchvision, hard batches, gradients, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align as torchvision_roi_align

from maskrcnn_benchmark.checkpoint.io import load_weights, save_weights
from maskrcnn_benchmark.checkpoint.names import rename
from maskrcnn_benchmark.checkpoint.rules import FASTER_RCNN
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.heads.rpn import ProposalLimits
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import Detections
from tests.unit.rcnn_nets import batch, config, detector, retinanet

BOTH = pytest.mark.parametrize("make", [detector, retinanet])


# a second opinion, written with torchvision's operators and for one picture


def decoded(deltas: Tensor, anchors: Tensor, weights: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    x1, y1, x2, y2 = anchors.unbind(1)
    w, h = x2 - x1 + 1, y2 - y1 + 1
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(1), weights, strict=True))
    cx, cy = x1 + 0.5 * w + dx * w, y1 + 0.5 * h + dy * h
    w, h = dw.clamp(max=math.log(1000 / 16)).exp() * w, dh.clamp(max=math.log(1000 / 16)).exp() * h
    left, top = (cx - 0.5 * w).clamp(0, size[1] - 1), (cy - 0.5 * h).clamp(0, size[0] - 1)
    right, bottom = (cx + 0.5 * w - 1).clamp(0, size[1] - 1), (cy + 0.5 * h - 1).clamp(0, size[0] - 1)
    return torch.stack((left, top, right, bottom), dim=1)


def kept(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    return torchvision_nms(boxes + torch.tensor([0.0, 0.0, 1.0, 1.0]), scores, threshold)


def second_proposals(net: nn.Module, maps: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    boxes, scores = [], []
    for level, (logits, deltas) in enumerate(zip(*net.rpn.head(maps), strict=True)):
        stride, height, width = 4 * 2**level, *logits.shape[-2:]
        sides = [(round(math.sqrt(stride**2 / r)), round(round(math.sqrt(stride**2 / r)) * r)) for r in (0.5, 1, 2)]
        centre, anchors = (stride - 1) / 2, []
        for y in range(height):
            for x in range(width):
                for w, h in sides:
                    reach_x, reach_y = (8 * w - 1) / 2, (8 * h - 1) / 2
                    shift = torch.tensor([x, y, x, y]) * stride
                    anchors.append(shift + torch.tensor([-reach_x, -reach_y, reach_x, reach_y]) + centre)
        score, places = logits[0].permute(1, 2, 0).flatten().sigmoid().sort(descending=True, stable=True)
        places = places[:200]
        deltas = deltas[0].view(3, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)[places]
        found = decoded(deltas, torch.stack(anchors)[places], (1, 1, 1, 1), size)
        keep = kept(found, score[:200], 0.7)[:100]
        boxes.append(found[keep])
        scores.append(score[:200][keep])
    best = torch.cat(scores).argsort(descending=True, stable=True)[:200]
    return torch.cat(boxes)[best], torch.cat(scores)[best]


def second_detections(net: nn.Module, maps: list[Tensor], boxes: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """Boxes, scores and labels."""
    head = net.roi_heads.box
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    levels = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-6)).clamp(2, 5)
    pooled = torch.stack(
        [
            torchvision_roi_align(maps[int(k) - 2], [box[None]], 7, 1 / 2**k, 2, aligned=False)[0]
            for box, k in zip(boxes, levels.tolist(), strict=True)
        ]
    )
    features = head.feature_extractor.fc6(pooled.flatten(1)).relu()
    logits, deltas = head.predictor(head.feature_extractor.fc7(features).relu())
    prob, parts = logits.softmax(1), []
    for label in range(1, prob.shape[1]):
        rows = (prob[:, label] > 0.05).nonzero().squeeze(1)
        found = decoded(deltas[rows, 4 * label : 4 * label + 4], boxes[rows], (10, 10, 5, 5), size)
        keep = kept(found, prob[rows, label], 0.5)
        parts.append((found[keep], prob[rows, label][keep], torch.full((len(keep),), label)))
    boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    best = scores.argsort(descending=True, stable=True)[:100]
    return [boxes[best], scores[best], labels[best]]


def test_real_anchors_against_torchvision() -> None:
    """Anchors, decoding, both NMS and pooling from several levels work together."""
    net, images = detector(), batch(sizes=((500, 640),), counts=(0,), seed=3).images
    with torch.no_grad():
        for level in (3, 4):  # or else every proposal comes from the finest maps
            net.backbone.fpn.get_submodule(f"fpn_layer{level}").weight.mul_(4)
        state = net.encode_image(images)
        (mine,) = net.rpn.detect(state.features, [(500, 640)])
        boxes, scores = second_proposals(net, state.features, (500, 640))
        torch.testing.assert_close(mine.boxes, boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(mine.scores, scores, rtol=0, atol=1e-5)
        levels = net.roi_heads.box.feature_extractor.pooler.levels(boxes)
        assert {0, 1, 2} <= set(levels.tolist())
        (found,) = net.detect(state)
        boxes, scores, labels = second_detections(net, state.features, boxes, (500, 640))
    assert len(found) == 100
    assert len(set(labels.tolist())) > 1
    # the picture on disk is twice as large; boxes of nearly one score may come in either order
    apart = torch.cdist(found.boxes / 2, boxes, p=torch.inf)
    distance, same = apart.masked_fill(found.labels[:, None] != labels, torch.inf).min(dim=1)
    assert distance.max() <= 1e-2
    assert len(set(same.tolist())) == 100
    torch.testing.assert_close(found.scores, scores[same], rtol=0, atol=1e-5)


def test_a_released_checkpoint_has_the_anchors_of_the_config(tmp_path: Path) -> None:
    first = detector()
    state = first.state_dict()
    names = rename(state, FASTER_RCNN, outward=True)
    assert "backbone.body.stem.conv1.weight" in names.values()
    save_weights({names[name]: value for name, value in state.items()}, tmp_path / "released.pth")
    net = build_detector(config())
    report = load_weights(net, tmp_path / "released.pth", rules=FASTER_RCNN)
    assert len(report.loaded) == len(state)
    cells = list(net.rpn.anchor_generator.cell_anchors.buffers())
    assert cells[0].tolist() == [[-22, -10, 25, 13], [-14, -14, 17, 17], [-10, -22, 13, 25]]
    assert cells[4].tolist()[1] == [-224, -224, 287, 287]
    images = batch().images
    with torch.no_grad():
        ours, theirs = (one.detect(one.encode_image(images)) for one in (net, first))
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(ours, theirs, strict=True))


# training


@BOTH
def test_gradient_reaches_everything_that_is_trained(make: type) -> None:
    net = make(RPN__STRADDLE_THRESH=-1, RPN__BATCH_SIZE_PER_IMAGE=100000)  # anchors of all levels are drawn
    net(batch()).total().backward()
    for name, value in net.named_parameters():
        frozen = name.startswith(("backbone.body.conv1", "backbone.body.layer1"))
        assert value.requires_grad != frozen, name
        assert (value.grad is None) == frozen, name
        assert frozen or value.grad.abs().sum() > 0, name


@BOTH
@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_pictures_without_objects_are_background(make: type, counts: tuple[int, ...]) -> None:
    net = make()
    losses = net(batch(counts=counts))
    losses.total().backward()
    assert losses.total().isfinite()
    assert all(value.grad.isfinite().all() for value in net.parameters() if value.requires_grad)
    box_losses = [term.item() for name, term in losses.terms.items() if name.endswith("_reg")]
    assert all((value > 0) == any(counts) for value in box_losses)


def test_a_picture_without_proposals_is_trained_on_its_objects() -> None:
    """The best proposals of the whole batch are kept, so that a picture may end with none."""
    net = detector()
    net.rpn.limits["train"] = ProposalLimits(100, 100, 1)
    few = batch()
    _, proposals = net.rpn.learn(net.backbone(few.images.pixels), [m.size for m in few.images.metas], few.targets)
    assert sorted(len(p.boxes) for p in proposals) == [0, 1]
    for counts in ((2, 1), (0, 0)):
        losses = net(batch(counts=counts))
        assert losses.total().isfinite()
        losses.total().backward()
    net.rpn.per_batch = False
    _, proposals = net.rpn.learn(net.backbone(few.images.pixels), [m.size for m in few.images.metas], few.targets)
    assert [len(p.boxes) for p in proposals] == [1, 1]


def test_no_proposals_at_all() -> None:
    net = detector(RPN__MIN_SIZE=1000)
    some = batch()
    with torch.no_grad():
        assert [len(found) for found in net.detect(net.encode_image(some.images))] == [0, 0]
    net(some).total().backward()
    assert net(batch(counts=(0, 0))).terms["loss_classifier"].item() == 0


def test_the_same_seed_makes_the_same_draw() -> None:
    net = detector(RPN__BATCH_SIZE_PER_IMAGE=16, ROI_HEADS__BATCH_SIZE_PER_IMAGE=16)

    def run(seed: int) -> float:
        torch.manual_seed(seed)
        return float(net(batch()).total().detach())

    assert run(1) == run(1)
    assert run(1) != run(2)


@BOTH
def test_half_precision_keeps_boxes_and_losses_precise(make: type) -> None:
    net = make()
    with torch.autocast("cpu", torch.bfloat16):
        losses = net(batch())
        with torch.no_grad():
            found = net.detect(net.encode_image(batch().images))
    assert {term.dtype for term in losses.terms.values()} == {torch.float32}
    assert {f.boxes.dtype for f in found} == {torch.float32}
    full = net(batch())
    torch.testing.assert_close(losses.total(), full.total(), rtol=0.1, atol=0)


# results


@BOTH
def test_results_lie_in_the_picture_on_disk(make: type) -> None:
    net = make(RETINANET__INFERENCE_TH=0.01)
    with torch.no_grad():
        found = net.detect(net.encode_image(batch().images))
    for one in found:
        height, width = one.meta.orig_size
        assert len(one) > 0
        assert one.boxes.min() >= 0
        assert one.boxes[:, 2].max() <= width - 1
        assert one.boxes[:, 3].max() <= height - 1
        assert one.boxes[:, 2].max() > width / 2
        assert set(one.labels.tolist()) <= set(range(1, 6))


@BOTH
def test_a_picture_in_a_batch_is_a_picture_alone(make: type) -> None:
    net = make()
    both = batch(sizes=((128, 160), (128, 160)))
    with torch.no_grad():
        together = net.detect(net.encode_image(both.images))
        for row, one in enumerate(together):
            images = replace(both.images, pixels=both.images.pixels[[row]], metas=both.images.metas[row : row + 1])
            (alone,) = net.detect(net.encode_image(images))
            torch.testing.assert_close(alone.boxes, one.boxes, rtol=1e-4, atol=1e-2)
            assert torch.equal(alone.labels, one.labels)


def test_sizes_that_32_does_not_divide() -> None:
    """Maps are enlarged to the size of the next one, not by a factor."""
    net, odd = detector(), batch(sizes=((100, 131),), counts=(1,))
    pixels = odd.images.pixels[:, :, :100, :131]
    one = Batch(replace(odd.images, pixels=pixels), odd.targets)
    assert net(one).total().isfinite()
    (found,) = net.detect(net.encode_image(one.images))
    assert isinstance(found, Detections)


# refusals


def test_labels_without_a_class_are_named() -> None:
    net, one = detector(), batch()
    meta = replace(one.targets[0].meta, file="dog.jpg")
    for label in (6, 0, -3):
        bad = replace(one.targets[0], labels=torch.tensor([1, label]), meta=meta)
        with pytest.raises(DataError, match=rf"dog\.jpg: label {label} .* 6 classes .* from 1 to 5"):
            net(Batch(one.images, [bad, one.targets[1]]))


def test_a_closed_list_of_classes_takes_no_text() -> None:
    net = detector()
    state = net.encode_image(batch().images)
    assert not net.reads_text
    with pytest.raises(ValueError, match="no text"):
        net.detect(state, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RPN__ANCHOR_STRIDE": (16,)}, r"MODEL\.RPN\.ANCHOR_STRIDE \(16,\) \(command line\) must have 5 values"),
        ({"ROI_BOX_HEAD__POOLER_SCALES": (0.25,)}, r"POOLER_SCALES \(0\.25,\) \(command line\) must have 4 values"),
        ({"ROI_HEADS__BBOX_REG_WEIGHTS": (1.0,)}, r"BBOX_REG_WEIGHTS \(1\.0,\) \(command line\) must have 4 values"),
        ({"RESNETS__STAGE_WITH_DCN": (True,)}, r"STAGE_WITH_DCN \(True,\) \(command line\) must have 4 values"),
        ({"BACKBONE__CONV_BODY": "R-50-C4"}, r"'R-50-C4' \(command line\) does not go with MODEL\.RETINANET_ON False"),
        ({"BACKBONE__CONV_BODY": "R-50-FPN-RETINANET"}, "use a name like R-50-FPN$"),
        ({"RETINANET_ON": True}, "use a name like R-50-FPN-RETINANET$"),
        ({"BACKBONE__CONV_BODY": "R-51-FPN"}, r"no backbone of that name\. Did you mean 'R-50-FPN'"),
        ({"RETINANET_ON": True, "RETINANET__ANCHOR_SIZES": (8,)}, r"RETINANET\.ANCHOR_SIZES \(8,\)"),
    ],
)
def test_configs_without_a_network(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_detector(config(**changes))
