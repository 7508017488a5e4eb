"""Parts of Faster R-CNN and RetinaNet: ResNet, frozen normalisation, pyramid, matching, draws, the large classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskrcnn_benchmark.layers.deform import DeformConvBlock
from maskrcnn_benchmark.layers.norm import FrozenBatchNorm2d
from maskrcnn_benchmark.modeling.assign.matcher import BELOW, BETWEEN, balanced_sample, match
from maskrcnn_benchmark.modeling.backbone.fpn import FPN, Top
from maskrcnn_benchmark.modeling.backbone.resnet import ResNet
from maskrcnn_benchmark.modeling.criterion.rcnn import IGNORED, RpnCriterion, Sampling, labels_of
from maskrcnn_benchmark.modeling.heads import roi_box
from maskrcnn_benchmark.modeling.heads.anchors import inside
from maskrcnn_benchmark.modeling.heads.roi_box import LOGITS_AT_ONCE, BoxPredictor, Pooler
from maskrcnn_benchmark.modeling.heads.rpn import Proposals, best_of_batch, best_of_picture
from maskrcnn_benchmark.modeling.heads.select import select
from maskrcnn_benchmark.structures import ImageMeta, Target

META = ImageMeta(1, (100, 100), (100, 100))


# ResNet


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torchvision.models.resnet50, {}),
        (torchvision.models.resnext50_32x4d, {"groups": 32, "width": 4}),
    ],
)
def test_resnet_is_that_of_torchvision(make: Callable[..., nn.Module], options: dict[str, int]) -> None:
    theirs = make(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    generator = torch.Generator().manual_seed(0)
    for name, value in theirs.named_buffers():
        value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + (0.5 if name.endswith("var") else 0))
    ours = ResNet(stride_in_1x1=False, eps=1e-5, freeze_at=0, **options)
    ours.load_state_dict({name: v for name, v in theirs.state_dict().items() if not name.startswith("fc.")})
    x = torch.randn(1, 3, 64, 96, generator=generator)
    names = {f"layer{i}": f"layer{i}" for i in range(1, 5)}
    with torch.no_grad():
        expected = torchvision.models._utils.IntermediateLayerGetter(theirs, names)(x)
        maps = ours(x)
    for mine, wanted in zip(maps, expected.values(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))
    assert [m.shape[1] for m in maps] == ours.channels == [256, 512, 1024, 2048]
    assert [64 // m.shape[2] for m in maps] == [4, 8, 16, 32]


def test_stride_is_in_the_first_convolution_or_in_the_3x3_one() -> None:
    for in_1x1 in (True, False):
        block = ResNet((1, 1, 1, 1), 8, 8, 32, stride_in_1x1=in_1x1).layer2[0]
        assert (block.conv1.stride[0] == 2, block.conv2.stride[0] == 2) == (in_1x1, not in_1x1)
        assert block.downsample[0].stride == (2, 2)


@pytest.mark.parametrize(("freeze_at", "count"), [(-1, 0), (0, 0), (1, 1), (2, 2), (5, 5)])
def test_what_is_frozen(freeze_at: int, count: int) -> None:
    net = ResNet((1, 1, 1, 1), 8, 8, 32, freeze_at=freeze_at)
    parts = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    frozen = [name for name in parts if not any(p.requires_grad for p in net.get_submodule(name).parameters())]
    assert frozen == parts[:count]


def test_frozen_normalisation_is_computed_in_float32() -> None:
    norm = FrozenBatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([300.25, 0.0]))
    norm.running_var.copy_(torch.tensor([1.0, 4.0]))
    x = torch.tensor([301.0, 2.0]).view(1, 2, 1, 1)
    assert norm(x).flatten().tolist() == [0.75, 1.0]
    half = norm(x.half())
    assert half.dtype == torch.float16
    assert half.flatten().tolist() == [0.75, 1.0]  # 300.25 is no half-precision number
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).flatten().tolist() == [0.75, 1.0]
    assert norm.running_mean.dtype == torch.float32
    assert not list(norm.parameters())
    assert FrozenBatchNorm2d(1, eps=3.0)(torch.ones(1, 1, 1, 1)).item() == 0.5


@pytest.mark.parametrize(("modulated", "groups", "channels"), [(True, 1, 27), (False, 1, 18), (True, 2, 54)])
def test_a_new_deformable_convolution_starts_as_a_plain_one(modulated: bool, groups: int, channels: int) -> None:
    layer = DeformConvBlock(4, 6, stride=2, deformable_groups=groups, modulated=modulated)
    assert layer.offset.out_channels == channels
    nn.init.zeros_(layer.offset.weight)
    x = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    plain = F.conv2d(x, layer.conv.weight, stride=2, padding=1)
    torch.testing.assert_close(layer(x), plain * (0.5 if modulated else 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("top", "count", "names"), [("P6P7", 5, [8, 8]), ("P6P7 of C5", 5, [32, 8]), ("max pool", 4, [])]
)
def test_tops_of_the_pyramid(top: Top, count: int, names: list[int]) -> None:
    fpn = FPN((8, 16, 32), 8, top=top)
    maps = [torch.randn(1, c, s, s + 1) for c, s in ((8, 13), (16, 7), (32, 4))]  # not halves of each other
    levels = fpn(maps)
    assert [tuple(x.shape[2:]) for x in levels] == [(13, 14), (7, 8), (4, 5), (2, 3), (1, 2)][:count]
    assert [p.shape[1] for name, p in fpn.top_blocks.named_parameters() if name.endswith("weight")] == names
    if top == "max pool":
        assert torch.equal(levels[-1], levels[-2][..., ::2, ::2])


# matching and draws


@pytest.mark.parametrize(
    ("overlap", "low_quality", "expected"),
    [
        ([[0.9, 0.5, 0.1], [0.8, 0.6, 0.2]], False, [0, BETWEEN, BELOW]),
        ([[0.7, 0.3, 0.29]], False, [0, BETWEEN, BELOW]),  # limits belong to the better side
        ([[0.2, 0.1, 0.2]], True, [0, BELOW, 0]),  # the best boxes of an object, both of them
        ([[0.9, 0.5, 0.0], [0.8, 0.4, 0.0]], True, [0, BETWEEN, BELOW]),  # rescued, but for the other object
        ([[0.8], [0.8]], False, [0]),
    ],
)
def test_match(overlap: list[list[float]], low_quality: bool, expected: list[int]) -> None:
    assert match(torch.tensor(overlap), 0.7, 0.3, low_quality).tolist() == expected


def test_match_without_objects_or_boxes() -> None:
    assert match(torch.zeros(0, 3), 0.7, 0.3, True).tolist() == [BELOW] * 3
    assert match(torch.zeros(2, 0), 0.7, 0.3, True).tolist() == []


def test_labels_of_matches() -> None:
    target = Target(torch.zeros(2, 4), torch.tensor([7, 9]), META)
    assert labels_of(torch.tensor([1, BELOW, BETWEEN, 0]), target).tolist() == [9, 0, IGNORED, 7]
    assert labels_of(torch.tensor([BELOW]), Target(torch.zeros(0, 4), target.labels[:0], META)).tolist() == [0]


def test_a_draw_is_balanced_and_that_of_the_permutations() -> None:
    labels = torch.tensor([0, 3, -1, 0, 1, 2, 0, 0, -1, 1])
    torch.manual_seed(5)
    positive, negative = balanced_sample(labels, 4, 0.5)
    torch.manual_seed(5)
    expected = torch.tensor([1, 4, 5, 9])[torch.randperm(4)[:2]]
    assert positive.tolist() == sorted(expected.tolist())
    assert negative.tolist() == sorted(torch.tensor([0, 3, 6, 7])[torch.randperm(4)[:2]].tolist())
    positive, negative = balanced_sample(labels, 100, 0.5)
    assert (positive.tolist(), negative.tolist()) == ([1, 4, 5, 9], [0, 3, 6, 7])
    assert [len(x) for x in balanced_sample(labels[:1], 4, 0.5)] == [0, 1]


def test_anchors_beyond_the_picture_are_not_trained() -> None:
    anchors = torch.tensor([[0.0, 0, 49, 49], [-1, 0, 49, 49], [0, 0, 100, 49], [0, 0, 49, 60]])
    assert inside(anchors, (60, 100), 0).tolist() == [True, False, False, False]
    assert inside(anchors, (60, 100), 1).tolist() == [True, True, True, True]
    assert inside(anchors, (60, 100), -1).all()
    criterion = RpnCriterion(Sampling(0.7, 0.3, 256, 0.5))
    target = Target(torch.tensor([[-1.0, 0, 49, 49]]), torch.tensor([4]), META)
    labels, _ = criterion.label(anchors, (60, 100), target)
    assert labels.tolist() == [1, IGNORED, IGNORED, IGNORED]  # the best one is not inside, and stays out


# proposals and detections


def test_the_best_of_a_picture_and_of_a_batch() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.4, 0.4, 0.3]])
    first, second = (Proposals(torch.arange(3.0).view(3, 1).expand(3, 4), row) for row in scores)
    assert best_of_picture(first, 2).boxes[:, 0].tolist() == [1, 2]
    kept = best_of_batch([first, second], 3)
    assert [p.boxes[:, 0].tolist() for p in kept] == [[1, 2], [0]]  # of equal ones the first
    assert [len(p.scores) for p in best_of_batch([first, second], 100)] == [3, 3]


def test_selection_keeps_the_order_and_ties_with_the_last() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9], [0, 0, 9, 10], [40, 0, 49, 9]])
    scores, labels = torch.tensor([0.5, 0.4, 0.6, 0.4]), torch.tensor([1, 1, 1, 2])
    assert select(boxes, scores, labels, 0.5, 0)[1].tolist() == pytest.approx([0.4, 0.6, 0.4])
    assert select(boxes, scores, labels, 0.5, 1)[1].tolist() == pytest.approx([0.6])
    assert len(select(boxes, scores, labels, 0.5, 2)[1]) == 3
    assert len(select(boxes, scores, labels, 0, 0)[1]) == 4


def test_levels_and_pooling_of_nothing() -> None:
    pooler = Pooler(7, (0.25, 0.125, 0.0625, 0.03125), 2)
    sides = [0.0, 111, 112, 223, 224, 447, 448, 5000, -9]  # counting both borders, but for the last ones
    boxes = torch.tensor([[10.0, 10, 9 + side, 9 + side] for side in sides])
    assert pooler.levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0]
    maps = [torch.randn(2, 4, 64 // 2**i, 64 // 2**i, requires_grad=True) for i in range(4)]
    out = pooler(maps, [boxes[:0], boxes[:0]])
    assert out.shape == (0, 4, 7, 7)
    out.sum().backward()
    some = pooler(maps, [boxes[:0], boxes[1:3]])
    torch.testing.assert_close(some[:1], torchvision.ops.roi_align(maps[0][1:], [boxes[1:2]], 7, 0.25, 2))


# the second stage's outputs


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operator makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return out


def test_22k_classes_are_trained_and_found_in_bounded_memory() -> None:
    classes, proposals = 21842, 1024
    predictor = BoxPredictor(4, classes)
    x = torch.randn(proposals, 4, requires_grad=True)
    labels = torch.randint(0, classes, (proposals,))
    assert proposals * classes > LOGITS_AT_ONCE
    with Largest() as training:
        deltas = predictor.deltas_of(x[:256], labels[:256].clamp(min=1))
        (predictor.class_loss(x, labels) + deltas.abs().sum()).backward()
    assert training.numbers <= LOGITS_AT_ONCE
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (x, *predictor.parameters()))
    with Largest() as detection:
        predictor.candidates(x[:300], 0.05)
    assert detection.numbers <= LOGITS_AT_ONCE


@pytest.mark.parametrize("agnostic", [False, True])
def test_parts_give_the_numbers_of_the_whole(monkeypatch: pytest.MonkeyPatch, agnostic: bool) -> None:
    torch.manual_seed(0)
    predictor = BoxPredictor(8, 5, agnostic)
    nn.init.normal_(predictor.cls_score.weight)
    nn.init.normal_(predictor.bbox_pred.bias)
    x, labels = torch.randn(23, 8, requires_grad=True), torch.randint(0, 5, (23,))

    def run() -> tuple[Tensor, ...]:
        predictor.zero_grad()
        x.grad = None
        loss = predictor.class_loss(x, labels)
        loss.backward()
        assert x.grad is not None
        found = predictor.candidates(x, 0.1)
        grads = (x.grad, predictor.cls_score.weight.grad)
        return (loss.detach(), *grads, found.rows, found.labels, found.scores, found.deltas)

    whole = run()
    monkeypatch.setattr(roi_box, "LOGITS_AT_ONCE", 60)
    for mine, wanted in zip(run(), whole, strict=True):
        torch.testing.assert_close(mine, wanted)
    assert whole[4].tolist() == sorted(whole[4].tolist())

    logits, deltas = predictor(x)
    torch.testing.assert_close(whole[0], F.cross_entropy(logits, labels, reduction="sum"))
    prob = logits.softmax(1)[whole[3], whole[4]]
    torch.testing.assert_close(whole[5], prob)
    columns = torch.ones_like(whole[4]) if agnostic else whole[4]
    torch.testing.assert_close(whole[6], deltas.unflatten(1, (-1, 4))[whole[3], columns])
    objects = labels > 0
    columns = torch.ones_like(labels) if agnostic else labels
    expected = deltas.unflatten(1, (-1, 4))[torch.arange(23), columns][objects]
    torch.testing.assert_close(predictor.deltas_of(x[objects], labels[objects]), expected)
