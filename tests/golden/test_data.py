"""Pictures of the stored reference runs: decoded, resized, normalised and padded as they were there."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.catalog import resolve
from maskrcnn_benchmark.data.datasets.coco import CocoDataset
from maskrcnn_benchmark.data.loader import eval_loader
from maskrcnn_benchmark.data.pictures import open_picture
from maskrcnn_benchmark.data.transforms import EvalTransform, resize_size
from tests.e2e.reference import data_folder, task_file
from tests.golden.common import golden_cases, load_case, shared_path

COCO_CASES = ("odinw_*", "bccd_*", "coco_*")
STATISTICS = "input (unpadded, normalised, BGR, CHW)"


@pytest.mark.parametrize("path", golden_cases("fiber", "resize*"))
def test_resized_sizes(path: Path) -> None:
    case, _ = load_case(path)
    for row in case["cases"]:
        width, height = row["wh"]
        for rule, size in row.items():
            if rule != "wh":
                least, most = map(int, rule.split("/"))
                assert resize_size(height, width, least, most) == tuple(size), row


@pytest.mark.parametrize("path", golden_cases("e2e", *COCO_CASES))
def test_input_of_a_reference_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = load_case(path)
    monkeypatch.setenv("DATASET", str(data_folder(path, case, tmp_path)))
    cfg = load_cfg(f"configs/{case['config_file']}", task_file(case, tmp_path), list(map(str, case["opts"])))
    override = cfg.DATASETS.OVERRIDE_CATEGORY if cfg.DATASETS.USE_OVERRIDE_CATEGORY else None
    dataset = CocoDataset.from_entry(resolve(cfg, cfg.DATASETS.TEST[0], "test"), override)
    labels = {str(label): category for label, category in dataset.label_to_category.items()}
    assert labels == case["contiguous_to_json_category_id"]
    size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    transform = EvalTransform(*size, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, cfg.INPUT.TO_BGR255)
    batches = list(eval_loader(dataset, transform, case["batch_size"], mixed=case["batch_size"] > 1))
    assert [meta.image_id for batch in batches for meta in batch.metas] == case["dataset_order_image_ids"]
    stored = {image["image_id"]: image for image in case["images"]}
    for batch in batches:
        for pixels, meta in zip(batch.pixels, batch.metas, strict=True):
            image = stored[meta.image_id]
            assert list(batch.pixels.shape) == image["padded_batch_shape"]
            assert list(meta.size) == image["resized_hw"]
            assert meta.orig_size == tuple(image["original_wh"][::-1])
            same_decoder = check_picture(open_picture(meta.file), transform, image, case["library_versions"]["pillow"])
            height, width = meta.size
            check_statistics(pixels[:, :height, :width].double(), image[STATISTICS], 1e-5 if same_decoder else 2e-3)
            assert not pixels[:, height:].any()
            assert not pixels[:, :, width:].any()


def check_picture(picture: Image.Image, transform: EvalTransform, stored: dict[str, Any], pillow: str) -> bool:
    """Whether the JPEG decoder gives the reference's pixels (that of the same Pillow must); then resizing does too."""
    same = crc(picture) == stored["decoded_uint8_rgb_crc32"]
    assert same or PIL.__version__ != pillow
    assert not same or crc(transform.resize(picture)) == stored[STATISTICS]["resized_uint8_rgb_crc32"]
    return same


def crc(image: Image.Image) -> int:
    return zlib.crc32(np.asarray(image).tobytes())


def check_statistics(pixels: Tensor, stored: dict[str, Any], tolerance: float) -> None:
    """Mean and deviation of all, means of the channels, first values of the first row; pixels are (3, h, w)."""
    assert float(pixels.mean()) == pytest.approx(stored["mean"], abs=tolerance)
    assert float(pixels.std(correction=0)) == pytest.approx(stored["std"], abs=tolerance)
    assert pixels.mean(dim=(1, 2)).tolist() == pytest.approx(stored["channel_means (B,G,R)"], abs=tolerance)
    if tolerance < 1e-3:  # one pixel may differ by more where the decoder is another
        assert pixels.flatten()[:32].tolist() == pytest.approx(stored["first32"], abs=tolerance)


@pytest.mark.parametrize("folder", ["odinw/BCCD/valid", "odinw/Aquarium/Aquarium Combined.v2-raw-1024.coco/test"])
def test_a_roboflow_export_reads_like_its_cleaned_file(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    root = shared_path("data", "DATASET", folder)
    raw = CocoDataset(root, root / "_annotations.coco.json")
    assert "has no annotations and looks like the background" in caplog.text
    clean = CocoDataset(root, root / "annotations_without_background.json")
    assert raw.categories == clean.categories
    assert len(raw) == len(clean)
    for index in range(0, len(raw), 10):
        assert torch.equal(raw[index].target.boxes, clean[index].target.boxes)
        assert torch.equal(raw[index].target.labels, clean[index].target.labels)
