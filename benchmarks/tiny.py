#!/usr/bin/env python3
"""Measure the tiny FIBER on drawn test sets beside what it should reach: 1,000 pictures of each, some minutes.

    python benchmarks/tiny.py
    python benchmarks/tiny.py --count 100 --weight OUTPUT/tiny/model_final.pth --skip-tuning

Numbers: AP50 of pairs of colour and shape that were in training and of pairs that were not; P@1 of referring
expressions (generalised IoU of at least 0.5) in all and by kind; the share of all scores that goes to absent things
when each picture is asked for what is in it and for as many things that are not; AP50 of the arrow, a shape that was
not in training, asked for among all ten shapes, before and after learning it from three pictures, and what AP50 of the
trained pairs loses by that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.demo import measure, sets
from maskrcnn_benchmark.engine.log import setup_logging
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.evaluation.report import table

SEED = 1001


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=measure.CONFIG, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--weight", default=measure.WEIGHT, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=1000, help="pictures of each set (default %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the pictures (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("OUTPUT/tiny_measured"), help="default: %(default)s")
    parser.add_argument("--skip-tuning", action="store_true", help="zero-shot numbers only")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=cli.OPTS_HELP)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    if args.output.is_dir() and any(args.output.iterdir()):
        raise ConfigError(f"--output {str(args.output)!r} is not empty: choose another folder")
    load_cfg(args.config_file, opts=args.opts)  # mistakes show before anything is drawn
    setup_logging()
    subject = measure.Subject(args.config_file, args.weight, tuple(args.opts))
    start = time.perf_counter()
    drawn = sets.draw_sets(args.output / "data", args.count, args.seed)
    tasks = sets.write_tasks(args.output / "tasks", drawn)
    scores = measure.score(subject, tasks, args.output / "scores")
    absent = measure.ask_absent(subject.predictor(), drawn[sets.RETAINED].annotations, args.seed)
    tuned = None if args.skip_tuning else measure.tune(subject, tasks[sets.TUNED], args.output / "tuned")
    numbers = measure.as_rows(scores, absent, tuned)
    (args.output / "numbers.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    print(beside_targets(scores, absent, tuned))
    seconds = time.perf_counter() - start
    print(f"{args.count} pictures of each set, {seconds:.0f} s; all numbers: {args.output / 'numbers.json'}")


def beside_targets(scores: dict[str, dict[str, float]], absent: measure.Absent, tuned: measure.Tuned | None) -> str:
    """What was measured, what it should be, and whether it is."""
    kinds = measure.precision_by_kind(scores["expressions"])
    rows: list[list[object]] = [
        goal("AP50, pairs seen in training", scores[sets.RETAINED]["AP50"], 0.85),
        goal("AP50, pairs never seen", scores["never_seen"]["AP50"], 0.65),
        goal("P@1, referring expressions", kinds.pop("all"), 0.75),
        *([f"  {kind}", value, "", ""] for kind, value in kinds.items()),
        goal("share of scores, absent things", absent.share, 0.05, most=True),
    ]
    if tuned is not None:
        rows += [
            [f"AP50, arrow, before {sets.SHOTS} shots", tuned.AP50[0], "", ""],
            [f"AP50, arrow, after {sets.SHOTS} shots", tuned.AP50[1], "", ""],
            goal("  gain", tuned.gain, 0.30),
            goal("  loss of AP50, pairs seen in training", tuned.loss, 0.03, most=True),
            ["  loss of AP, pairs seen in training", tuned.retained_AP[0] - tuned.retained_AP[1], "", ""],
        ]
    return table(["", "measured", "target", "reached"], rows)


def goal(name: str, value: float | None, target: float, most: bool = False) -> list[object]:
    """A row of the table; nothing was measured where there is no value."""
    reached = value is not None and (value <= target if most else value >= target)
    shown = "-" if value is None else value
    return [name, shown, f"{'<=' if most else '>='} {target:g}", "yes" if reached else "no"]


if __name__ == "__main__":
    sys.exit(cli.run(main))
