"""Many drawn pictures on one, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from maskrcnn_benchmark.data.drawn.paint import Pixels
from maskrcnn_benchmark.data.drawn.world import Picture

GAP = 4  # pixels between pictures
MARK, WHITE = (0, 255, 255), (255, 255, 255)
CORNER = 5  # pixels of a corner of a box


def contact_sheet(pictures: Sequence[Picture], columns: int = 6) -> Image.Image:
    """Pictures of one size side by side, with the borders of the masks and the corners of the boxes marked."""
    height, width = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for place, picture in enumerate(pictures):
        corner = (place % columns * (width + GAP), place // columns * (height + GAP))
        sheet.paste(Image.fromarray(_marked(picture)), corner)
    return sheet


def _marked(picture: Picture) -> Pixels:
    pixels = picture.pixels.copy()
    for item in picture.items:
        padded = np.pad(item.mask, 1)
        inner = padded[1:-1, :-2] & padded[1:-1, 2:] & padded[:-2, 1:-1] & padded[2:, 1:-1]
        pixels[item.mask & ~inner] = MARK
        x1, y1, x2, y2 = item.box
        for y in (y1, y2 - 1):
            pixels[y, x1 : x1 + CORNER] = pixels[y, x2 - CORNER : x2] = WHITE
        for x in (x1, x2 - 1):
            pixels[y1 : y1 + CORNER, x] = pixels[y2 - CORNER : y2, x] = WHITE
    return pixels
