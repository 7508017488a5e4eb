"""The drawn world as data sets of many forms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.data.drawn.caption_forms import (
    caption_rows,
    entity_files,
    expression_rows,
    list_rows,
    phrase_rows,
)
from maskrcnn_benchmark.data.drawn.masks import polygons
from maskrcnn_benchmark.data.drawn.png import png
from maskrcnn_benchmark.data.drawn.row_forms import tsv_rows, voc_xml
from maskrcnn_benchmark.data.drawn.vocabulary import frequency
from maskrcnn_benchmark.data.drawn.world import Item, Picture, World

PICTURES = "pictures"
NEGATIVES = 8  # classes that a picture of the LVIS form is known not to have
INCOMPLETE = 20  # percent of its pictures in which a thing is not annotated

Row = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        annotations: The file, or for VOC and image labels the folder.
        entry: What ``DATASETS.REGISTER`` may say of it; empty for forms that no reader of the catalog takes.
        counts: How many of what.
    """

    annotations: Path
    entry: Row = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def write_coco(folder: str | Path, world: World, count: int) -> Written:
    """COCO instances: ``annotations.json`` with the pictures beside it."""
    folder = Path(folder)
    images: list[Row] = []
    annotations: list[Row] = []
    for picture in world.pictures(count):
        images.append(_image(folder, f"{picture.number:06d}.png", picture))
        for item, category in _classified(world, picture):
            annotations.append(_instance(len(annotations) + 1, picture, item, category))
    data = _coco(world, images, annotations, _categories(world))
    path = _write_json(folder / "annotations.json", data)
    return Written(path, _entry("coco", folder, path), {"pictures": count, "boxes": len(annotations)})


def write_lvis(folder: str | Path, world: World, count: int) -> Written:
    """LVIS v1: ``annotations.json`` with frequencies, classes known to be absent, and classes not annotated in full.

    In some pictures a thing of a class in ``not_exhaustive_category_ids`` has no annotation.
    """
    folder = Path(folder)
    images: list[Row] = []
    annotations: list[Row] = []
    for picture in world.pictures(count):
        dice = picture.dice.other("lvis")
        found = _classified(world, picture)
        image = _image(folder, f"{PICTURES}/{picture.number:06d}.png", picture)
        counts = Counter(category for _, category in found)
        absent = [number for number in range(1, len(world.classes) + 1) if number not in counts]
        several = [category for category, number in counts.items() if number > 1]
        partly = [dice.pick(several)] if several and dice.chance(INCOMPLETE) else []
        image |= {"coco_url": image["file_name"], "not_exhaustive_category_ids": partly}
        image["neg_category_ids"] = sorted(dice.shuffled(absent)[:NEGATIVES])
        images.append(image)
        if partly:
            found.pop(next(index for index, (_, category) in enumerate(found) if category in partly))
        for item, category in found:
            row = _instance(len(annotations) + 1, picture, item, category)
            del row["iscrowd"]
            annotations.append(row)
    data = _coco(world, images, annotations, _lvis_categories(world, annotations))
    path = _write_json(folder / "annotations.json", data)
    return Written(path, _entry("lvis", folder, path), {"pictures": count, "boxes": len(annotations)})


def write_flickr(folder: str | Path, world: World, count: int) -> Written:
    """Captions: MDETR's ``final_flickr_separateGT_SPLIT.json``, and Flickr30k Entities in ``entities``."""
    folder, split = Path(folder), world.split.value
    images: list[Row] = []
    annotations: list[Row] = []
    for picture in world.pictures(count):
        file = _save(folder / PICTURES / f"{picture.number}.png", picture).name
        found = caption_rows(picture, file, len(images) + 1, len(annotations) + 1)
        images += found.images
        annotations += found.annotations
        for name, text in entity_files(picture, found.captions).items():
            _write_text(folder / "entities" / name, text)
    _write_text(folder / "entities" / f"{split}.txt", "".join(f"{number}\n" for number in range(1, count + 1)))
    data = _coco(world, images, annotations, [_OBJECT])
    path = _write_json(folder / f"final_flickr_separateGT_{split}.json", data)
    entry = _entry("flickr", folder / PICTURES, path) | {"entities": str(folder / "entities"), "split": split}
    return Written(path, entry, {"pictures": count, "captions": len(images), "boxes": len(annotations)})


def write_mixed(folder: str | Path, world: World, count: int) -> Written:
    """Sentences of several referring expressions, as MDETR's ``final_mixed_SPLIT.json`` has several phrases."""
    folder = Path(folder)
    images: list[Row] = []
    annotations: list[Row] = []
    for picture in world.pictures(count):
        file = _save(folder / PICTURES / f"{picture.number:06d}.png", picture).name
        found = list_rows(picture, file, len(images) + 1, len(annotations) + 1)
        images += found.images
        annotations += found.annotations
    path = _write_json(folder / f"final_mixed_{world.split.value}.json", _coco(world, images, annotations, [_OBJECT]))
    entry = {"kind": "mixed", "img_dir": str(folder / PICTURES), "ann_file": str(path)}
    return Written(path, entry, {"pictures": count, "sentences": len(images), "boxes": len(annotations)})


def write_refcoco(folder: str | Path, world: World, count: int) -> Written:
    """Referring expressions: MDETR's ``finetune_refcoco_SPLIT.json``.

    ``dataset_name`` tells their kind: refcoco+ an attribute, refcocog a relation, refcoco a place in a row.
    """
    folder = Path(folder)
    images: list[Row] = []
    annotations: list[Row] = []
    for picture in world.pictures(count):
        file = _save(folder / PICTURES / f"{picture.number:06d}.png", picture).name
        for image, annotation in expression_rows(picture, file, len(images) + 1):
            images.append(image)
            annotations.append(annotation)
    data = _coco(world, images, annotations, [_OBJECT])
    path = _write_json(folder / f"finetune_refcoco_{world.split.value}.json", data)
    return Written(path, _entry("refexp", folder / PICTURES, path), {"pictures": count, "expressions": len(images)})


def write_phrasecut(folder: str | Path, world: World, count: int) -> Written:
    """Segmentation by phrase: ``VGPhraseCut_v0`` and MDETR's ``finetune_phrasecut_SPLIT.json``."""
    folder, split = Path(folder), world.split.value
    images: list[Row] = []
    annotations: list[Row] = []
    tasks: list[Row] = []
    about: list[Row] = []
    for picture in world.pictures(count):
        file = _save(folder / PICTURES / f"{picture.number}.png", picture).name
        height, width = picture.size
        about.append({"image_id": picture.number, "width": width, "height": height, "split": split, "coco_id": None})
        found = phrase_rows(picture, file, len(images) + 1, len(annotations) + 1)
        images += found.images
        annotations += found.annotations
        tasks += found.tasks
    original = folder / "VGPhraseCut_v0"
    _write_json(original / f"refer_{split}.json", tasks)
    _write_json(original / "image_data_split.json", about)
    _write_json(original / "name_att_rel_count.json", _word_counts(tasks))
    data = _coco(world, images, annotations, [_OBJECT])
    path = _write_json(folder / f"finetune_phrasecut_{split}.json", data)
    entry = _entry("phrasecut", folder / PICTURES, path) | {"original": str(original), "split": split}
    return Written(path, entry, {"pictures": count, "phrases": len(images), "boxes": len(annotations)})


def write_voc(folder: str | Path, world: World, count: int) -> Written:
    """PASCAL VOC: ``Annotations``, ``ImageSets/Main/SPLIT.txt`` and ``JPEGImages``, with PNG files in it."""
    folder, split = Path(folder), world.split.value
    objects = 0
    for picture in world.pictures(count):
        name = f"{picture.number:06d}"
        _save(folder / "JPEGImages" / f"{name}.png", picture)
        named = [(item, world.classes[category - 1]) for item, category in _classified(world, picture)]
        objects += len(named)
        _write_text(folder / "Annotations" / f"{name}.xml", voc_xml(picture, f"{name}.png", named))
    lines = "".join(f"{number:06d}\n" for number in range(1, count + 1))
    _write_text(folder / "ImageSets" / "Main" / f"{split}.txt", lines)
    entry = _entry("voc", folder, folder) | {"split": split, "classes": list(world.classes)}
    return Written(folder, entry, {"pictures": count, "objects": objects})


def write_tsv(folder: str | Path, world: World, count: int) -> Written:
    """Tab-separated files, as Objects365 has them: ``SPLIT.yaml`` names the others."""
    folder, split = Path(folder), world.split.value
    names = {"img": "images.tsv", "label": f"{split}.label.tsv", "hw": f"{split}.hw.tsv"}
    folder.mkdir(parents=True, exist_ok=True)
    objects = 0
    offsets: dict[str, list[int]] = {part: [] for part in names}
    files = {part: open(folder / name, "wb") for part, name in names.items()}  # noqa: SIM115
    try:
        for picture in world.pictures(count):
            named = [(item, world.classes[category - 1]) for item, category in _classified(world, picture)]
            objects += len(named)
            for part, line in tsv_rows(picture, png(picture.pixels), named).items():
                offsets[part].append(files[part].tell())
                files[part].write(line)
    finally:
        for file in files.values():
            file.close()
    for part, name in names.items():
        _write_text((folder / name).with_suffix(".lineidx"), "".join(f"{offset}\n" for offset in offsets[part]))
    _write_text(folder / f"{split}.linelist.tsv", "".join(f"{line}\n" for line in range(count)))
    _write_json(folder / "class2ind.json", {name: label for label, name in enumerate(world.classes, 1)})
    parts = {**names, "linelist": f"{split}.linelist.tsv", "labelmap": "class2ind.json"}
    path = _write_text(folder / f"{split}.yaml", "".join(f"{part}: {name}\n" for part, name in parts.items()))
    return Written(path, {"kind": "tsv", "ann_file": str(path)}, {"pictures": count, "objects": objects})


def write_labels(folder: str | Path, world: World, count: int) -> Written:
    """Pictures with a label and no boxes: a folder for each class, and ``image_info.json`` as DECOLA reads it.

    A picture has things of its class only. Classes take turns.
    """
    folder = Path(folder)
    images: list[Row] = []
    for index in range(count):
        category, turn = index % len(world.classes), index // len(world.classes) + 1
        name = world.classes[category]
        picture = world.of_class(name, turn)
        file = _save(folder / name.replace(" ", "_") / f"{turn:06d}.png", picture)
        height, width = picture.size
        row = {"id": index + 1, "file_name": f"{file.parent.name}/{file.name}", "width": width, "height": height}
        images.append({**row, "pos_category_ids": [category + 1]})
    many = Counter(row["pos_category_ids"][0] for row in images)
    categories = [{**row, "image_count": many[row["id"]]} for row in _categories(world)]
    _write_json(folder / "image_info.json", _coco(world, images, [], categories))
    return Written(folder, {}, {"pictures": count, "classes": len(many)})


FORMS: dict[str, Callable[[str | Path, World, int], Written]] = {
    "coco": write_coco,
    "lvis": write_lvis,
    "flickr": write_flickr,
    "mixed": write_mixed,
    "refcoco": write_refcoco,
    "phrasecut": write_phrasecut,
    "voc": write_voc,
    "tsv": write_tsv,
    "labels": write_labels,
}
"""Name of a form -> what writes picture 1 to ``count`` of a world in it; equal arguments give equal files."""

_OBJECT = {"id": 1, "name": "object", "supercategory": "object"}


def _coco(world: World, images: list[Row], annotations: list[Row], categories: list[Row]) -> Row:
    info = {"description": f"drawn world, split {world.split.value}, seed {world.seed}"}
    return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def _entry(kind: str, images: Path, annotations: Path) -> Row:
    return {"kind": kind, "evaluator": kind, "img_dir": str(images), "ann_file": str(annotations)}


def _categories(world: World) -> list[Row]:
    return [
        {"id": number, "name": name, "supercategory": name.split()[-1]} for number, name in enumerate(world.classes, 1)
    ]


def _lvis_categories(world: World, annotations: list[Row]) -> list[Row]:
    instances = Counter(row["category_id"] for row in annotations)
    pictures = Counter(category for _, category in {(row["image_id"], row["category_id"]) for row in annotations})
    return [
        {
            "id": number,
            "name": name.replace(" ", "_"),
            "synset": f"{name.replace(' ', '_')}.n.01",
            "synonyms": [name.replace(" ", "_")],
            "def": f"a {name.split()[-1]}" + (f" that is {name.split()[0]}" if " " in name else ""),
            "frequency": frequency(name),
            "image_count": pictures[number],
            "instance_count": instances[number],
        }
        for number, name in enumerate(world.classes, 1)
    ]


def _classified(world: World, picture: Picture) -> list[tuple[Item, int]]:
    """The items that have a class, with the number of it from 1."""
    classes = [(item, world.class_of(item)) for item in picture.items]
    return [(item, index + 1) for item, index in classes if index is not None]


def _image(folder: Path, name: str, picture: Picture) -> Row:
    _save(folder / name, picture)
    height, width = picture.size
    return {"id": picture.number, "file_name": name, "height": height, "width": width}


def _instance(number: int, picture: Picture, item: Item, category: int) -> Row:
    return {
        "id": number,
        "image_id": picture.number,
        "category_id": category,
        "bbox": item.xywh,
        "area": int(item.mask.sum()),
        "iscrowd": 0,
        "segmentation": polygons(item.mask),
    }


def _word_counts(tasks: list[Row]) -> dict[str, list[list[Any]]]:
    """How often words are used, the most frequent first."""
    structures = [task["phrase_structure"] for task in tasks]
    words = {
        "cat": Counter(structure["name"] for structure in structures),
        "att": Counter(word for structure in structures for word in structure["attributes"]),
        "rel": Counter(relation for structure in structures for relation, _ in structure["relation_descriptions"]),
    }
    return {
        kind: [list(pair) for pair in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
        for kind, counts in words.items()
    }


def _save(path: Path, picture: Picture) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(picture.pixels))
    return path


def _write_json(path: Path, data: object) -> Path:
    return _write_text(path, json.dumps(data))


def _write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())  # the same line ends everywhere
    return path
