"""A drawn world: endless seeded pictures of coloured shapes, with boxes, masks and words (docs/drawn_world.md)."""

from maskrcnn_benchmark.data.drawn.captions import Caption, captions
from maskrcnn_benchmark.data.drawn.forms import FORMS, Written, write_coco
from maskrcnn_benchmark.data.drawn.vocabulary import CLASSES, NEVER_SEEN, NEW_SHAPE, Mix, Split
from maskrcnn_benchmark.data.drawn.words import Expression, Phrase, expressions, phrases
from maskrcnn_benchmark.data.drawn.world import Item, Picture, World

__all__ = [
    "CLASSES",
    "FORMS",
    "NEVER_SEEN",
    "NEW_SHAPE",
    "Caption",
    "Expression",
    "Item",
    "Mix",
    "Phrase",
    "Picture",
    "Split",
    "World",
    "Written",
    "captions",
    "expressions",
    "phrases",
    "write_coco",
]
