"""Small COCO data sets on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (24, 32)  # h, w


def coco(images: int = 3) -> dict[str, Any]:
    """Pictures 1, 2, ... with a cup (id 3) and a jar (id 7) each."""
    height, width = SIZE
    rows = []
    for image in range(1, images + 1):
        boxes = [(3, [4, 5, 10, 8]), (7, [20, 2, 6.5, 12])]
        rows += [{"image_id": image, "category_id": category, "bbox": box, "iscrowd": 0} for category, box in boxes]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i in range(1, images + 1)],
        "annotations": [{"id": i, "area": 80, **row} for i, row in enumerate(rows, 1)],
        "categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "jar"}],
    }


def write(folder: Path, data: Any) -> Path:
    """The annotation file, and a grey picture of the stated size for each image."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in data["images"]:
        size = image.get("width", SIZE[1]), image.get("height", SIZE[0])
        Image.new("RGB", size, (100, 110, 120)).save(folder / image["file_name"])
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path
