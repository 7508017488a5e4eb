"""Classifiers as networks that give class activation maps, and boxes from maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.modeling.cam.boxes import BoxRule, boxes_of_map, suppress, whole_picture
from maskrcnn_benchmark.modeling.cam.build import build_class_maps, map_net, released_weights
from maskrcnn_benchmark.modeling.cam.fused import FusedConv
from maskrcnn_benchmark.modeling.cam.maps import at_scales
from maskrcnn_benchmark.modeling.cam.winograd import WinogradConv, suits

SIZE = (90, 120)  # h, w


def noise(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[0] // 10, size[1] // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def resnet(block: type = Bottleneck, classes: int = 5) -> ResNet:
    torch.manual_seed(1)
    return ResNet(block, [1, 1, 1, 1], num_classes=classes).eval()


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "mnasnet0_5", "densenet121", "efficientnet_b0", "swin_t"]
)
def test_the_mean_of_a_map_is_what_the_classifier_says(name: str) -> None:
    torch.manual_seed(0)
    net = models.get_model(name, weights=None, num_classes=6).eval()
    pixels, labels = torch.randn(2, 3, 64, 96), torch.tensor([2, 4])
    with torch.no_grad():
        expected = (net(pixels) + net(pixels.flip(-1)))[torch.arange(2), labels] / 2
        maps = map_net(net, name)
        assert maps.classes == 6
        np.testing.assert_allclose(maps.raw(pixels, labels).mean((1, 2)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/mobilenetv2_100", "timm/regnety_002"])
def test_classifiers_of_timm(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(name.removeprefix("timm/"), num_classes=3).eval()
    weights = save_weights(net.state_dict(), tmp_path / "net.safetensors")
    maps, _ = build_class_maps(name, str(weights))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = (net(pixels) + net(pixels.flip(-1)))[0, 1] / 2
        assert float(maps.raw(pixels, torch.tensor([1])).mean()) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_convolutions_are_fused_on_a_cpu(block: type) -> None:
    maps = map_net(resnet(block), "narrow")
    parts = list(maps.features.modules())
    kinds = {type(part) for part in parts}
    assert nn.BatchNorm2d not in kinds
    if torch.backends.mkldnn.is_available():
        fused = [part for part in parts if isinstance(part, (FusedConv, WinogradConv))]
        assert len(fused) == sum(isinstance(part, nn.Conv2d) for part in resnet(block).modules())
        written_over = sum(part.into for part in fused if isinstance(part, FusedConv))
        assert written_over == (4 if block is Bottleneck else 1)  # the first shortcut is a maximum


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@pytest.mark.parametrize("size", [(4, 8), (9, 13), (1, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_fewer_products_give_the_same_convolution(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(256, 320, 3, padding=1, bias=bias), torch.randn(2, 256, *size)
    other = torch.randn(2, 320, *size)
    assert suits(conv)
    assert not suits(nn.Conv2d(256, 320, 3, padding=1, stride=2))
    with torch.no_grad():
        torch.testing.assert_close(WinogradConv(conv)(x), conv(x).relu(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(WinogradConv(conv)(x, other), (conv(x) + other).relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_wide_convolutions_are_done_with_fewer_products_in_float32() -> None:
    net = models.resnet18(num_classes=3).eval()
    for dtype, wide in ((torch.float32, 6), (torch.bfloat16, 0)):
        maps = map_net(net, "resnet18", dtype=dtype)
        assert sum(isinstance(part, WinogradConv) for part in maps.features.modules()) == wide


def test_a_map_that_is_used_again_is_not_written_over() -> None:
    """The sum of a shortcut goes where the shortcut is, where nothing else reads that."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
            self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = torch.relu(self.first(x))
            return self.fc(self.pool(torch.relu(self.second(first) + first) * first).flatten(1))

    torch.manual_seed(0)
    net, labels = Twice().eval(), torch.tensor([0, 1])
    maps = map_net(net, "twice")
    for size in ((32, 48), (64, 32)):
        pixels = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = (net(pixels) + net(pixels.flip(-1)))[torch.arange(2), labels] / 2
            np.testing.assert_allclose(maps.raw(pixels, labels).mean((1, 2)), expected, rtol=1e-3, atol=1e-5)


def test_networks_without_a_map_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'vgg11'.*before its last layer comes ReLU"):
        map_net(models.vgg11(num_classes=4).eval(), "vgg11")
    with pytest.raises(ConfigError, match=r"'convnext_tiny'.*comes permute"):
        map_net(models.convnext_tiny(num_classes=4).eval(), "convnext_tiny")
    with pytest.raises(ConfigError, match="ends with AdaptiveAvgPool2d"):
        map_net(models.squeezenet1_1(num_classes=4).eval(), "squeezenet1_1")


def test_weights_give_the_number_of_classes(tmp_path: Path) -> None:
    net = models.resnet18(num_classes=7)
    path = tmp_path / "old.pth"
    old = {f"module.{name}": value for name, value in net.state_dict().items() if "num_batches" not in name}
    torch.save({"model": old}, path)
    maps, digest = build_class_maps("resnet18", str(path))
    assert (maps.classes, len(digest)) == (7, 64)


def test_wrong_classifiers_and_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'resnet10'.*closest: resnet101"):
        build_class_maps("resnet10", "x.pth")
    with pytest.raises(ConfigError, match=r"of timm is called 'resnet5O'"):
        build_class_maps("timm/resnet5O", "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth"):
        build_class_maps("resnet18", str(tmp_path / "x.pth"))
    state = models.resnet18(num_classes=3).state_dict()
    path = save_weights(state, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="does not fit"):
        build_class_maps("resnet34", str(path))
    with pytest.raises(WeightsError, match=r"no classifier\.weight, the last layer of densenet121"):
        build_class_maps("densenet121", str(path))
    state["layer1.0.conv1.weight"][0] = torch.nan
    path = save_weights(state, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight holds numbers that are not finite"):
        build_class_maps("resnet18", str(path))


def test_released_weights_have_a_name() -> None:
    assert released_weights("resnet101") == "resnet101-63fe2227.pth"
    with pytest.raises(ConfigError, match="--weight"):
        released_weights("timm/resnet50")


def test_a_batch_gives_what_its_pictures_give_alone() -> None:
    maps = map_net(resnet(), "narrow")
    pictures, labels = [noise(seed) for seed in range(3)], torch.tensor([0, 3, 1])
    together = maps(at_scales(pictures, (64, 128)), labels)
    for number, picture in enumerate(pictures):
        alone = maps(at_scales([picture], (64, 128)), labels[number : number + 1])
        np.testing.assert_allclose(together.values[number], alone.values[0], atol=1e-4)
    assert together.stride == 32
    assert not bool(together.flat.any())


def test_a_mirrored_picture_has_the_mirrored_map() -> None:
    maps = map_net(resnet(), "narrow")
    picture = noise(size=(96, 128))
    pair = [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    found = maps(at_scales(pair, (96, 192)), torch.tensor([2, 2])).values
    np.testing.assert_allclose(found[1], found[0].flip(-1), atol=1e-3)


def test_a_map_without_contrast_is_told_and_is_no_nan() -> None:
    net = resnet()
    nn.init.zeros_(net.fc.weight)
    found = map_net(net, "narrow")(at_scales([noise()], (32, 64)), torch.tensor([1]))
    assert found.flat.tolist() == [True]
    assert bool((found.values == 0).all())


def test_half_precision_is_near() -> None:
    pictures, labels = [noise()], torch.tensor([1])
    exact = map_net(resnet(), "narrow")(at_scales(pictures, (64, 128)), labels)
    half = map_net(resnet(), "narrow", dtype=torch.bfloat16)(at_scales(pictures, (64, 128)), labels)
    assert float((half.values - exact.values).abs().max()) < 0.1


def test_boxes_of_one_rectangle() -> None:
    """A region of equal values has the box around it."""
    values = np.zeros((18, 24), np.float32)
    values[4:9, 6:16] = 1
    boxes, scores = boxes_of_map(values, (576, 768), 32.0, BoxRule((0.5,)))
    np.testing.assert_allclose(boxes, [[192.16, 128.32, 511.84, 287.68]], atol=2)  # (n^2 - 1) / 12 is a little less
    assert scores.tolist() == [1]


def test_regions_that_touch_at_a_corner_are_two() -> None:
    values = np.zeros((6, 6), np.float32)
    values[1, 1] = values[2, 2] = 1
    boxes, scores = boxes_of_map(values, (60, 60), 10.0, BoxRule((0.5,)))
    assert boxes.tolist() == [[10, 10, 20, 20], [20, 20, 30, 30]]
    assert scores.tolist() == [1, 1]


def test_small_regions_and_the_fifth_are_left_out() -> None:
    values = np.zeros((20, 20), np.float32)
    for place in range(5):
        values[4 * place, :4] = 1
    values[18:19, 10:11] = 1
    assert len(boxes_of_map(values, (200, 200), 10.0, BoxRule((0.5,)))[0]) == 4
    values[4:] = 0
    values[18, 10:12] = 1  # half as large as the largest counts, less does not
    assert len(boxes_of_map(values, (200, 200), 10.0, BoxRule((0.5,)))[0]) == 2
    values[18, 11] = 0
    assert len(boxes_of_map(values, (200, 200), 10.0, BoxRule((0.5,)))[0]) == 1


def test_a_map_below_the_thresholds_and_one_beyond_the_picture() -> None:
    size = (50, 80)
    whole = whole_picture(size)
    assert whole[0].tolist() == [[0, 0, 79, 49]]
    assert boxes_of_map(np.full((3, 3), 0.1, np.float32), size, 20.0)[0].tolist() == whole[0].tolist()
    outside = np.zeros((3, 6), np.float32)
    outside[:, 5] = 1
    boxes, scores = boxes_of_map(outside, size, 20.0)  # the map has 120 pixels, the picture 80
    assert bool(np.isfinite(boxes).all())
    assert bool(np.isfinite(scores).all())


def test_suppression_keeps_the_order_and_the_pictures_apart() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 99, 99], [0, 0, 98, 98], [0, 0, 99, 99]], np.float32)
    scores = np.array([0.1, 1.0, 0.9, 0.5], np.float32)
    assert suppress(np.array([0, 3, 4]), boxes, scores, 0.8).tolist() == [0, 1, 3]
    assert suppress(np.array([0, 0, 4]), boxes, scores, 0.8).tolist() == [0, 1]
