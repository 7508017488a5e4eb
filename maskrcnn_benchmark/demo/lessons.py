"""``python -m maskrcnn_benchmark.demo.lessons``: draw the pictures that the small FIBER is trained on.

Names of classes and of shapes, captions, referring expressions and lists of these, of mixed scenes. Beside them scenes
whose things all have one shape, where only the colour tells which name is meant, and scenes whose things all have one
colour.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.data.drawn import FORMS, Split, World
from maskrcnn_benchmark.data.drawn.vocabulary import NEW_SHAPE, SHAPES, allowed
from maskrcnn_benchmark.errors import ConfigError

SIZE = (160, 160)  # of a picture
SHAPE_SEED, COLOUR_SEED = 11, 21  # of the first shape and the first colour; the next ones follow
FEW = 500  # pictures of one shape or colour


@dataclass(frozen=True)
class Lesson:
    """Pictures in a form; equal values give equal files."""

    name: str
    form: str
    count: int
    seed: int
    classes: tuple[str, ...] | None = None

    def write(self, folder: Path) -> None:
        """Draw it into a folder of its name below ``folder``."""
        FORMS[self.form](folder / self.name, World(self.seed, Split.TRAIN, SIZE, self.classes), self.count)


def lessons() -> tuple[Lesson, ...]:
    """All that ``configs/tiny/fiber_tiny.yaml`` trains on."""
    return (
        Lesson("names", "tsv", 14000, 1),
        Lesson("captions", "flickr", 7000, 2),
        Lesson("expressions", "refcoco", 7000, 3),
        Lesson("lists", "mixed", 7000, 4),
        Lesson("shapes", "tsv", 7000, 5, tuple(shape for shape in SHAPES if shape != NEW_SHAPE)),
        *_alike("shape", 1, SHAPE_SEED),
        *_alike("colour", 0, COLOUR_SEED),
    )


def _alike(what: str, word: int, seed: int) -> Iterator[Lesson]:
    """A lesson for each word of that place in the names of pairs."""
    pairs = allowed(Split.TRAIN)
    for number, value in enumerate(sorted({pair.split()[word] for pair in pairs})):
        same = tuple(pair for pair in pairs if pair.split()[word] == value)
        yield Lesson(f"{what}_{value}", "tsv", FEW, seed + number, same)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m maskrcnn_benchmark.demo.lessons", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("DATASET/tiny"), help="new or empty (default %(default)s)")
    args = parser.parse_args(argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ConfigError(f"--out {str(args.out)!r} exists and is not an empty folder: choose another, or remove it")
    for lesson in tqdm(lessons(), desc="lessons", unit="set"):
        lesson.write(args.out)
    print(args.out)


if __name__ == "__main__":
    sys.exit(cli.run(main))
