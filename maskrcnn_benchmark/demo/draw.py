"""Boxes with names and scores, drawn on a picture."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from maskrcnn_benchmark.structures import Detections

COLOURS = (
    *("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#ffe119", "#46f0f0"),
    *("#800000", "#808000", "#000075", "#bcf60c", "#fabebe", "#aaffc3", "#e6beff", "#ffd8b1", "#2f4f4f", "#ff7f50"),
)
"""Told apart at a glance; a label keeps its colour from picture to picture."""

FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "arial.ttf")
"""Tried in turn for names that Pillow's own font has no letters for."""

TINT = 0.5  # of a mask's colour, in its pixels

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2


def draw(image: Image.Image, detections: Detections, min_score: float = 0.0, top: int | None = None) -> Image.Image:
    """A copy of the picture with masks, boxes and ``name score`` beside them; the best lie on top.

    Args:
        image: The upright picture that the boxes belong to.
        detections: Boxes in its pixels.
        min_score: Leave out what scores lower.
        top: Draw at most so many.
    """
    chosen = detections.filter(min_score)[: top if top is None else max(0, top)]
    labels = [int(label) for label in chosen.labels]
    texts = [(chosen.name(index), f"{float(chosen.scores[index]):.2f}") for index in range(len(chosen))]
    colours = [colour_of(label - 1) for label in labels]
    if chosen.masks is not None:
        image = tinted(image, chosen.masks.numpy(), colours)
    return draw_boxes(image, chosen.boxes.tolist(), texts, colours)


def tinted(image: Image.Image, masks: npt.NDArray[np.bool_], colours: Sequence[str]) -> Image.Image:
    """A copy of the picture with the pixels of masks (N, h, w) half in their colours; the first lie on top."""
    canvas = image.convert("RGB")
    half = canvas.copy()
    for mask, colour in reversed(list(zip(masks, colours, strict=True))):
        whole = Image.new("RGB", canvas.size, colour)
        half.paste(Image.blend(canvas, whole, TINT), mask=Image.fromarray(mask.astype(np.uint8) * 255))
    return half


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[tuple[str, str]],
    colours: Sequence[str],
) -> Image.Image:
    """A copy of the picture with boxes and texts beside them; the first lie on top.

    Args:
        image: The picture.
        boxes: N times x1, y1, x2, y2 in its pixels.
        texts: Of each box, what may be shortened and what is kept whole after it ("": nothing).
        colours: Of each box.
    """
    canvas = image.convert("RGB")
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(min(canvas.size) / 220))
    size = max(9, round(min(canvas.size) / 32))
    inside = [_inside(box, canvas.size) for box in boxes]
    for box, colour in reversed(list(zip(inside, colours, strict=True))):
        pen.rectangle(box, outline=colour, width=line)
    taken: list[Rectangle] = []
    plates = []
    for box, text, colour in zip(inside, texts, colours, strict=True):  # the first choose their places first
        font = font_for(" ".join(text), size)
        shown, plate = _plate(pen, text, font, box, canvas.size, taken)
        taken.append(plate)
        plates.append((shown, font, plate, colour))
    for shown, font, plate, colour in reversed(plates):
        pen.rectangle(plate, fill=colour)
        pen.text((plate[0] + size // 4, (plate[1] + plate[3]) / 2), shown, fill=ink_on(colour), font=font, anchor="lm")
    return canvas


def colour_of(number: int) -> str:
    """Of the table, and for numbers beyond it ever other hues."""
    if 0 <= number < len(COLOURS):
        return COLOURS[number]
    label = number + 1
    rgb = colorsys.hsv_to_rgb(label * 0.618 % 1, 0.55 + 0.15 * (label % 4), 0.9 - 0.2 * (label % 3))
    return "#" + "".join(f"{round(255 * value):02x}" for value in rgb)


def ink_on(colour: str) -> str:
    """Black or white, what can be read on ``colour``."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _inside(box: Sequence[float], size: tuple[int, int]) -> Rectangle:
    """A box cut at the border of the picture, with its corners in order."""
    x1, x2 = (min(max(x, 0), size[0] - 1) for x in box[::2])
    y1, y2 = (min(max(y, 0), size[1] - 1) for y in box[1::2])
    return x1, y1, max(x1, x2), max(y1, y2)


def _plate(
    pen: ImageDraw.ImageDraw,
    text: tuple[str, str],
    font: Font,
    box: Rectangle,
    size: tuple[int, int],
    taken: list[Rectangle],
) -> tuple[str, Rectangle]:
    """The text, shortened to the picture's width, and where its background goes: in the picture, off other plates."""
    _, top, _, bottom = pen.textbbox((0, 0), "Ag", font=font)
    margin = (bottom - top) // 3 + 1
    shown = _shortened(pen, *text, font, size[0] - 2 * margin)
    width, height = pen.textlength(shown, font=font) + 2 * margin, bottom - top + margin
    first = None
    for x, y in _corners(box, width, height):
        x, y = max(0, min(x, size[0] - 1 - width)), max(0, min(y, size[1] - 1 - height))
        plate = (x, y, x + width, y + height)
        first = first or plate
        if not any(_meet(plate, other) for other in taken):
            return shown, plate
    assert first is not None
    return shown, first


def _corners(box: Rectangle, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Where a plate may have its upper left corner, the best place first."""
    x1, y1, x2, y2 = box
    above = y1 - height >= 0
    yield from [(x1, y1 - height), (x1, y1)] if above else [(x1, y1), (x1, y2)]
    yield from [(x2 - width, y1 - height), (x2 - width, y1)] if above else [(x2 - width, y1)]
    yield from [(x1, y2), (x1, y2 - height), (x2 - width, y2 - height)]
    yield from ((x1, y1 + step * height) for step in range(1, 9))


def _meet(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _shortened(pen: ImageDraw.ImageDraw, name: str, rest: str, font: Font, width: float) -> str:
    """Name and rest; the name cut with dots when they are wider than the picture."""
    text = f"{name} {rest}".rstrip()
    while name and pen.textlength(text, font=font) > width:
        name = name[:-1]
        text = f"{name}... {rest}".rstrip()
    return text


def font_for(text: str, size: int) -> Font:
    """Pillow's own font, or one of the machine when the text has other letters than those of Western Europe."""
    return _plain(size) if all(ord(letter) < 0x180 for letter in text) else _wide(size)


@cache
def _plain(size: int) -> Font:
    return ImageFont.load_default(size)


@cache
def _wide(size: int) -> Font:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return _plain(size)
