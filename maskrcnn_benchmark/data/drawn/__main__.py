"""``python -m maskrcnn_benchmark.data.drawn``: write drawn pictures with annotations as a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from maskrcnn_benchmark.data.drawn.forms import FORMS
from maskrcnn_benchmark.data.drawn.sheet import contact_sheet
from maskrcnn_benchmark.data.drawn.vocabulary import CLASSES, NEVER_SEEN, NEW_SHAPE, Mix, Split
from maskrcnn_benchmark.data.drawn.world import MOST, World
from maskrcnn_benchmark.errors import ConfigError, UserError

SHOWN = 24  # pictures on the contact sheet
EPILOG = f"""
forms
  coco       instances with boxes and masks: annotations.json
  lvis       the same as LVIS v1, with frequencies and classes known to be absent: annotations.json
  flickr     captions with phrases: final_flickr_separateGT_SPLIT.json, and entities/ as Flickr30k Entities
  mixed      sentences that list referring expressions, in MDETR's JSON: final_mixed_SPLIT.json
  refcoco    referring expressions in MDETR's JSON: finetune_refcoco_SPLIT.json
  phrasecut  phrases with masks: VGPhraseCut_v0/ and finetune_phrasecut_SPLIT.json
  voc        PASCAL VOC: Annotations/, ImageSets/, JPEGImages/
  tsv        tab-separated files as of Objects365: SPLIT.yaml
  labels     a folder of pictures for each class, and image_info.json

splits (no picture of one is in another, whatever the seed)
  train, seen   pairs of a colour and a shape, to train on and to test on
  unseen        pairs that train never has: {", ".join(NEVER_SEEN)}
  new           a shape that train never has, in every colour: {NEW_SHAPE}

examples
  python -m maskrcnn_benchmark.data.drawn --out data/drawn --form coco --count 100 --seed 1
  python -m maskrcnn_benchmark.data.drawn --out data/words --form flickr --count 1000 --split seen --sheet
  python -m maskrcnn_benchmark.data.drawn --out data/few --form voc --count 50 --classes "red circle" star

The last lines that are printed are what DATASETS.REGISTER of a config may say of the set.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """
    Raises:
        UserError: something that was asked for cannot be.
    """
    args = _parser().parse_args(argv)
    out = Path(args.out)
    if args.count < 1:
        raise ConfigError(f"--count {args.count}: draw at least one picture")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {args.out!r} exists and is not an empty folder: choose another one")
    world = World(args.seed, Split(args.split), tuple(args.size), args.classes, Mix(args.mix), args.most, args.also)
    try:
        written = FORMS[args.form](out, world, args.count)
        if args.sheet:
            contact_sheet(list(world.pictures(min(args.count, SHOWN)))).save(out / "sheet.png")
    except OSError as error:
        raise ConfigError(f"--out {args.out!r} cannot be written to ({error.strerror}): choose another one") from None
    print(f"{', '.join(f'{number} {what}' for what, number in written.counts.items())}: {written.annotations}")
    if written.entry:
        print(yaml.safe_dump({f"drawn_{args.split}": written.entry}, sort_keys=False, default_flow_style=None), end="")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m maskrcnn_benchmark.data.drawn",
        description="Draw pictures of coloured shapes and write them, with annotations, as a data set. Equal options "
        "give equal bytes on every machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write into; new or empty")
    parser.add_argument("--form", choices=FORMS, default="coco", help="which kind of data set (default: %(default)s)")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one, other pictures (default: %(default)s)")
    parser.add_argument(
        "--split", choices=[split.value for split in Split], default="train", help="what is drawn (default: train)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"), help="of a picture (default: 256 256)"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help=f"what is annotated: pairs or shapes, such as {CLASSES[0]!r} or star (default: all pairs of the split)",
    )
    parser.add_argument(
        "--also",
        nargs="+",
        default=(),
        metavar="NAME",
        help="annotated too, but no picture is about them (default: none)",
    )
    parser.add_argument(
        "--mix",
        choices=[mix.value for mix in Mix],
        default=Mix.EVEN.value,
        help="all classes equally often, or as in LVIS (default: even)",
    )
    parser.add_argument(
        "--most", type=int, default=MOST, metavar="N", help="things in a picture, at most (default: %(default)s)"
    )
    parser.add_argument("--sheet", action="store_true", help=f"also sheet.png with the first {SHOWN} pictures")
    return parser


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
