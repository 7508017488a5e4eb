"""Small VOC folders for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

OBJECT = """
  <object>
    <name>{name}</name>{difficult}
    <bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
  </object>"""
SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def voc_object(name: str, *box: float, difficult: int | None = 0) -> str:
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return OBJECT.format(*box, name=name, difficult=flag)


def write_voc(folder: Path, objects: Mapping[str, Sequence[str]], size: str = SIZE, split: str = "test") -> Path:
    """Pictures of 40 x 30 pixels with these objects; all in one split."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, rows in objects.items():
        text = f"<annotation><filename>{name}.jpg</filename>{size}{''.join(rows)}\n</annotation>\n"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
        Image.new("RGB", (40, 30), "grey").save(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in objects))
    return folder
