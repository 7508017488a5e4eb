"""Pseudo boxes for many pictures: chunks, interruptions, several processes, files, and what is told of bad input."""

from __future__ import annotations

import base64
import gc
import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from maskrcnn_benchmark import mrb, pseudo_boxes
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.data.box_files import read_boxes
from maskrcnn_benchmark.data.datasets.image_folder import ImageFolder
from maskrcnn_benchmark.data.pictures import PictureError
from maskrcnn_benchmark.engine.cam_boxes import Result, Work, collect, find_boxes
from maskrcnn_benchmark.engine.distributed import World
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.modeling.cam.build import map_net
from maskrcnn_benchmark.modeling.cam.maps import ClassMaps
from maskrcnn_benchmark.pseudo_boxes import Options, class_rows, folder, imagenet1k, imagenet22k
from tests.golden.common import shared_path

MODEL = "shufflenet_v2_x0_5"  # the fastest
SCALES = (32, 64)


class Noise:
    """N pictures of three shapes and two classes, some of them broken."""

    def __init__(self, count: int, broken: tuple[int, ...] = (), died: int = -1):
        self.count, self.broken, self.died = count, broken, died
        self.alive = self.most = 0

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"{index}.png"

    def label(self, index: int) -> int:
        return 1 + index % 2

    def size(self, index: int) -> tuple[int, int]:
        return ((30, 40), (40, 30), (64, 32))[index % 3]

    def file(self, index: int) -> Path:
        return Path(self.key(index))

    def picture(self, index: int) -> Image.Image:
        if index in self.broken:
            raise PictureError(self.key(index), "damaged")
        if index == self.died:
            raise RuntimeError("killed")
        pixels = np.random.default_rng(index).integers(0, 256, (*self.size(index), 3), dtype=np.uint8)
        return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def net() -> ClassMaps:
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(3, 8, 9, 8, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    return map_net(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval(), "tiny")


def work(source: Noise, place: Path, batch: int = 2) -> Work:
    return Work(source, place / "parts", "key", (0, 1), scales=SCALES, batch=batch)


def same(one: Result, other: Result) -> bool:
    pairs = ((getattr(one.table, name), getattr(other.table, name)) for name in ("first", "boxes", "scores", "labels"))
    return all(a.tobytes() == b.tobytes() for a, b in pairs) and one.unreadable == other.unreadable


def test_every_picture_has_its_boxes_in_order(net: ClassMaps, tmp_path: Path) -> None:
    source = Noise(70, broken=(5, 69))
    find_boxes(work(source, tmp_path), net, World())
    found = collect(work(source, tmp_path))
    counts = np.diff(found.table.first)
    assert len(found.table) == 70
    assert found.unreadable == {5: "5.png: damaged", 69: "69.png: damaged"}
    assert counts[[5, 69]].tolist() == [0, 0]
    assert counts[[index for index in range(70) if index not in (5, 69)]].min() >= 1
    for index in range(70):
        height, width = source.size(index)
        boxes = found.table.boxes[found.table.rows(index)]
        assert (boxes >= 0).all()
        assert (boxes <= [width - 1, height - 1, width - 1, height - 1]).all()
        assert set(found.table.labels[found.table.rows(index)].tolist()) <= {index % 2}


def test_interrupted_and_shared_work_gives_the_same_bytes(net: ClassMaps, tmp_path: Path) -> None:
    find_boxes(work(Noise(100), tmp_path / "whole"), net, World())
    whole = collect(work(Noise(100), tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="killed"):
        find_boxes(work(Noise(100, died=71), tmp_path / "killed"), net, World())
    done = sorted((tmp_path / "killed" / "parts").iterdir())
    assert len(done) == 2, "two chunks of 32 pictures were whole"
    done[1].write_bytes(done[1].read_bytes()[:100])  # as after a power cut
    find_boxes(work(Noise(100, died=3), tmp_path / "killed"), net, World())  # the first chunk is not done again
    assert same(whole, collect(work(Noise(100), tmp_path / "killed")))
    for rank in (2, 0, 1):
        find_boxes(work(Noise(100), tmp_path / "three"), net, World(rank, 3))
    assert same(whole, collect(work(Noise(100), tmp_path / "three")))
    readers = Work(Noise(100), tmp_path / "readers", "key", (0, 1), scales=SCALES, workers=1)
    find_boxes(readers, net, World())
    assert same(whole, collect(readers))


def test_chunks_of_something_else_do_not_count(net: ClassMaps, tmp_path: Path) -> None:
    find_boxes(work(Noise(4), tmp_path), net, World())
    other = Work(Noise(4), tmp_path / "parts", "another key", (1, 0), scales=SCALES)
    assert not other.done(other.chunks[0])
    find_boxes(other, net, World())
    assert other.done(other.chunks[0])


def resident() -> int:
    """MiB that this process has in memory; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20 if status.exists() else 0


@pytest.mark.full
def test_memory_stays_flat(net: ClassMaps, tmp_path: Path) -> None:
    """Over 10,000 pictures nothing is kept but their boxes, on the disk."""

    class Watched(Noise):
        seen: tuple[int, ...] = ()

        def picture(self, index: int) -> Image.Image:
            if index in (2000, 9999):
                gc.collect()
                pictures = sum(issubclass(type(thing), (Image.Image, torch.Tensor)) for thing in gc.get_objects())
                self.seen += (pictures, resident())
            return super().picture(index)

    source = Watched(10_000)
    find_boxes(work(source, tmp_path, batch=32), net, World())
    objects, early, later, late = source.seen
    assert later <= objects + 64, "pictures or tensors pile up"
    assert late - early < 16, f"{late - early} MiB more after 8,000 pictures, whose pixels have 200"
    assert len(collect(work(source, tmp_path, batch=32)).table) == 10_000


def weights(place: Path, classes: int) -> str:
    torch.manual_seed(0)
    state = models.get_model(MODEL, weights=None, num_classes=classes).state_dict()
    return str(save_weights(state, place / f"{classes}.pth"))


def options(place: Path, classes: int, **more: object) -> Options:
    return Options(MODEL, weights(place, classes), "cpu", **more)  # type: ignore[arg-type]


def picture(seed: int, size: tuple[int, int] = (40, 60)) -> Image.Image:
    """Of (h, w)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    file = BytesIO()
    picture(seed).save(file, "png")
    return file.getvalue()


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder for each of two classes; one picture is cut short."""
    for number, name in enumerate(("cat", "cat", "dog", "dog")):
        place = tmp_path / "pictures" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png(number))
    broken = tmp_path / "pictures" / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return tmp_path / "pictures"


def test_missing_pictures_are_told_of_before_missing_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "nowhere"
    assert mrb.main(["pseudo-boxes", str(nowhere), "--weight", "no.pth", "--out", str(tmp_path / "out")]) == 2
    assert str(nowhere) in capsys.readouterr().err
    with pytest.raises(DataError, match="nowhere"):
        imagenet1k("train", "cam3", Options(MODEL, "no.pth", "cpu"), where=str(nowhere))
    with pytest.raises(DataError, match="nowhere"):
        imagenet22k(0, "cam1", Options(MODEL, "no.pth", "cpu"), where=str(nowhere))


def test_a_folder_of_classes(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["--model", MODEL, "--weight", weights(tmp_path, 2), "--out", str(out), "--pictures", "4"]
    assert mrb.main(["pseudo-boxes", str(classes), *words]) == 0
    told = capsys.readouterr().err
    assert "1 of 4 pictures cannot be read and have no box" in told
    table = read_boxes(out / "camxyxy.npz")
    assert [row > 0 for row in np.diff(table.first)] == [True, True, False, True]
    data = json.loads((out / "camnms8xyxy.json").read_text())
    assert [row["file_name"] for row in data["images"]] == ["cat/0.png", "cat/1.png", "dog/3.png"]
    assert [row["name"] for row in data["categories"]] == ["cat", "dog"]
    assert {(row["image_id"], row["category_id"]) for row in data["annotations"]} == {(1, 1), (2, 1), (3, 2)}
    report = json.loads((out / "cam.report.json").read_text())
    assert list(report["no box, cannot be read"]) == ["dog/2.png"]
    assert Image.open(out / "cam.png").width > 1000
    assert not (out / "cam.parts").exists()
    before = (out / "camxyxy.npz").read_bytes()
    assert mrb.main(["pseudo-boxes", str(classes), *words]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (out / "camxyxy.npz").read_bytes() == before
    words[3] = weights(tmp_path, 3)
    listed = tmp_path / "names.txt"
    listed.write_text("dog\nbird\ncat\n")
    assert mrb.main(["pseudo-boxes", str(classes), *words, "--classes", str(listed)]) == 2
    assert "was made of other pictures, or with other weights" in capsys.readouterr().err


def test_what_a_finished_run_lacks_is_made_from_its_boxes(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted files, and a sheet that is asked for later; without all boxes they are found once more."""
    out = tmp_path / "out"
    words = ["pseudo-boxes", str(classes), "--model", MODEL, "--weight", weights(tmp_path, 2), "--out", str(out)]
    assert mrb.main(words) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(pseudo_boxes, "find_boxes", lambda *_: pytest.fail("boxes are there"))
        for name in ("camnms8xyxy.json", "camnms5xyxy.npz"):
            (out / name).unlink()
        capsys.readouterr()
        assert mrb.main(words) == 0
        assert "camxyxy.npz: camnms5xyxy.npz, camnms8xyxy.json" in capsys.readouterr().err
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before
        sides = []
        for count in ("1", "4"):  # one of these four cannot be read
            assert mrb.main([*words, "--pictures", count]) == 0
            sides.append(Image.open(out / "cam.png").size)
        assert sides[1] > sides[0]
        capsys.readouterr()
        assert mrb.main([*words, "--pictures", "4"]) == 0
        assert "nothing to do" in capsys.readouterr().err
        assert mrb.main([*words, "--scales", "64", "96", "--pictures", "4"]) == 2
    (out / "camxyxy.npz").unlink()
    assert mrb.main(words) == 0
    assert (out / "camxyxy.npz").read_bytes() == before["camxyxy.npz"]
    (out / "camxyxy.npz").unlink()
    assert mrb.main([*words, "--scales", "64", "96"]) == 2, "the other files would be overwritten"
    assert "camnms9xyxy.npz is there, and was made of other pictures, or with other" in capsys.readouterr().err


def test_other_scales(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Boxes of other scales are others, and are not taken for those that are there."""
    words = ["--model", MODEL, "--weight", weights(tmp_path, 2), "--out", str(tmp_path / "out")]
    assert mrb.main(["pseudo-boxes", str(classes), *words, "--scales", "64", "96"]) == 0
    report = json.loads((tmp_path / "out" / "cam.report.json").read_text())
    assert report["options"]["scales"] == [64, 96]
    assert mrb.main(["pseudo-boxes", str(classes), *words, "--scales", "64", "128"]) == 2
    assert "with other weights or settings" in capsys.readouterr().err


def test_classes_that_do_not_fit(classes: Path, tmp_path: Path) -> None:
    chosen, listed = options(tmp_path, 3), tmp_path / "names.txt"
    with pytest.raises(ConfigError, match=r"the classifier has 3 classes, .*pictures has 2 \(cat, dog"):
        folder(classes, tmp_path / "out", chosen)
    listed.write_text("dog\nbird\n")
    with pytest.raises(ConfigError, match=r"names\.txt' has 2 lines, the classifier 3 classes"):
        folder(classes, tmp_path / "out", chosen, classes=listed)
    listed.write_text("dog\nbird\nCat\n")
    with pytest.raises(ConfigError, match=r"has no 'cat'"):
        folder(classes, tmp_path / "out", chosen, classes=listed)
    listed.write_text("dog\nbird\ncat\n")
    folder(classes, tmp_path / "out", chosen, classes=listed)
    assert len(read_boxes(tmp_path / "out" / "camnms8xyxy.npz")) == 4


def test_a_class_that_is_listed_twice(classes: Path, tmp_path: Path) -> None:
    """As "crane" and "maillot" are in ImageNet's names."""
    chosen, listed = options(tmp_path, 4), tmp_path / "names.txt"
    listed.write_text("cat\ndog\nbird\ncat\n")
    with pytest.raises(ConfigError, match=r"names\.txt': 'cat', .* is on lines 1 and 4: keep it on the line that is"):
        folder(classes, tmp_path / "out", chosen, classes=listed)
    listed.write_text("bird\ndog\nbird\ncat\n")
    pictures = ImageFolder(classes, classes)
    assert class_rows(pictures, 4, listed) == (3, 1), "no picture is of the class that is there twice"


def test_maps_without_contrast_are_told(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = models.get_model(MODEL, weights=None, num_classes=2).state_dict()
    path = save_weights({**state, "fc.weight": torch.zeros_like(state["fc.weight"])}, tmp_path / "zero.pth")
    folder(classes, tmp_path / "out", Options(MODEL, str(path), "cpu"))
    assert (
        "the maps of 3 pictures have no contrast, their box is the whole picture: cat/0.png" in capsys.readouterr().err
    )
    table = read_boxes(tmp_path / "out" / "camxyxy.npz")
    assert table.boxes.tolist() == [[0, 0, 59, 39]] * 3


def binary(place: Path, labels: tuple[int, ...]) -> None:
    """ImageNet-1k's form; the second picture is damaged."""
    data = [png(number) for number in range(len(labels))]
    data[1] = data[1][:200]
    first = np.cumsum([0, *map(len, data)])
    lines = [
        f"n{number}\t{label}\t{first[number]}\t{len(data[number])}\t60\t40\n" for number, label in enumerate(labels)
    ]
    place.mkdir()
    (place / "train.binary").write_bytes(b"".join(data))
    (place / "train.binary.label").write_text("".join(lines))


def test_imagenet_1k(tmp_path: Path) -> None:
    place = tmp_path / "imagenet2012Full"
    binary(place, (0, 2, 1, 2))
    imagenet1k("train", "cam3", options(tmp_path, 3), where=str(place))
    names = {f"train.cam3{level}xyxy.npz" for level in ("", "nms9", "nms8", "nms7", "nms6", "nms5")}
    assert names | {"train.binary", "train.binary.label", "train.cam3.report.json"} == {p.name for p in place.iterdir()}
    with np.load(place / "train.cam3nms8xyxy.npz", allow_pickle=True) as file:
        assert list(file) == ["boxes"]
        assert (file["boxes"].dtype, file["boxes"].shape) == (np.dtype(object), (4,))
        assert [row.shape[1:] for row in file["boxes"]] == [(4,)] * 4
        assert len(file["boxes"][1]) == 0


def test_a_label_beyond_the_classes(tmp_path: Path) -> None:
    place = tmp_path / "imagenet2012Full"
    binary(place, (0, 1, 3))
    with pytest.raises(DataError, match=r"train\.binary\.label:3: n2 has label 3 \(from 0\), .* 3 classes"):
        imagenet1k("train", "cam3", options(tmp_path, 3), where=str(place))


def tsv(place: Path, number: int, labels: tuple[str, ...]) -> None:
    """ImageNet-22k's form."""
    stem = f"trainval_{number}_64"
    rows = [f"k{i}\t[]\t{base64.b64encode(png(i)).decode()}\n" for i in range(len(labels))]
    rect = [0, 0, 60, 40]
    (place / f"{stem}.tsv").write_text("".join(rows))
    (place / f"{stem}.hw.tsv").write_text("".join(f"k{i}\t40 60\n" for i in range(len(labels))))
    objects = [[{"class": label, "rect": rect}] if label else [] for label in labels]
    (place / f"{stem}.label.tsv").write_text("".join(f"k{i}\t{json.dumps(row)}\n" for i, row in enumerate(objects)))
    (place / "labelmap.txt").write_text("ape\nbee\ncat\n")


def test_imagenet_22k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        tsv(tmp_path, number, ("cat", "ape"))
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    chosen = options(tmp_path, 3)
    imagenet22k(None, "cam1", chosen, where=str(tmp_path))
    made = sorted(path.name for path in tmp_path.glob("*.cam1*.pth"))
    assert made == [f"trainval_{i}_64.cam1{level}xyxy.pth" for i in (0, 2) for level in ("nms8", "")]
    table = read_boxes(tmp_path / made[1])
    assert table.labels is not None
    assert [set(table.labels[table.rows(i)].tolist()) for i in range(2)] == [{2}, {0}]
    assert table.sizes is not None
    assert table.sizes.tolist() == [[40, 60]] * 2
    capsys.readouterr()
    imagenet22k(None, "cam1", chosen, where=str(tmp_path))
    assert capsys.readouterr().err.count("nothing to do") == 2
    with pytest.raises(ConfigError, match=r"the classifier has 4 classes, .* has 3 \(ape, bee, cat"):
        imagenet22k(1, "cam1", options(tmp_path, 4), where=str(tmp_path))


def test_coco_of_boxes_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as with the boxes at once, from .pth and from .npz, which has neither scores nor sizes."""
    for place in ("now", "later"):
        (tmp_path / place).mkdir()
        tsv(tmp_path / place, 0, ("cat", "ape", "cat"))
        binary(tmp_path / place / "1k", (0, 2, 1))
    at_once, plain = options(tmp_path, 3, coco=True), options(tmp_path, 3)

    def both(place: str, chosen: Options) -> list[bytes]:
        imagenet22k(0, "cam1", chosen, where=str(tmp_path / place))
        imagenet1k("train", "cam3", chosen, where=str(tmp_path / place / "1k"))
        return [file.read_bytes() for file in sorted((tmp_path / place).rglob("*nms8xyxy.json"))]

    now = both("now", at_once)
    assert len(now) == 2
    assert both("later", plain) == []
    monkeypatch.setattr(pseudo_boxes, "find_boxes", lambda *_: pytest.fail("boxes are there"))
    assert both("later", at_once) == now


def test_a_picture_of_22k_without_a_class(tmp_path: Path) -> None:
    tsv(tmp_path, 5, ("cat", "", "bee"))
    with pytest.raises(DataError, match=r"trainval_5_64\.tsv: 1 of 3 pictures have no class in its \.label\.tsv"):
        imagenet22k(5, "cam1", options(tmp_path, 3), where=str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no splits; they are called like trainval_0_64\.tsv"):
        imagenet22k(None, "cam1", options(tmp_path, 3), where=str(tmp_path / "empty"))


def test_the_sample_of_imagenet_files(tmp_path: Path) -> None:
    """The files that the reference's readers were tried on."""
    given = shared_path("golden", "dap", "cases", "dap_data")
    place = tmp_path / "TaxImageNet22kSplit64"
    place.mkdir()
    for path in (given / "TaxImageNet22kSplit64").iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    count = len((place / "labelmap.txt").read_text().splitlines())
    imagenet22k(0, "cam9", options(tmp_path, count), where=str(place))
    expected, found = (read_boxes(place / f"trainval_0_64.{name}nms8xyxy.pth") for name in ("cam1", "cam9"))
    assert len(expected) == len(found)
    assert expected.sizes is not None
    assert expected.sizes.tolist() == found.sizes.tolist()  # type: ignore[union-attr]
