"""Transforms and batches of an evaluation."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_benchmark.data.datasets.coco import CocoDataset
from maskrcnn_benchmark.data.loader import EvalLoader, eval_loader
from maskrcnn_benchmark.data.transforms import EvalTransform, resize_size
from maskrcnn_benchmark.errors import DataError
from tests.unit.coco_files import coco, write

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
TRANSFORM = EvalTransform(32, 64, MEAN, STD)
SIZES = [(24, 32), (32, 24), (24, 32), (24, 33), (32, 24), (20, 60), (24, 32)]  # h, w


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((480, 640), (800, 1066)),
        ((640, 480), (1066, 800)),
        ((427, 640), (800, 1199)),
        ((400, 2000), (267, 1335)),
        ((800, 800), (800, 800)),
        ((1, 5000), (1, 5000)),
    ],
)
def test_resize_rule(size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert resize_size(*size, 800, 1333) == resized


@pytest.mark.parametrize("bgr", [True, False])
def test_normalisation_is_bit_for_bit_that_of_the_lineage(bgr: bool) -> None:
    mean, std = (MEAN, STD) if bgr else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    x = torch.from_numpy(values).permute(2, 0, 1).float().div(255)
    x = x[[2, 1, 0]] * 255 if bgr else x
    expected = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.equal(EvalTransform(20, 99, mean, std, bgr)(Image.fromarray(values)), expected)


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make(tmp_path)


def make(folder: Path, sizes: bool = True) -> CocoDataset:
    data = coco(len(SIZES))
    for row, (height, width) in zip(data["images"], SIZES, strict=True):
        row.update(height=height, width=width)
    path = write(folder, data)
    if not sizes:
        text = path.read_text()
        path.write_text(text.replace('"height"', '"h"').replace('"width"', '"w"'))
    return CocoDataset(folder, path, name="small")


def ids(loader: EvalLoader) -> list[list[Any]]:
    return [[meta.image_id for meta in batch.metas] for batch in loader]


@pytest.mark.parametrize("known", [True, False])
def test_pictures_share_a_batch_when_their_padded_shapes_are_equal(tmp_path: Path, known: bool) -> None:
    loader = eval_loader(make(tmp_path, sizes=known), TRANSFORM, batch_size=2, divisibility=16)
    assert ids(loader) == [[1, 3], [2, 5], [4, 7], [6]]
    assert len(loader) == 4
    for batch in loader:
        for meta in batch.metas:
            assert batch.pixels.shape[-2:] == tuple(-(-side // 16) * 16 for side in meta.size)


def test_without_divisibility_only_equal_sizes_share_a_batch(dataset: CocoDataset) -> None:
    assert ids(eval_loader(dataset, TRANSFORM, batch_size=3, divisibility=0)) == [[1, 3, 7], [2, 5], [4], [6]]


def test_batches_of_one_are_in_the_order_of_the_data_set(dataset: CocoDataset) -> None:
    assert ids(eval_loader(dataset, TRANSFORM, batch_size=1)) == [[i] for i in range(1, 8)]


def test_mixed_batches_are_neighbours_padded_to_the_largest(dataset: CocoDataset) -> None:
    loader = eval_loader(dataset, TRANSFORM, batch_size=3, divisibility=32, mixed=True)
    assert ids(loader) == [[1, 2, 3], [4, 5, 6], [7]]
    assert [tuple(batch.pixels.shape) for batch in loader] == [(3, 3, 64, 64), (3, 3, 64, 64), (1, 3, 32, 64)]


def test_a_picture_is_the_same_in_any_batch_and_from_any_process(dataset: CocoDataset) -> None:
    def pixels(**options: Any) -> dict[Any, torch.Tensor]:
        batches = eval_loader(dataset, TRANSFORM, **options)
        return {
            meta.image_id: row[:, : meta.size[0], : meta.size[1]]
            for batch in batches
            for row, meta in zip(batch.pixels, batch.metas, strict=True)
        }

    one = pixels(batch_size=1)
    for options in ({"batch_size": 4}, {"batch_size": 4, "mixed": True}, {"batch_size": 2, "workers": 2}):
        other = pixels(**options)
        assert list(one) == sorted(other)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_batches_and_their_order_do_not_depend_on_workers(dataset: CocoDataset) -> None:
    assert ids(eval_loader(dataset, TRANSFORM, 2, workers=2)) == ids(eval_loader(dataset, TRANSFORM, 2))


def test_a_picture_of_another_size_than_announced_gets_a_batch_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make(tmp_path)
    Image.new("RGB", (60, 20)).save(tmp_path / "3.png")
    loader = eval_loader(dataset, TRANSFORM, batch_size=4, divisibility=16)
    assert sorted(chain(*ids(loader))) == list(range(1, 8))
    assert all(len({-(-meta.size[1] // 16) for meta in batch.metas}) == 1 for batch in loader)
    assert "1 of 7 pictures do not fit their annotations, such as" in caplog.text
    assert "60x20 pixels, but 32x24 by the annotations" in caplog.text


def spoil(folder: Path, name: str, how: str) -> None:
    path = folder / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60] if how == "corrupt" else b"")


BAD = [("missing", "missing"), ("corrupt", ""), ("empty", "the file is empty")]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("how", "words"), BAD)
def test_a_bad_picture_stops_the_evaluation(tmp_path: Path, how: str, words: str, workers: int) -> None:
    dataset = make(tmp_path)
    spoil(tmp_path, "5.png", how)
    with pytest.raises(DataError, match=r"5\.png") as error:
        list(eval_loader(dataset, TRANSFORM, 2, workers=workers))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
def test_more_workers_than_processors_are_not_started(tmp_path: Path) -> None:
    assert sorted(chain(*ids(eval_loader(make(tmp_path), TRANSFORM, workers=500)))) == list(range(1, 8))


def test_missing_pictures_are_told_before_any_is_read(tmp_path: Path) -> None:
    dataset = make(tmp_path)
    (tmp_path / "2.png").unlink()
    (tmp_path / "7.png").unlink()
    with pytest.raises(DataError, match=r"small: 2 of 7 pictures are missing, such as .*2\.png"):
        eval_loader(dataset, TRANSFORM)


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize(("how", "words"), BAD)
def test_a_bad_picture_is_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, words: str, sizes: bool
) -> None:
    dataset = make(tmp_path, sizes)
    spoil(tmp_path, "5.png", how)
    loader = eval_loader(dataset, TRANSFORM, 2, on_bad_image="skip")
    for _ in range(2):
        assert sorted(chain(*ids(loader))) == [1, 2, 3, 4, 6, 7]
        ((file, reason),) = loader.skipped.values()
        assert file == str(tmp_path / "5.png")
        assert words in reason
    assert "small: 1 of 7 pictures could not be read and were left out" in caplog.text


def test_the_policy_is_one_of_two(dataset: CocoDataset) -> None:
    with pytest.raises(ValueError, match="'stop' or 'skip', got 'ignore'"):
        eval_loader(dataset, TRANSFORM, on_bad_image="ignore")
