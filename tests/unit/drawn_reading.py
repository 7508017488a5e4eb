"""Words of the drawn world read by rules of their own, from the boxes alone; and polygons as PhraseCut paints them."""

from __future__ import annotations

from itertools import pairwise

from PIL import Image, ImageDraw

from maskrcnn_benchmark.data.drawn import Item
from maskrcnn_benchmark.data.drawn.words import ORDINALS

SIDES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
WAYS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def true_of(item: Item, words: list[str]) -> bool:
    noun = {"cross": "cross", "crosses": "cross"}.get(words[-1], words[-1].removesuffix("s"))
    return item.shape == noun and set(words[:-1]) <= {item.colour, item.texture, item.size}


def middle(item: Item, axis: int) -> float:
    return (item.box[axis] + item.box[axis + 2]) / 2


def referents(text: str, items: tuple[Item, ...]) -> list[int]:
    """The things that an expression can be about, by what its words mean."""
    words = text.removeprefix("the ")
    for way, (axis, sign) in WAYS.items():
        if f" {way} the " in words:
            thing, anchor = words.split(f" {way} the ")
            anchors = [item for item in items if true_of(item, anchor.split())]
            assert len(anchors) == 1, text
            alike = [index for index, item in enumerate(items) if true_of(item, thing.split())]
            return [i for i in alike if sign * (middle(items[i], axis) - middle(anchors[0], axis)) > 0]
    for side, (axis, sign) in SIDES.items():
        first, _, rest = words.partition(" ")
        place, noun = None, rest
        if first in (f"{side}most", side):
            place = 0
        elif words.endswith(f" from the {side}"):
            place, noun = ORDINALS.index(first), rest.removesuffix(f" from the {side}")
        if place is not None:
            alike = [index for index, item in enumerate(items) if true_of(item, noun.split())]
            order = sorted(alike, key=lambda index: sign * middle(items[index], axis))
            gaps = [abs(middle(items[a], axis) - middle(items[b], axis)) for a, b in pairwise(order)]
            assert min(gaps) > 5, text
            return [order[place]]
    return [index for index, item in enumerate(items) if true_of(item, words.split())]


def draw_part(canvas: Image.Image, part: list[list[int]]) -> None:
    """As PhraseCut's evaluation paints a polygon, which leaves out those of one point."""
    if len(part) > 1:
        ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in part], outline=1, fill=1)
    else:
        canvas.putpixel(tuple(part[0]), 1)
