"""What a training really sees: the pictures of a batch with their boxes, and the words that each box owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from maskrcnn_benchmark.data.transforms import Normalise
from maskrcnn_benchmark.demo.draw import colour_of, draw_boxes, font_for, ink_on
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.text.tokenizer import Tokenizer

MOST, COLUMNS = 4, 2  # pictures shown, and beside each other
LARGEST = 800  # long side of a picture, pixels
GAP = 8  # pixels between pictures
TEXT_SIZE, MARGIN = 14, 6  # of the prompt
NO_WORDS = "(no words)"

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Seen:
    """Writes ``folder/step_0000020.png`` and so on.

    Attributes:
        folder: Made when there is something to write.
        period: Steps from one file to the next; 0: there are none.
        tokenizer: The network's; None: it reads no text.
        normalise: How the pictures were normalised.
        classes: Names of labels 1, 2, ..., where there is no text to tell them.
    """

    folder: Path
    period: int
    tokenizer: Tokenizer | None
    normalise: Normalise
    classes: Sequence[str] = ()

    def __call__(self, step: int, batch: Batch) -> None:
        """Draw the batch that step number ``step``, from 1, trains on, if it is its turn."""
        if not self.period or step % self.period:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        decode = self.tokenizer.decode if self.tokenizer is not None else _no_text
        sheet = draw_batch(batch, decode, self.normalise, self.classes)
        sheet.save(self.folder / f"step_{step:07d}.png")


def _no_text(ids: list[int]) -> str:
    return ""


def draw_batch(batch: Batch, decode: Decode, normalise: Normalise, classes: Sequence[str] = ()) -> Image.Image:
    """The first pictures of a batch, each above its prompt, where it has one.

    Boxes of the same words have the same colour, in the picture and in the prompt. Words are decoded from the tokens
    that go into the network: what is hidden from it shows as hidden, what was cut off is not there. What lies beyond a
    picture is padding, in the colour of the mean.

    Args:
        batch: As it goes into the network.
        decode: Token ids to text.
        normalise: How the pictures were normalised.
        classes: Names of labels 1, 2, ... for boxes without words.
    """
    pixels = normalise.undo(batch.images.pixels[:MOST].detach()).cpu()
    tiles = [_tile(batch, index, picture, decode, classes) for index, picture in enumerate(pixels)]
    rows = [tiles[first : first + COLUMNS] for first in range(0, len(tiles), COLUMNS)]
    widths = [max(tile.width for tile in tiles[column::COLUMNS]) + GAP for column in range(len(rows[0]))]
    heights = [max(tile.height for tile in row) + GAP for row in rows]
    sheet = Image.new("RGB", (sum(widths) - GAP, sum(heights) - GAP), "white")
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            sheet.paste(tile, (sum(widths[:column]), sum(heights[:number])))
    return sheet


def _tile(batch: Batch, index: int, pixels: Tensor, decode: Decode, classes: Sequence[str]) -> Image.Image:
    """Picture number ``index`` from (3, H, W) uint8, with its prompt below."""
    target = batch.targets[index]
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    scale = min(1.0, LARGEST / max(picture.size))
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    boxes = (target.boxes.detach().cpu() * scale).tolist()
    ids, owned = _words(batch, index)
    groups = list(dict.fromkeys(owned))  # boxes of the same tokens
    texts = [_text(decode, ids, tokens) for tokens in owned]
    colours = [colour_of(groups.index(tokens)) for tokens in owned]
    if batch.text is None:
        labels = target.labels.tolist()
        texts = [classes[label - 1] if 0 < label <= len(classes) else str(label) for label in labels]
        colours = [colour_of(label) for label in labels]
    picture = draw_boxes(picture, boxes, [(text, "") for text in texts], colours)
    owner = {token: colour_of(number) for number, tokens in reversed(list(enumerate(groups))) for token in tokens}
    prompt = _prompt([(decode([ids[i] for i in run]), colour) for colour, run in _runs(len(ids), owner)], picture.width)
    tile = Image.new("RGB", (picture.width, picture.height + prompt.height), "white")
    tile.paste(picture, (0, 0))
    tile.paste(prompt, (0, picture.height))
    return tile


def _words(batch: Batch, index: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """The tokens of a prompt, without padding, and which of them each box owns."""
    if batch.text is None:
        return [], [() for _ in range(len(batch.targets[index]))]
    length = int(batch.text.attention_mask[index].sum())
    ids = batch.text.input_ids[index, :length].tolist()
    owned = batch.targets[index].positive_map
    if owned is None:
        return ids, [() for _ in range(len(batch.targets[index]))]
    return ids, [tuple(torch.nonzero(row[:length] > 0).flatten().tolist()) for row in owned]


def _text(decode: Decode, ids: list[int], tokens: tuple[int, ...]) -> str:
    """Words of some tokens, a "/" where they do not follow each other."""
    parts = [[token for _, token in run] for _, run in groupby(enumerate(tokens), lambda pair: pair[1] - pair[0])]
    return " / ".join(decode([ids[token] for token in part]).strip() for part in parts) or NO_WORDS


def _runs(length: int, owner: dict[int, str]) -> list[tuple[str, list[int]]]:
    """Tokens that follow each other and have one colour; "" for those that no box owns."""
    return [(colour, list(run)) for colour, run in groupby(range(length), lambda token: owner.get(token, ""))]


def _prompt(pieces: list[tuple[str, str]], width: int) -> Image.Image:
    """Texts one after the other in lines, each on its colour."""
    words = [(word, colour) for text, colour in pieces for word in text.replace("\n", " ").split(" ") if word]
    font = font_for("".join(word for word, _ in words), TEXT_SIZE)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    x, y, step = float(MARGIN), MARGIN, TEXT_SIZE + MARGIN
    places = []
    for word, colour in words:
        wide = pen.textlength(word, font=font) + 2
        if x > MARGIN and x + wide > width - MARGIN:
            x, y = MARGIN, y + step
        places.append((x, y, wide, word, colour))
        x += wide + MARGIN - 2
    picture = Image.new("RGB", (width, y + step), "white")
    pen = ImageDraw.Draw(picture)
    for x, y, wide, word, colour in places:
        if colour:
            pen.rectangle((x - 1, y - 1, x + wide, y + step - 3), fill=colour)
        pen.text((x, y + TEXT_SIZE / 2), word, fill=ink_on(colour) if colour else "black", font=font, anchor="lm")
    return picture
