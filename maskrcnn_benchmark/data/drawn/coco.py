"""Drawn scenes as a data set in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_benchmark.data.drawn.paint import Painting, paint
from maskrcnn_benchmark.data.drawn.scene import CLASSES, make_scene

SMALLEST = 0.25  # least visible part of a thing, of its whole, that is annotated


def write_coco(
    folder: str | Path,
    count: int,
    seed: int = 0,
    size: tuple[int, int] = (240, 320),
    classes: Sequence[str] = CLASSES,
) -> Path:
    """Draw ``count`` scenes into ``folder``; equal arguments give equal files.

    Args:
        folder: Gets ``scene_0001.png`` ... and ``annotations.json``.
        count: How many pictures; a longer set begins with the pictures of a shorter one.
        seed: Another one, other pictures.
        size: (h, w) in pixels.
        classes: Names such as "red circle"; their order gives the category ids, from 1.

    Returns:
        The annotation file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        rng = np.random.default_rng((seed, number))
        painting = paint(make_scene(rng, size, classes, first=classes[(number - 1) % len(classes)]))
        file = f"scene_{number:04d}.png"
        painting.image.save(folder / file)
        images.append({"id": number, "file_name": file, "height": size[0], "width": size[1]})
        for row in _rows(painting, classes):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **row})
    categories = [{"id": i, "name": name, "supercategory": name.split()[-1]} for i, name in enumerate(classes, 1)]
    path = folder / "annotations.json"
    info = {"description": f"drawn scenes, seed {seed}"}
    data = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def _rows(painting: Painting, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Annotations of the things that have a class and can be seen."""
    rows = []
    for index, thing in enumerate(painting.scene.things):
        box, area = painting.box(index), int(painting.masks[index].sum())
        if thing.name not in classes or box is None or area < SMALLEST * thing.radius**2:
            continue
        x1, y1, x2, y2 = box
        category = list(classes).index(thing.name) + 1
        rows.append({"category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0})
    return rows
