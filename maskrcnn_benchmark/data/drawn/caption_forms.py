"""Rows of the data sets of words: Flickr30k Entities and MDETR's JSON, referring expressions, PhraseCut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from maskrcnn_benchmark.data.drawn.captions import Caption, captions, lists
from maskrcnn_benchmark.data.drawn.masks import painted, polygons
from maskrcnn_benchmark.data.drawn.words import Phrase, expressions, phrases
from maskrcnn_benchmark.data.drawn.world import Item, Picture

SENTENCES = 5  # of a picture at most, as in Flickr30k
TASKS = 5  # phrases of a picture at most
NAMES = {"attribute": "refcoco+", "relation": "refcocog", "ordinal": "refcoco"}
"""Kind of an expression -> the data set that has such ones."""

Row = dict[str, Any]


@dataclass
class Rows:
    """Of one picture."""

    images: list[Row] = field(default_factory=list)
    annotations: list[Row] = field(default_factory=list)
    tasks: list[Row] = field(default_factory=list)
    captions: list[Caption] = field(default_factory=list)


def caption_rows(picture: Picture, file: str, entry: int, annotation: int) -> Rows:
    """An "image" for each caption, numbered from ``entry``, and its boxes, numbered from ``annotation``."""
    rows = Rows(captions=captions(picture, SENTENCES, picture.dice.other("captions")))
    for sentence, caption in enumerate(rows.captions):
        named = [phrase for phrase in caption.phrases if phrase.items]
        image = _entry(picture, file, entry + sentence, caption.text, "flickr")
        image |= {"sentence_id": sentence, "original_img_id": picture.number}
        rows.images.append(image | {"tokens_positive_eval": [[list(phrase.span)] for phrase in named]})
        for phrase in named:
            for index in phrase.items:
                row = _box(picture.items[index], annotation + len(rows.annotations), image["id"])
                rows.annotations.append(row | {"tokens_positive": [list(phrase.span)]})
    return rows


def list_rows(picture: Picture, file: str, entry: int, annotation: int) -> Rows:
    """As :func:`caption_rows`, of sentences that list expressions: a thing that several of them name has one box."""
    rows = Rows(captions=lists(picture, picture.dice.other("lists")))
    for sentence, caption in enumerate(rows.captions):
        image = _entry(picture, file, entry + sentence, caption.text, "mixed")
        rows.images.append(image | {"original_id": picture.number})
        spans: dict[int, list[list[int]]] = {}
        for phrase in caption.phrases:
            for index in phrase.items:
                spans.setdefault(index, []).append(list(phrase.span))
        for index, named in spans.items():
            row = _box(picture.items[index], annotation + len(rows.annotations), image["id"])
            rows.annotations.append(row | {"tokens_positive": named})
    return rows


def entity_files(picture: Picture, sentences: Sequence[Caption]) -> dict[str, str]:
    """Name below the folder of the Entities -> text: the sentences with numbered phrases, and their boxes."""
    numbers: dict[tuple[int, ...], int] = {}
    lines = []
    for caption in sentences:
        text, end = "", 0
        for phrase in caption.phrases:
            begin = phrase.span[0]
            number = numbers.setdefault(phrase.items, 100 * picture.number + len(numbers))
            text += f"{caption.text[end:begin]}[/EN#{number}/{phrase.kind} {caption.text[slice(*phrase.span)]}]"
            end = phrase.span[1]
        lines.append(f"{text}{caption.text[end:]}\n")
    height, width = picture.size
    objects = []
    for items, number in numbers.items():
        objects += [f"<name>{number}</name>{_corners(picture.items[index])}" for index in items]
        objects += [] if items else [f"<name>{number}</name><scene>1</scene><nobndbox>1</nobndbox>"]
    rows = "".join(f"  <object>{text}</object>\n" for text in objects)
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    xml = f"<annotation>\n  <filename>{picture.number}.png</filename>\n  {size}\n{rows}</annotation>\n"
    return {f"Sentences/{picture.number}.txt": "".join(lines), f"Annotations/{picture.number}.xml": xml}


def _corners(item: Item) -> str:
    """Pixels from 1, the last one inside."""
    x1, y1, x2, y2 = item.box
    return f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"


def expression_rows(picture: Picture, file: str, entry: int) -> list[tuple[Row, Row]]:
    """(image, annotation) of an expression of each kind that the picture gives rise to."""
    dice = picture.dice.other("expressions")
    by_kind: dict[str, list[tuple[Row, Row]]] = {}
    for expression in expressions(picture, dice):
        image = _entry(picture, file, 0, expression.text, NAMES[expression.kind]) | {"original_id": picture.number}
        row = _box(picture.items[expression.item], 0, 0)
        row |= {"tokens_positive": [list(expression.root)], "original_id": 100 * picture.number + expression.item}
        by_kind.setdefault(expression.kind, []).append((image, row))
    chosen = [dice.pick(rows) for rows in by_kind.values()]
    for number, (image, row) in enumerate(chosen, entry):
        image["id"] = row["id"] = row["image_id"] = number
    return chosen


def phrase_rows(picture: Picture, file: str, entry: int, annotation: int) -> Rows:
    """PhraseCut's tasks, and for MDETR an "image" for each, with one annotation for each thing that it is about."""
    dice, rows = picture.dice.other("phrases"), Rows()
    for number, phrase in enumerate(dice.shuffled(phrases(picture, dice))[:TASKS]):
        task = {"task_id": f"{picture.number}__{number}", "image_id": picture.number}
        rows.tasks.append(task | _task(picture, phrase))
        image = _entry(picture, file, entry + number, phrase.text, "phrasecut")
        rows.images.append(image | {"original_id": picture.number, "task_id": task["task_id"]})
        for index in phrase.items:
            row = _box(picture.items[index], annotation + len(rows.annotations), image["id"])
            row |= {"tokens_positive": [[0, len(phrase.text)]], "segmentation": polygons(picture.items[index].mask)}
            rows.annotations.append(row)
    return rows


def _task(picture: Picture, phrase: Phrase) -> Row:
    items = [picture.items[index] for index in phrase.items]
    return {
        "ann_ids": [100 * picture.number + index for index in phrase.items],
        "phrase": phrase.text,
        "phrase_structure": {
            "name": phrase.description.shape,
            "attributes": phrase.description.attributes,
            "relation_ids": [],
            "relation_descriptions": [list(phrase.relation)] if phrase.relation else [],
            "type": phrase.kind,
        },
        "instance_boxes": [item.xywh for item in items],
        "Polygons": [painted(item.mask) for item in items],
    }


def _entry(picture: Picture, file: str, number: int, caption: str, name: str) -> Row:
    height, width = picture.size
    row = {"id": number, "file_name": file, "height": height, "width": width, "caption": caption}
    return row | {"dataset_name": name, "tokens_negative": [[0, len(caption)]]}


def _box(item: Item, number: int, entry: int) -> Row:
    area = int(item.mask.sum())
    return {"id": number, "image_id": entry, "category_id": 1, "bbox": item.xywh, "area": area, "iscrowd": 0}
