"""DAP's data: two forms of ImageNet read as the original reads them; pictures and boxes on their way to a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskrcnn_benchmark.data.box_files import read_boxes
from maskrcnn_benchmark.data.datasets.imagenet_binary import ImageNetBinary
from maskrcnn_benchmark.data.datasets.imagenet_tsv import ImageNetSplits
from maskrcnn_benchmark.data.sample import PictureSet
from maskrcnn_benchmark.data.transforms import EvalTransform, Normalise, resize_size
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta
from maskrcnn_benchmark.structures.boxes import flip_left_right, flip_top_bottom, rescale
from tests.golden.common import fill, golden_cases, load_case

SIZE = (240, 320)  # h, w of the picture of the stored boxes
RGB = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False)  # mean, deviation, blue first
BGR = ((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), True)


def check(dataset: PictureSet, case: dict[str, Any], stored: dict[str, Tensor], boxes: str, labels: str) -> None:
    """Pictures, boxes and labels of every row; labels that are stored from 0 become one more."""
    assert len(dataset) == len(case["images"])
    for index, row in enumerate(case["images"]):
        sample = dataset[index]
        assert sample.target is not None
        assert torch.equal(sample.target.boxes, stored[f"{boxes}_{index}"])
        assert sample.target.labels.tolist() == (stored[f"{labels}_{index}"] + ("stored" in labels)).tolist()
        assert sample.target.labels.dtype == torch.int64
        assert dataset.size(index) == (row["h"], row["w"]) == sample.meta.orig_size
        assert sample.meta.image_id == row["name"]
        assert (np.asarray(sample.image) == fill.image(*row["fill.image"])).all()
        assert not sample.note


@pytest.mark.parametrize("path", golden_cases("dap", "dap_data*"))
def test_imagenet_1k(path: Path) -> None:
    case, stored = load_case(path)
    folder = path.with_suffix("") / "imagenet2012Full"
    dataset = ImageNetBinary(folder, "train", boxes="train.cam3nms8xyxy.npz")
    check(dataset, case, stored, "in1k_boxes", "in1k_labels")
    plain = ImageNetBinary(folder, "train")
    for index, row in enumerate(case["images"]):
        assert plain.label(index) == row["label0"] + 1
        target = plain[index].target
        assert target is not None
        assert target.boxes.tolist() == [[0, 0, row["w"], row["h"]]]
        assert target.labels.tolist() == [row["label0"] + 1]


@pytest.mark.parametrize("path", golden_cases("dap", "dap_data*"))
def test_imagenet_22k(path: Path) -> None:
    case, stored = load_case(path)
    folder = path.with_suffix("") / "TaxImageNet22kSplit64"
    check(ImageNetSplits(folder), case, stored, "tsv_boxes", "tsv_labels")
    dataset = ImageNetSplits(folder, boxes="cam1nms8xyxy")
    check(dataset, case, stored, "tsvpth_boxes", "tsvpth_labels_as_stored")


@pytest.mark.parametrize("path", golden_cases("dap", "dap_data*"))
def test_files_of_boxes(path: Path) -> None:
    case, stored = load_case(path)
    folder = path.with_suffix("")
    forms = {
        "in1k": folder / "imagenet2012Full" / "train.cam3nms8xyxy.npz",
        "tsvpth": folder / "TaxImageNet22kSplit64" / "trainval_0_64.cam1nms8xyxy.pth",
    }
    for form, file in forms.items():
        table = read_boxes(file)
        for index in range(len(case["images"])):
            assert torch.equal(torch.from_numpy(table.boxes[table.rows(index)]), stored[f"{form}_boxes_{index}"])


@pytest.mark.parametrize("path", golden_cases("dap", "parts*"))
def test_boxes_move_with_their_picture(path: Path) -> None:
    _, stored = load_case(path)
    boxes = stored["boxes_a"]
    torch.testing.assert_close(flip_left_right(boxes, SIZE[1], plus_one=True), stored["a_flip_lr"], rtol=1e-6, atol=0)
    below = stored["a_flip_tb"] - torch.tensor([0.0, 1, 0, 1])  # the original turns rows over one pixel too low
    torch.testing.assert_close(flip_top_bottom(boxes, SIZE[0], plus_one=True), below, rtol=1e-6, atol=1e-4)
    resized = [name for name in stored if name.startswith("a_resize_")]
    assert resized
    for name in resized:
        width, height = map(int, name.rpartition("_")[2].split("x"))
        torch.testing.assert_close(rescale(boxes, SIZE, (height, width)), stored[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", golden_cases("dap", "parts*"))
def test_resized_sizes(path: Path) -> None:
    case, _ = load_case(path)
    for rule, rows in case["resize (w,h)->(w,h)"].items():
        _, least, _, most = rule.split()
        for (width, height), (new_width, new_height) in rows:
            assert resize_size(height, width, int(least), int(most)) == (new_height, new_width), (rule, width, height)


@pytest.mark.parametrize("path", golden_cases("dap", "parts*"))
def test_pixels(path: Path) -> None:
    case, stored = load_case(path)
    limits = case["image"]["resize"].replace(",", "").split()
    picture = Image.fromarray(fill.image(*case["image"]["fill.image"]))
    for name, colours in (("image_bgr255", BGR), ("image_rgb", RGB)):
        transform = EvalTransform(int(limits[1]), int(limits[3]), *colours)
        resized = np.array(transform.resize(picture))
        assert (resized == stored["image_resized_uint8"].numpy()).all()
        torch.testing.assert_close(transform(picture), stored[name], rtol=1e-5, atol=1e-6)
        size = resized.shape[:2]
        raw = ImageBatch(torch.from_numpy(resized).permute(2, 0, 1)[None], (ImageMeta(1, size, size),))
        torch.testing.assert_close(Normalise(*colours)(raw).pixels[0], stored[name], rtol=1e-5, atol=1e-6)
