"""Pseudo boxes from a classifier for pictures with a class each: step 2 of DAP (https://github.com/mikuhatsune/dap).

For ``stem`` = ``imagenet2012Full/train.cam3`` the boxes go to ``train.cam3xyxy.npz``, and what non-maximum suppression
at an IoU of 0.8 leaves of them to ``train.cam3nms8xyxy.npz``; ``train.cam3.report.json`` says what became of each
picture that has no boxes of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn_benchmark.data.box_files import BoxTable, read_boxes, write_coco, write_npz, write_pth
from maskrcnn_benchmark.data.catalog import find_path
from maskrcnn_benchmark.data.datasets.class_pictures import ClassPictures
from maskrcnn_benchmark.data.datasets.image_folder import ImageFolder
from maskrcnn_benchmark.data.datasets.imagenet_binary import ImageNetBinary
from maskrcnn_benchmark.data.datasets.imagenet_tsv import ImageNetTsv
from maskrcnn_benchmark.data.datasets.tsv_file import open_tsv
from maskrcnn_benchmark.data.index import first_rows
from maskrcnn_benchmark.data.pictures import PictureError
from maskrcnn_benchmark.demo.cam_sheet import Cell, cam_sheet
from maskrcnn_benchmark.engine.allocator import keep_freed_memory
from maskrcnn_benchmark.engine.cam_boxes import Result, Work, clean, collect, find_boxes
from maskrcnn_benchmark.engine.device import pick_device
from maskrcnn_benchmark.engine.distributed import World, detect_world, local_device
from maskrcnn_benchmark.engine.log import say_what_others_cannot, setup_logging
from maskrcnn_benchmark.engine.shards import key_of
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.modeling.cam.boxes import area_scores, suppress
from maskrcnn_benchmark.modeling.cam.build import build_class_maps, released_weights
from maskrcnn_benchmark.modeling.cam.maps import SCALES, ClassMaps, at_scales

logger = logging.getLogger(__name__)

EVERY_LEVEL = (9, 8, 7, 6, 5)  # tenths of IoU for non-maximum suppression
RELEASED_LEVEL = 8  # what DAP trains on
FOLDER_1K, FOLDER_22K = "imagenet2012Full", "TaxImageNet22kSplit64"
SPLITS = 64
SHOWN = 3  # pictures in a message


@dataclass(frozen=True)
class Options:
    """How boxes are found.

    Attributes:
        model: Classifier of torchvision, or of timm with ``timm/`` in front.
        weight: Its weights; "": the name of torchvision's first ones, looked for in MODEL/.
        device: "auto", "cpu", ...
        precision: "float32" or "bfloat16" of the network.
        batch: Pictures in a batch; 0: 2 on a CPU, where more are slower, else 32.
        workers: Processes that read pictures; -1: none on a CPU, else one for each core, at most 8.
        pictures: So many on a sheet of maps and boxes.
        coco: Write COCO JSON too.
        scales: Short sides of the network's input in pixels; the last one gives the grid of the maps.
    """

    model: str = "resnet101"
    weight: str = ""
    device: str = "auto"
    precision: str = "float32"
    batch: int = 0
    workers: int = -1
    pictures: int = 0
    coco: bool = False
    scales: tuple[int, ...] = SCALES


@dataclass(frozen=True)
class Finder:
    """A network with all that is needed to run it."""

    net: ClassMaps
    options: Options
    digest: str  # of the weights
    world: World


def build_finder(options: Options, local_rank: int | None = None) -> Finder:
    """The network on the device of this process, with batch and workers as they will be.

    Raises:
        ConfigError: no such classifier or device, or maps cannot be made with it.
        WeightsError: the weights are missing or do not fit.
    """
    setup_logging()
    world = detect_world(os.environ, local_rank)
    if not world.main:
        say_what_others_cannot()
    device = local_device(world, pick_device(options.device))
    cpu = device.type == "cpu"
    if cpu:
        keep_freed_memory()
    weight = options.weight or released_weights(options.model)
    net, digest = build_class_maps(options.model, weight, device, getattr(torch, options.precision))
    batch = options.batch or (2 if cpu else 32)
    workers = options.workers if options.workers >= 0 else 0 if cpu else min(8, os.cpu_count() or 1)
    return Finder(net, replace(options, weight=weight, batch=batch, workers=workers), digest, world)


def folder(source: Path, out: Path, options: Options, images: Path | None = None, classes: Path | None = None) -> None:
    """Boxes for a folder with a folder for each class, or for a JSON that tells the class of each picture.

    Args:
        source: The folder, or the JSON.
        out: Folder for ``camxyxy.npz`` and the others, and for ``camnms8xyxy.json``, COCO.
        options: How.
        images: Folder of the pictures of a JSON; default: its own.
        classes: Text file with the classifier's classes in its order, one a line; None: those of the source.

    Raises:
        DataError, ConfigError, WeightsError: something is missing or does not fit.
    """
    pictures = ImageFolder(images or (source if source.is_dir() else source.parent), source)
    finder = build_finder(replace(options, coco=True))
    out.mkdir(parents=True, exist_ok=True)
    run(pictures, out / "cam", finder, EVERY_LEVEL, classes=class_rows(pictures, finder.net.classes, classes))


def imagenet1k(split: str, name: str, options: Options, local_rank: int | None = None, where: str = "") -> None:
    """Boxes for ImageNet in one file: ``<where>/<split>.<name>xyxy.npz`` and those of five suppressions.

    Raises:
        DataError, ConfigError, WeightsError: something is missing or does not fit.
    """
    place = _place(where, FOLDER_1K)
    pictures = ImageNetBinary(place, split)
    run(pictures, place / f"{split}.{name}", build_finder(options, local_rank), EVERY_LEVEL)


def imagenet22k(
    split: int | None,
    name: str,
    options: Options,
    local_rank: int | None = None,
    where: str = "",
    base: int | None = None,
) -> None:
    """Boxes for splits of ImageNet-22k: ``<where>/trainval_<i>_64.<name>xyxy.pth`` and ``<name>nms8xyxy.pth``.

    Args:
        split: All processes share this one; None: process r works on the splits r, r + R, ... of R processes, and
            leaves out those whose boxes are there.
        name: Of the boxes, such as cam1.
        options: How.
        local_rank: What a launcher said.
        where: The folder; "": TaxImageNet22kSplit64 below DATASET.
        base: First class number of label files that hold numbers; None: they hold names.

    Raises:
        DataError, ConfigError, WeightsError: something is missing or does not fit.
    """
    place = _place(where, FOLDER_22K)
    finder = build_finder(options, local_rank)
    if split is not None:
        return _split22k(place, split, name, finder, base)
    there = [number for number in range(SPLITS) if _tsv(place, number).is_file()]
    if not there:
        raise DataError(f"{place}: has no splits; they are called like {_tsv(place, 0).name}")
    if len(there) < SPLITS:
        logger.warning("%s: %d of %d splits are there", place, len(there), SPLITS)
    for number in there:
        if number % finder.world.size == finder.world.rank:
            _split22k(place, number, name, replace(finder, world=World(launcher=finder.world.launcher)), base)


def _split22k(place: Path, number: int, name: str, finder: Finder, base: int | None) -> None:
    path = _tsv(place, number)
    pictures = ImageNetTsv(path, class_base=base)
    lines = len(open_tsv(path))
    if len(pictures) < lines:
        raise DataError(f"{path}: {lines - len(pictures)} of {lines} pictures have no class in its .label.tsv: add it")
    classes = class_rows(pictures, finder.net.classes)
    run(pictures, place / f"{path.stem}.{name}", finder, (RELEASED_LEVEL,), ".pth", classes)


def _tsv(place: Path, number: int) -> Path:
    return place / f"trainval_{number}_{SPLITS}.tsv"


def _place(where: str, default: str) -> Path:
    return find_path([where] if where else [default, f"datasets/{default}"], "folder")


def class_rows(pictures: ClassPictures, outputs: int, listed: Path | None = None) -> tuple[int, ...]:
    """The output of the classifier for each class of some pictures.

    Args:
        pictures: With the names of their classes.
        outputs: How many classes the classifier has.
        listed: Text file with their names in order; None: those of the pictures.

    Raises:
        ConfigError: their numbers differ, or a class is not in the file, or on several of its lines.
    """
    names = [pictures.names[label] for label in sorted(pictures.names)]
    if listed is None:
        if len(names) != outputs:
            raise ConfigError(
                f"the classifier has {outputs} classes, {pictures.annotations} has {len(names)} "
                f"({', '.join(names[:SHOWN])}, ...): give weights for these, or name the classifier's classes in a "
                "file (--classes FILE)"
            )
        return tuple(range(outputs))
    try:
        rows = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes {str(listed)!r} cannot be read ({error})") from None
    if len(rows) != outputs:
        raise ConfigError(f"--classes {str(listed)!r} has {len(rows)} lines, the classifier {outputs} classes")
    lines: dict[str, list[int]] = {}
    for number, row in enumerate(rows, 1):
        lines.setdefault(row.strip(), []).append(number)
    missing = [name for name in names if name not in lines]
    if missing:
        raise ConfigError(
            f"--classes {str(listed)!r}: has no {', '.join(map(repr, missing[:SHOWN]))}: see the spelling"
        )
    for name in names:
        if len(lines[name]) > 1:
            raise ConfigError(
                f"--classes {str(listed)!r}: {name!r}, a class of {pictures.annotations}, is on lines "
                f"{' and '.join(map(str, lines[name]))}: keep it on the line that is meant, and call the class of the "
                "other one something else"
            )
    return tuple(lines[name][0] - 1 for name in names)


def run(
    pictures: ClassPictures,
    stem: Path,
    finder: Finder,
    levels: Sequence[int],
    ending: str = ".npz",
    classes: Sequence[int] | None = None,
) -> None:
    """Find the boxes of a data set, in as many processes as there are, and write them; the first process writes.

    Args:
        pictures: The data set.
        stem: What the names of the files begin with.
        finder: The network.
        levels: Tenths of IoU for which a file is written, besides that of all boxes.
        ending: ".npz" or ".pth".
        classes: The classifier's output for each label; None: they count alike.

    Raises:
        ConfigError: the files are there and were made with something else.
        DataError: a label is beyond the classes; the other processes do not deliver.
    """
    if classes is None:
        pictures.refuse_labels(finder.net.classes)
        classes = range(finder.net.classes)
    key = _key(pictures, finder, classes)
    work = Work(
        pictures,
        stem.with_name(f"{stem.name}.parts"),
        key,
        tuple(classes),
        scales=finder.options.scales,
        batch=finder.options.batch,
        workers=finder.options.workers,
    )
    files = _files(stem, levels, ending, finder.options)
    goes_on = work.folder.exists()
    missing = files if goes_on else _missing(stem, files, key, finder.options)
    if not missing:
        logger.info("%s is there: nothing to do", files[0])
        return
    table = None if goes_on else _from_file(files[0], pictures)
    if table is None:
        find_boxes(work, finder.net, finder.world)
    if not finder.world.main:
        return
    if table is not None:
        _write(missing, stem, table, levels, work, finder, pictures)
        _note(stem, finder.options)
        logger.info("made from %s: %s", files[0], ", ".join(file.name for file in missing))
        return
    result = collect(work)
    kept = _write(files, stem, result.table, levels, work, finder, pictures)
    _report(stem, pictures, result, kept, key, finder)
    clean(work)


def _write(
    wanted: Collection[Path],
    stem: Path,
    table: BoxTable,
    levels: Sequence[int],
    work: Work,
    finder: Finder,
    pictures: ClassPictures,
) -> dict[int, BoxTable]:
    """Write the wanted ones of the files; returns what each suppression leaves."""
    kept = {level: _suppressed(table, level) for level in levels}
    for level, boxes in {0: table, **kept}.items():
        if (file := _named(stem, level, ".npz")) in wanted:
            write_npz(file, replace(boxes, scores=None))
        if (file := _named(stem, level, ".pth")) in wanted:
            write_pth(file, boxes)
    if (file := _named(stem, RELEASED_LEVEL, ".json")) in wanted:
        _write_coco(file, kept[RELEASED_LEVEL], pictures)
    if (file := _sheet(stem)) in wanted:
        _draw(file, pictures, kept[RELEASED_LEVEL], work, finder)
    return kept


def _key(pictures: ClassPictures, finder: Finder, classes: Sequence[int]) -> str:
    """Equal for equal pictures, network and settings."""
    digest = hashlib.sha256()
    for number in range(len(pictures)):
        digest.update(f"{pictures.key(number)}\t{pictures.label(number)}\n".encode())
    options = finder.options
    facts = [str(pictures.annotations.resolve()), digest.hexdigest(), options.model, finder.digest, options.precision]
    return key_of([*facts, options.batch, list(classes), options.scales])


def _named(stem: Path, level: int, ending: str) -> Path:
    return stem.with_name(f"{stem.name}{f'nms{level}' if level else ''}xyxy{ending}")


def _sheet(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.png")


def _files(stem: Path, levels: Sequence[int], ending: str, options: Options) -> list[Path]:
    """All that is asked for, that of all boxes first; besides the report."""
    files = [_named(stem, level, ending) for level in (0, *levels)]
    files += [_named(stem, RELEASED_LEVEL, ".json")] * options.coco
    return files + [_sheet(stem)] * bool(options.pictures)


def _missing(stem: Path, files: Sequence[Path], key: str, options: Options) -> list[Path]:
    """Those of the files that are not there; a sheet of another number of pictures is not.

    Raises:
        ConfigError: some are there, and their report says that they were made with something else.
    """
    there = [file for file in files if file.is_file()]
    report = _read_report(stem)
    if there and report and report.get("key") != key:
        raise _of_something_else(there[0], stem)
    drawn = report.get("options", {}).get("pictures", options.pictures)
    return [file for file in files if file not in there or (file == _sheet(stem) and drawn != options.pictures)]


def _of_something_else(file: Path, stem: Path) -> ConfigError:
    return ConfigError(
        f"{file} is there, and was made of other pictures, or with other weights or settings: take it and "
        f"{_report_file(stem).name} away, or choose another place"
    )


def _from_file(file: Path, pictures: ClassPictures) -> BoxTable | None:
    """All boxes as an earlier run has written them, with scores and labels; None: they have to be found.

    Raises:
        ConfigError: they are of another number of pictures.
    """
    if not file.is_file():
        return None
    try:
        table = read_boxes(file)
    except DataError as error:
        logger.warning("%s: the boxes are found anew", error)
        return None
    if len(table) != len(pictures):
        raise ConfigError(
            f"{file} has boxes of {len(table)} pictures, {pictures.annotations} has {len(pictures)}: take it away, or "
            "choose another place"
        )
    own = np.array([pictures.label(number) - 1 for number in range(len(pictures))], dtype=np.int64)
    scores = table.scores
    if scores is None:
        each = [
            area_scores(table.boxes[table.rows(number)]) for number in np.flatnonzero(np.diff(table.first)).tolist()
        ]
        scores = np.concatenate([np.zeros(0, np.float32), *each])
    return replace(table, scores=scores, labels=np.repeat(own, np.diff(table.first)))


def _suppressed(table: BoxTable, level: int) -> BoxTable:
    assert table.scores is not None
    assert table.labels is not None
    kept = suppress(table.first, table.boxes, table.scores, level / 10)
    picture = np.searchsorted(table.first, kept, side="right") - 1
    first = first_rows(np.bincount(picture, minlength=len(table)))
    return BoxTable(first, table.boxes[kept], table.scores[kept], table.labels[kept], table.sizes)


def _write_coco(path: Path, table: BoxTable, pictures: ClassPictures) -> None:
    """Without the pictures that cannot be read, which alone have no box: training on the file would stop at them."""
    counts = np.diff(table.first)
    good = np.flatnonzero(counts).tolist()
    if table.sizes is None:  # .npz has none
        read = (pictures.picture(number) for number in good)
        sizes = np.array([(picture.height, picture.width) for picture in read], np.int32).reshape(-1, 2)
    else:
        sizes = table.sizes[good]
    names = [pictures.names[label] for label in sorted(pictures.names)]
    files = [pictures.key(number) for number in good]
    write_coco(path, replace(table, first=first_rows(counts[good]), sizes=sizes), files, names)


def _draw(path: Path, pictures: ClassPictures, table: BoxTable, work: Work, finder: Finder) -> None:
    """Some pictures, at equal distances, with map and boxes."""
    count = min(finder.options.pictures, len(pictures))
    cells = []
    for number in (index * len(pictures) // count for index in range(count)):
        try:
            picture = pictures.picture(number)
        except PictureError:
            continue
        label = pictures.label(number)
        maps = finder.net(at_scales([picture], work.scales), torch.tensor([work.classes[label - 1]]))
        side = maps.stride * min(picture.size) / work.scales[-1]
        boxes = table.boxes[table.rows(number)].tolist()
        cells.append(Cell(picture, maps.values[0].numpy(), side, boxes, pictures.names[label]))
    if cells:
        cam_sheet(cells).save(path)
        logger.info("%s: maps and boxes of %d pictures", path, len(cells))


def _report_file(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.report.json")


def _read_report(stem: Path) -> dict[str, Any]:
    """What it holds; nothing where there is none."""
    file = _report_file(stem)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _write_report(stem: Path, report: Mapping[str, object]) -> None:
    """As a whole, since other processes may look at it."""
    beside = stem.with_name(f".{_report_file(stem).name}.{os.getpid()}")
    beside.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(beside, _report_file(stem))


def _note(stem: Path, options: Options) -> None:
    """Add what was written afterwards to the report."""
    if report := _read_report(stem):
        written = {"coco": options.coco, "pictures": options.pictures}
        report["options"] = report.get("options", {}) | {name: value for name, value in written.items() if value}
        _write_report(stem, report)


def _report(
    stem: Path, pictures: ClassPictures, result: Result, kept: dict[int, BoxTable], key: str, finder: Finder
) -> None:
    """Tell what became of the pictures, here and in a file, which is the last one to be written."""
    unreadable = {pictures.key(number): reason for number, reason in sorted(result.unreadable.items())}
    flat = [pictures.key(number) for number in result.flat]
    report = {
        "key": key,
        "pictures": len(pictures),
        "boxes": {"all": len(result.table.boxes), **{f"nms{level}": len(kept[level].boxes) for level in kept}},
        "no box, cannot be read": unreadable,
        "whole picture, map without contrast": flat,
        "weights (sha256)": finder.digest,
        "options": asdict(finder.options),
    }
    _write_report(stem, report)
    if unreadable:
        reason = next(iter(unreadable.values()))
        logger.warning(
            "%d of %d pictures cannot be read and have no box, such as %s", len(unreadable), len(pictures), reason
        )
    if flat:
        shown = ", ".join(flat[:SHOWN])
        logger.warning("the maps of %d pictures have no contrast, their box is the whole picture: %s", len(flat), shown)
    left = len(kept[RELEASED_LEVEL].boxes)
    logger.info(
        "%d pictures, %d boxes, %d at IoU 0.8: %s", len(pictures), len(result.table.boxes), left, _named(stem, 0, ".*")
    )
