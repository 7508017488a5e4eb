"""``python -m maskrcnn_benchmark.data.drawn.tokenizer``: a vocabulary for what is said about the drawn world."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskrcnn_benchmark.data.drawn.captions import captions
from maskrcnn_benchmark.data.drawn.words import expressions
from maskrcnn_benchmark.data.drawn.world import World
from maskrcnn_benchmark.text.train_tokenizer import train_tokenizer

PICTURES = 1499
VOCABULARY = 600  # at most; the world has not so many words
NAMES = 20  # how often the class names are read


def texts(world: World) -> Iterator[str]:
    """Captions, referring expressions and class names, as training reads them."""
    for picture in world.pictures(PICTURES):
        yield from (caption.text for caption in captions(picture, 3, picture.dice))
        yield from (expression.text for expression in expressions(picture, picture.dice))
    yield from [". ".join(world.classes)] * NAMES


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m maskrcnn_benchmark.data.drawn.tokenizer",
        description="Learn a small vocabulary from texts about drawn pictures; equal seeds give equal files.",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the files")
    parser.add_argument("--seed", type=int, default=7, help="of the pictures (default: %(default)s)")
    args = parser.parse_args(argv)
    # the size of the pictures is part of what is said about them
    print(train_tokenizer(texts(World(args.seed, size=(96, 96))), args.out, VOCABULARY))


if __name__ == "__main__":
    main()
