"""``mrb data check``, ``mrb data convert``, ``mrb data split`` and ``mrb data lvis``."""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.data.forms.checks import check as check_data
from maskrcnn_benchmark.data.forms.convert import convert as convert_data
from maskrcnn_benchmark.data.forms.model import ERROR, NOTE, WARNING, DataSet, Layout, Problems
from maskrcnn_benchmark.data.forms.read import read, usable
from maskrcnn_benchmark.data.forms.recognise import recognise
from maskrcnn_benchmark.data.forms.subset import Share, draw_subset
from maskrcnn_benchmark.data.lvis_files import counted, read_lvis, without_rare
from maskrcnn_benchmark.data.pseudo_annotations import write_json
from maskrcnn_benchmark.demo.sheet import contact_sheet
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.evaluation.report import table

SHOWN = 5  # problems of one kind on the screen; the file has all of them
ROWS = 40  # classes on the screen
REPORT, SHEET = "check.json", "sheet.png"


class Unsound(DataError):
    """The data have errors; they have been told."""

    exit_code = 1


def check(args: argparse.Namespace) -> None:
    """List every problem of COCO, LVIS, MDETR, VOC, YOLO or LabelMe data with file, field and remedy.

    Exit code 1 when there are errors: what training or evaluation stops at.
    """
    layout = recognise(args.data, args.images)
    print(f"{args.data}: {layout}")
    problems = Problems()
    data = read(layout, problems)
    check_data(data, problems, decode=not args.fast)
    for part in layout.others:
        _check_other(replace(layout, parts=(part,), others=()), problems)
    folder = cli.output_folder(args.output, "--output")
    _print_problems(problems)
    print(count_table(data))
    written = [_write_report(folder, layout, data, problems)]
    if args.pictures > 0 and (sheet := contact_sheet(data, args.pictures)) is not None:
        sheet.save(folder / SHEET)
        written.append(folder / SHEET)
    counts = ", ".join(f"{problems.count(level)} {level}s" for level in (ERROR, WARNING, NOTE))
    print(f"{counts}; all of them in {' and '.join(map(str, written))}")
    if problems.errors or (args.strict and problems.count(WARNING)):
        raise Unsound(f"{args.data}: {counts}: see above")


def lvis(args: argparse.Namespace) -> None:
    """Write LVIS without the boxes of rare classes, and how often each class occurs."""
    source = Path(args.data)
    found = read_lvis(source)
    cut = without_rare(found)
    folder = Path(args.output) if args.output else source.parent
    rows = {f"{source.stem}_norare.json": cut, f"{source.stem}_cat_info.json": counted(found)}
    for name, content in rows.items():
        write_json(folder / name, content)
    lost = len(found["annotations"]) - len(cut["annotations"])
    print(f"{lost} of {len(found['annotations'])} boxes are of rare classes; {' and '.join(rows)} are in {folder}")


def _check_other(layout: Layout, problems: Problems) -> None:
    """Another annotation file of a split, whose pictures have been looked at."""
    print(f"also {layout.parts[0].files[0]}")
    check_data(read(layout, problems), problems, decode=False)


def _print_problems(problems: Problems) -> None:
    """The worst first; of each kind a few."""
    for level in (ERROR, WARNING, NOTE):
        kinds = defaultdict(list)
        for problem in problems:
            if problem.level == level:
                kinds[problem.kind].append(problem)
        for rows in kinds.values():
            for problem in rows[:SHOWN]:
                print(problem)
            if len(rows) > SHOWN:
                print(f"{level}: ... and {len(rows) - SHOWN} more like this")


def count_table(data: DataSet) -> str:
    """Boxes of each class in each split, and pictures with it."""
    counts = sorted(data.counts().items(), key=lambda row: -sum(boxes for boxes, _ in row[1].values()))
    splits = list(data.splits)
    rows: list[list[object]] = [
        [name, *(f"{per[split][0]} ({per[split][1]})" for split in splits)] for name, per in counts[:ROWS]
    ]
    if len(counts) > ROWS:
        rows.append([f"... {len(counts) - ROWS} more", *([""] * len(splits))])
    boxes = [sum(len(picture.things) for picture in data.splits[split]) for split in splits]
    rows.append(["all", *(f"{n} ({len(data.splits[split])})" for n, split in zip(boxes, splits, strict=True))])
    return table(["boxes (pictures)", *splits], rows)


def _write_report(folder: Path, layout: Layout, data: DataSet, problems: Problems) -> Path:
    counts = {name: {split: list(pair) for split, pair in per.items()} for name, per in data.counts().items()}
    report = {
        "form": layout.form,
        "roboflow": layout.roboflow,
        "root": os.fspath(layout.root),
        "pictures": {split: len(pictures) for split, pictures in data.splits.items()},
        "classes (boxes, pictures)": counts,
        "problems": [asdict(problem) for problem in problems],
    }
    file = folder / REPORT
    file.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    return file


def convert(args: argparse.Namespace) -> None:
    """Write COCO, LVIS, VOC, YOLO or LabelMe data as COCO, VOC, YOLO or LabelMe; tells what the form cannot hold."""
    layout = recognise(args.data, args.images)
    data = usable(layout)
    lost = convert_data(data, args.folder, args.to, args.link)
    pictures = sum(len(rows) for rows in data.splits.values())
    print(f"{args.data} ({layout}) -> {args.folder} ({args.to}): {pictures} pictures, {len(data.classes)} classes")
    for part in layout.others:
        print(f"not used: {part.files[0]}")
    for told, count in sorted(lost.items()):
        print(f"not taken over as it was: {told} ({count})")


def split(args: argparse.Namespace) -> None:
    """Draw some pictures of COCO, LVIS, VOC, YOLO or LabelMe data by a seed, and write them as COCO JSON."""
    file = Path(args.file)
    if file.exists():
        raise ConfigError(f"{file} is there already: name a new file to write to")
    layout = recognise(args.data, args.images)
    subset = draw_subset(layout, Share(args.seed, args.per_class, args.fraction), args.split or ())
    cli.output_folder(str(file.parent), "the folder of the new file")
    file.write_text(json.dumps(subset.tree, ensure_ascii=False), encoding="utf-8")
    images, boxes = len(subset.tree["images"]), len(subset.tree["annotations"])
    print(f"{file}: {images} of {subset.total} pictures, {boxes} boxes; the pictures are in {subset.folder}")
    shown = sorted(subset.counts.items(), key=lambda row: row[1])
    rows: list[list[object]] = [list(row) for row in shown[:ROWS]]
    if len(shown) > ROWS:
        rows.append([f"... {len(shown) - ROWS} more", ""])
    print(table(["class", "pictures"], rows))
    for told, count in sorted(subset.lost.items()):
        print(f"left out: {told} ({count})")
