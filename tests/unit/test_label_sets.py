"""Training data of DECOLA and its family: names without boxes, pseudo-annotations, samplers, tar files."""

from __future__ import annotations

import gzip
import io
import json
import logging
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.datasets.labelled import LabelledPictures, LabelOptions
from maskrcnn_benchmark.data.datasets.tar import TarPictures
from maskrcnn_benchmark.data.draws import rng_for
from maskrcnn_benchmark.data.label_transforms import Crop, Flip, Resize, ResizeShortestEdge, apply
from maskrcnn_benchmark.data.lvis_files import counted, read_lvis, without_rare
from maskrcnn_benchmark.data.set_samplers import MultiSetSampler, RepeatFactorSampler, repeat_factors, times_before
from maskrcnn_benchmark.data.training import TrainingData, build_training_data
from maskrcnn_benchmark.data.transforms import Normalise, rounded_size
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target

CATEGORIES = [{"id": 7, "name": "hat"}, {"id": 2, "name": "cat"}, {"id": 4, "name": "dog"}]
COUNT = 6


def write(folder: Path, **changes: Any) -> Path:
    """Six pictures of alternating shape with a box each, and names of what else is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, COUNT + 1):
        size = (60, 40) if number % 2 else (40, 60)
        Image.new("RGB", size, (number * 30, 90, 10)).save(folder / f"{number}.png")
        row = {"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]}
        images.append({**row, "pos_category_ids": [7, 2] if number % 2 else [4]})
        box = {"bbox": [5, 5, 20, 10], "segmentation": [[5, 5, 25, 5, 25, 15, 5, 15]], "score": number / 10}
        annotations.append({"id": number, "image_id": number, "category_id": 2 if number % 2 else 7, **box})
    tree = {"images": images, "annotations": annotations, "categories": CATEGORIES, **changes}
    path = folder / "labels.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def data(tmp_path: Path, **keys: Any) -> TrainingData:
    """Two sets in the files of ``tmp_path``: one of boxes, one of names only."""
    entry = {"kind": "imagenet_lvis", "ann_file": str(tmp_path / "labels.json"), "img_dir": str(tmp_path)}
    own = {
        "MODEL.META_ARCHITECTURE": "DeformableDETR",
        "MODEL.DEFORMABLE_DETR.NUM_CLASSES": 3,
        "DATASETS.REGISTER.boxes.kind": "lvis",
        "DATASETS.REGISTER.names.kind": "imagenet_lvis",
        **{
            f"DATASETS.REGISTER.{name}.{key}": entry[key]
            for name in ("boxes", "names")
            for key in entry
            if key != "kind"
        },
        "DATASETS.TRAIN": "('boxes', 'names')",
        "DATASETS.WITH_IMAGE_LABELS": True,
        "DATALOADER.SAMPLER": "multi_dataset",
        "DATALOADER.DATASET_ANN": "('box', 'image')",
        "DATALOADER.USE_DIFF_BS_SIZE": True,
        "DATALOADER.DATASET_BS": "(2, 3)",
        "DATALOADER.DATASET_RATIO": "(1, 2)",
        "DATALOADER.DATASET_MIN_SIZES": "((30, 40), (20, 24))",
        "DATALOADER.DATASET_MAX_SIZES": "(60, 40)",
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.AUG": "ResizeShortestEdge",
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    return build_training_data(load_cfg(opts=[word for pair in own.items() for word in pair]), None)


def test_labels_are_ranks_of_category_ids(tmp_path: Path) -> None:
    pictures = LabelledPictures(tmp_path, write(tmp_path))
    assert pictures.names == {1: "cat", 2: "dog", 3: "hat"}
    target = pictures[0].target
    assert target is not None
    assert target.labels.tolist() == [1]
    assert target.boxes.tolist() == [[5, 5, 25, 15]]  # to the end of the last pixel
    assert target.image_labels is None


def test_names_take_the_place_of_boxes(tmp_path: Path) -> None:
    pictures = LabelledPictures(tmp_path, write(tmp_path), options=LabelOptions(image_labels=True))
    target = pictures[0].target
    assert target is not None
    assert target.image_labels is not None
    assert (len(target), target.image_labels.tolist()) == (0, [1, 3])
    assert pictures.classes_of(1).tolist() == [2]


def test_names_outside_of_the_vocabulary_are_refused(tmp_path: Path) -> None:
    images = json.loads(write(tmp_path).read_text())["images"]
    images[2]["pos_category_ids"] = [2, 99]
    with pytest.raises(DataError, match=r"images\[2\] \(id 3\): pos_category_ids has 99, which is not in categories"):
        LabelledPictures(tmp_path, write(tmp_path, images=images))


def test_boxes_need_their_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    options = LabelOptions(min_score=0.4, keep_empty=False)
    assert len(LabelledPictures(tmp_path, write(tmp_path), options=options)) == 3
    assert "3 of 6 boxes have a score below 0.4: left out" in caplog.text
    with pytest.raises(DataError, match="none of its 6 pictures has objects"):
        LabelledPictures(tmp_path, write(tmp_path), options=LabelOptions(min_score=2, keep_empty=False))


def test_batches_are_of_one_set_and_of_its_size(tmp_path: Path) -> None:
    write(tmp_path)
    made = data(tmp_path)
    batches = list(made.loader(0))
    kinds = {(len(batch.targets), batch.targets[0].image_labels is not None) for batch in batches}
    assert kinds == {(2, False), (3, True)}
    for batch in batches:
        assert len({target.image_labels is None for target in batch.targets}) == 1
        assert max(batch.images.pixels.shape[-2:]) <= (40 if batch.targets[0].image_labels is not None else 60)
    again = list(made.loader(0, start=1))
    assert torch.equal(again[0].images.pixels, batches[1].images.pixels)  # as after an interruption
    assert "of 2 or 3 in an epoch, of one set each" in str(made.plan)


def test_unreadable_pictures_of_names_are_counted_and_others_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match="missing picture"):
        data(tmp_path)
    entry = "DATASETS.REGISTER.boxes.kind"
    made = data(tmp_path, **{entry: "imagenet_lvis"})
    assert "names: missing picture " in caplog.text
    for _ in made.loader(0):
        pass
    assert "names: unreadable pictures, for which others were taken: " in caplog.text


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_a_set_of_any_kind_is_forgiven_where_only_its_names_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    boxes, names = write(tmp_path / "boxes"), write(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "3.png").unlink()
    files = {"boxes__ann_file": boxes, "boxes__img_dir": boxes.parent, "names__ann_file": names, "names__kind": kind}
    keys = {f"DATASETS__REGISTER__{key}": str(value) for key, value in files.items()}
    made = data(tmp_path, **keys)
    assert "names: missing picture " in caplog.text
    targets = [target for epoch in range(3) for batch in made.loader(epoch) for target in batch.targets]
    used = {Path(target.meta.file).name for target in targets if target.image_labels is not None}
    assert used == {"1.png", "4.png", "5.png", "6.png"}
    assert "names: unreadable pictures, for which others were taken: " in caplog.text
    with pytest.raises(DataError, match="names: missing picture"):  # its boxes are needed
        data(tmp_path, **keys, DATALOADER__DATASET_ANN="('box', 'box')")


def test_pictures_of_coco_lie_in_its_folder_whatever_their_address(tmp_path: Path) -> None:
    path = write(tmp_path)
    tree = json.loads(path.read_text())
    for row in tree["images"]:
        row["coco_url"] = f"http://images.cocodataset.org/train2017/{row['file_name']}"
    path.write_text(json.dumps(tree))
    keys = {f"DATASETS__REGISTER__{name}__kind": "coco" for name in ("boxes", "names")}
    assert len(list(data(tmp_path, **keys).loader(0))) > 0
    with pytest.raises(DataError, match=r"pictures are missing, such as .*train2017"):
        data(tmp_path, **{**keys, "DATASETS__REGISTER__boxes__kind": "lvis"})


def test_names_need_batches_of_one_set(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match="use multi_dataset"):
        data(tmp_path, DATALOADER__SAMPLER="shared")
    with pytest.raises(ConfigError, match=r"DATALOADER.DATASET_RATIO .* must have 2 values"):
        data(tmp_path, DATALOADER__DATASET_RATIO="(1, 2, 3)")
    with pytest.raises(ConfigError, match="DATASET_ANN 'word'"):
        data(tmp_path, DATALOADER__DATASET_ANN="('box', 'word')")


def test_rare_classes_come_more_often() -> None:
    classes = [np.array([1, 1, 2]), *[np.array([1])] * 99]
    factors = repeat_factors(classes, 0.04)
    assert factors[0] == pytest.approx(2)
    assert factors[1:].tolist() == [1] * 99
    sampler = RepeatFactorSampler(np.zeros(100, dtype=bool), 4, 0, factors + 0.5)
    seen: Counter[int] = Counter()
    for epoch in range(40):
        batches = sampler.batches(epoch)
        assert len(batches) == len(sampler) == 37
        numbers = [sample for batch in batches for sample in batch]
        assert len(set(numbers)) == len(numbers)  # random numbers of their own when a picture comes again
        seen.update(number % 100 for number in numbers)
    assert seen[0] / 40 == pytest.approx(2.5, abs=0.3)
    halves = [RepeatFactorSampler(np.zeros(100, dtype=bool), 4, 0, factors, 2, rank).batches(3) for rank in range(2)]
    whole = RepeatFactorSampler(np.zeros(100, dtype=bool), 4, 0, factors).batches(3)
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_sets_are_drawn_in_proportion_by_all_processes() -> None:
    sources = np.repeat([0, 1], [10, 90])
    weights = torch.tensor([9.0] * 10 + [3.0] * 90)  # a quarter of the draws, and the rest
    wide = np.arange(100) % 2 == 0
    first = MultiSetSampler(weights, sources, wide, (2, 6), 5, world=2, rank=0)
    other = MultiSetSampler(weights, sources, wide, (2, 6), 5, world=2, rank=1)
    batches = [batch for epoch in range(20) for batch in first.batches(epoch)]
    share = Counter(int(sources[batch[0] % 100]) for batch in batches)
    assert share[0] / len(batches) == pytest.approx(0.5, abs=0.1)  # as many batches of a third of the size
    for batch in batches:
        own = [sample % 100 for sample in batch]
        assert len({(int(sources[sample]), bool(wide[sample])) for sample in own}) == 1
        assert len(batch) == (2, 6)[int(sources[own[0]])]
    assert first.batches(7, 2) == MultiSetSampler(weights, sources, wide, (2, 6), 5, world=2, rank=0).batches(7)[2:]
    assert first.batches(0) != other.batches(0)
    for a, b in zip(first.batches(1), other.batches(1), strict=False):
        assert not set(a) & set(b)  # a picture that both processes have gets other random numbers in each


def test_outlines_move_with_their_boxes(tmp_path: Path) -> None:
    pictures = LabelledPictures(tmp_path, write(tmp_path), options=LabelOptions(outlines=True))
    sample = pictures[0]
    assert sample.target is not None
    _, target = apply([Resize(80, 120), Flip(), Crop(4, 6, 70, 110)], sample.image, sample.target)
    assert target.polygons is not None
    corners = target.polygons[0][0].reshape(-1, 2)
    assert [*corners.min(axis=0), *corners.max(axis=0)] == target.boxes[0].tolist()


def test_boxes_outside_of_a_crop_go() -> None:
    meta = ImageMeta(1, size=(40, 60), orig_size=(40, 60), file="", dataset="")
    target = Target(torch.tensor([[0.0, 0, 10, 10], [30, 30, 50, 40]]), torch.tensor([1, 2]), meta)
    pixels, left = apply([Crop(20, 20, 20, 25)], Image.new("RGB", (60, 40)), target)
    assert pixels.shape == (3, 20, 25)
    assert (left.labels.tolist(), left.boxes.tolist()) == ([2], [[10, 10, 25, 20]])


def test_a_range_of_sizes() -> None:
    augment = ResizeShortestEdge((240, 400), 667)
    plans = [augment.plan(300, 600, rng_for(0, n).numpy) for n in range(200)]
    sizes = {step.height for plan in plans for step in plan if isinstance(step, Resize)}
    assert 240 <= min(sizes) < 250
    assert max(sizes) == 334  # 333.5, where the long side stops it
    assert rounded_size(3, 1000, 800, 1333) == (4, 1333)


def test_pixels_from_0_to_255() -> None:
    meta = ImageMeta(1, size=(1, 2), orig_size=(1, 2), file="", dataset="")
    raw = torch.tensor([[[[0, 255]], [[10, 20]], [[30, 40]]]], dtype=torch.uint8)
    normalise = Normalise((1.0, 2.0, 3.0), (2.0, 4.0, 5.0), detectron2=True)
    made = normalise(ImageBatch(raw, (meta,))).pixels
    assert made[0, :, 0].tolist() == [[-0.5, 127.0], [2.0, 4.5], [pytest.approx(5.4), pytest.approx(7.4)]]
    assert torch.equal(normalise.undo(made), raw)


def png(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_pictures_in_tar_files(tmp_path: Path) -> None:
    for name, colours in {"n01": (1, 2), "n02": (3,)}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for colour in colours:
                content = gzip.compress(png(colour)) if colour == 2 else png(colour)
                member = tarfile.TarInfo(f"{'long' * (40 if colour == 3 else 1)}_{colour}.JPEG")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"n03\.tar: no such tar file \(1 of 2 are missing\)"):
        TarPictures([tmp_path / "n01.tar", tmp_path / "n03.tar"])
    tars = TarPictures([tmp_path / "n01.tar", tmp_path / "n02.tar"])
    assert [Image.open(io.BytesIO(tars.read(number))).getpixel((0, 0)) for number in range(3)] == [
        (colour, 0, 0) for colour in (1, 2, 3)
    ]
    images = [{"id": number + 1, "tar_index": number, "pos_category_ids": [2]} for number in range(3)]
    path = write(tmp_path / "names", images=images, annotations=[])
    pictures = LabelledPictures(tmp_path, path, options=LabelOptions(image_labels=True), tars=tars)
    assert pictures[2].image.getpixel((0, 0)) == (3, 0, 0)
    path = write(tmp_path / "names", images=[{**images[0], "tar_index": 3}], annotations=[])
    with pytest.raises(DataError, match="tar_index 3 is not one of the 3 pictures"):
        LabelledPictures(tmp_path, path, tars=tars)


def test_batches_of_many_pictures_take_little_memory() -> None:
    """An epoch of the 1.2 million pictures of ImageNet-LVIS is numbers in an array, not objects."""
    count = 20_000
    weights, sources = torch.ones(count), np.zeros(count, np.int64)
    sampler = MultiSetSampler(weights, sources, np.arange(count) % 2 == 0, (4,), 5)
    sampler.batches(0)
    tracemalloc.start()
    batches = sampler.batches(1)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(batches) == count // 4
    assert kept < 24 * count  # bytes; a list of lists takes 80 for each picture
    assert batches[2:] == list(batches)[2:]
    assert batches[1:7:2] == list(batches)[1:7:2]
    assert batches[-1] == list(batches)[-1]
    assert batches[3:3] == []


@pytest.mark.parametrize("values", [[], [4], [2, 2, 2], [3, 1, 3, 0, 1, 3]])
def test_a_picture_that_comes_again_is_counted(values: list[int]) -> None:
    expected = [values[:place].count(value) for place, value in enumerate(values)]
    assert times_before(np.array(values, np.int64)).tolist() == expected


def test_lvis_without_rare_classes(tmp_path: Path) -> None:
    often = dict(zip((7, 2, 4), "rfc", strict=True))
    path = write(tmp_path, categories=[{**row, "frequency": often[int(str(row["id"]))]} for row in CATEGORIES])
    data = read_lvis(path)
    assert {row["category_id"] for row in without_rare(data)["annotations"]} == {2}
    assert [(row["id"], row["image_count"], row["instance_count"]) for row in counted(data)] == [
        *((2, 3, 3), (4, 0, 0), (7, 3, 3))
    ]
    with pytest.raises(DataError, match="category 'hat' has no frequency"):
        read_lvis(write(tmp_path))
