"""A contact sheet of pictures, their class activation maps and the boxes from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from maskrcnn_benchmark.demo.draw import colour_of, draw_boxes, font_for

SIDE = (300, 225)  # w, h of a picture
COLUMNS = 3  # of pairs
LINE = 20  # height of the text below a pair
GAP = 6
HEAT = ((0, 0, 96), (0, 96, 255), (0, 220, 160), (255, 220, 0), (220, 0, 0))  # of values 0, 0.25, ... 1


@dataclass(frozen=True)
class Cell:
    """A picture on the sheet."""

    picture: Image.Image  # RGB
    values: np.ndarray  # (rows, columns) of the map, 0 to 1
    side: float  # of a cell of the map, in pixels of the picture
    boxes: Sequence[Sequence[float]]  # x1, y1, x2, y2 in pixels of the picture
    name: str  # of its class


def cam_sheet(cells: Sequence[Cell]) -> Image.Image:
    """Pairs of the picture under its map, and the picture with its boxes."""
    width, height = 2 * SIDE[0] + 3 * GAP, SIDE[1] + LINE + GAP
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (width * min(COLUMNS, len(cells)), height * rows), "white")
    for index, cell in enumerate(cells):
        x, y = index % COLUMNS * width + GAP, index // COLUMNS * height + GAP
        scale = min(SIDE[0] / cell.picture.width, SIDE[1] / cell.picture.height)
        size = (max(1, round(cell.picture.width * scale)), max(1, round(cell.picture.height * scale)))
        small = cell.picture.resize(size)
        boxes = [[value * scale for value in box] for box in cell.boxes]
        colours = [colour_of(number) for number in range(len(boxes))]
        texts = [(str(number), "") for number in range(1, len(boxes) + 1)]
        sheet.paste(heated(small, cell.values, cell.side * scale), (x, y))
        sheet.paste(draw_boxes(small, boxes, texts, colours), (x + SIDE[0] + GAP, y))
        told = f"{cell.name} ({len(boxes)})"
        pen = ImageDraw.Draw(sheet)
        pen.text((x + 2, y + SIDE[1] + LINE // 2), told, fill="black", font=font_for(told, 13), anchor="lm")
    return sheet


def heated(picture: Image.Image, values: np.ndarray, side: float) -> Image.Image:
    """A picture under the colours of a map whose cells have ``side`` pixels of it; the map may reach beyond it."""
    rows, columns = values.shape
    size = max(1, round(columns * side)), max(1, round(rows * side))
    smooth = Image.fromarray(np.asarray(values, dtype=np.float32)).resize(size, Image.Resampling.BILINEAR)
    cut = np.asarray(smooth.crop((0, 0, *picture.size)))
    places = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(cut, places, [row[channel] for row in HEAT]) for channel in range(3)], axis=-1)
    return Image.blend(picture.convert("RGB"), Image.fromarray(colours.astype(np.uint8)), 0.55)
