"""Rows of the data sets that have a file or a line for each picture: PASCAL VOC, tab-separated files."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from maskrcnn_benchmark.data.drawn.world import Item, Picture

DIFFICULT = 75  # percent of a thing; one of which less can be seen is marked as difficult


def voc_xml(picture: Picture, file: str, objects: Sequence[tuple[Item, str]]) -> str:
    """An annotation of PASCAL VOC: pixels from 1, the last one inside."""
    height, width = picture.size
    rows = []
    for item, name in objects:
        x1, y1, x2, y2 = item.box
        cut = int(x1 == 0 or y1 == 0 or x2 == width or y2 == height)
        hidden = int(item.visible < DIFFICULT)
        flags = f"<pose>Unspecified</pose><truncated>{cut}</truncated><difficult>{hidden}</difficult>"
        box = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        rows.append(f"  <object><name>{name}</name>{flags}<bndbox>{box}</bndbox></object>\n")
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    head = f"  <folder>VOC</folder>\n  <filename>{file}</filename>\n  {size}\n  <segmented>0</segmented>\n"
    return f"<annotation>\n{head}{''.join(rows)}</annotation>\n"


def tsv_rows(picture: Picture, data: bytes, objects: Sequence[tuple[Item, str]]) -> dict[str, bytes]:
    """Part of the set -> its line for a picture; ``rect`` has its last pixel inside."""
    height, width = picture.size
    boxes = [(item.box, name) for item, name in objects]
    labels = [{"class": name, "rect": [x1, y1, x2 - 1, y2 - 1], "conf": 1.0} for (x1, y1, x2, y2), name in boxes]
    columns = {
        "img": base64.b64encode(data).decode(),
        "label": json.dumps(labels),
        "hw": json.dumps([{"height": height, "width": width}]),
    }
    return {part: f"{picture.number}\t{text}\n".encode() for part, text in columns.items()}
