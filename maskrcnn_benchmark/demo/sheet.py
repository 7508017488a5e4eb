"""A contact sheet: small pictures of a data set with their boxes and class names."""

from __future__ import annotations

from PIL import Image, ImageDraw

from maskrcnn_benchmark.data.fewshot import pick
from maskrcnn_benchmark.data.forms.model import DataSet, Picture
from maskrcnn_benchmark.data.pictures import PictureError, read_picture
from maskrcnn_benchmark.demo.draw import colour_of, draw_boxes, font_for

CELL = (400, 300)  # w, h of a picture
COLUMNS = 4
LINE = 22  # height of the text below a picture
PAPER, INK = "white", "black"


def contact_sheet(data: DataSet, count: int = 24) -> Image.Image | None:
    """Pictures of every class, as far as they fit, and others spread over the data; None when none can be read.

    Args:
        data: From :func:`maskrcnn_benchmark.data.forms.read.read`.
        count: At most so many pictures.
    """
    colours = {name: colour_of(index) for index, name in enumerate(data.counts())}
    cells = [cell for split, picture in choose(data, count) if (cell := _cell(split, picture, colours)) is not None]
    if not cells:
        return None
    rows = -(-len(cells) // COLUMNS)
    width, height = CELL[0] + 8, CELL[1] + LINE + 8
    sheet = Image.new("RGB", (width * min(COLUMNS, len(cells)), height * rows), PAPER)
    for index, cell in enumerate(cells):
        sheet.paste(cell, (index % COLUMNS * width + 4, index // COLUMNS * height + 4))
    return sheet


def choose(data: DataSet, count: int) -> list[tuple[str, Picture]]:
    """(split, picture) of each class once, then of the whole data set at equal distances; in the order of the data."""
    every = [(split, picture) for split, pictures in data.splits.items() for picture in pictures]
    number = {name: index for index, name in enumerate(data.counts())}
    classes = [{number[thing.name] for thing in picture.things} for _, picture in every]
    chosen = pick(classes, shots=1)[:count]
    spread = [index * len(every) // count for index in range(count)]
    for index in dict.fromkeys(spread):
        if len(chosen) < count and index not in chosen:
            chosen.append(index)
    return [every[index] for index in sorted(chosen)]


def _cell(split: str, picture: Picture, colours: dict[str, str]) -> Image.Image | None:
    try:
        image, _ = read_picture(picture.file, picture.size)
    except PictureError:
        return None
    scale = min(CELL[0] / image.width, CELL[1] / image.height)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    boxes = [[value * scale for value in thing.box] for thing in picture.things]
    texts = [(thing.name, "") for thing in picture.things]
    cell = Image.new("RGB", (CELL[0], CELL[1] + LINE), PAPER)
    cell.paste(draw_boxes(small, boxes, texts, [colours[thing.name] for thing in picture.things]), (0, 0))
    told = f"{split}: {_shortened(picture.name)} ({len(picture.things)})"
    ImageDraw.Draw(cell).text((2, CELL[1] + LINE // 2), told, fill=INK, font=font_for(told, 13), anchor="lm")
    return cell


def _shortened(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"...{name[-most:]}"
