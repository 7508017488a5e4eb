"""Pictures of numbers over steps, such as of how a training went, by its ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from maskrcnn_benchmark.engine.journal import METRICS

WIDTH, HEIGHT = 900, 300  # of a panel, pixels
LEFT, RIGHT, TOP, BOTTOM = 70, 230, 30, 30  # margins of a panel
INK, GRID = (40, 40, 40), (225, 225, 225)
COLOURS = (
    (0, 0, 0),
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (127, 127, 127),
)
Points = list[tuple[float, float]]  # (step, value)


def draw_curves(folder: Path) -> Path | None:
    """Losses and learning rate over the steps, as ``curves.png`` beside ``metrics.jsonl``; None where that is empty."""
    file = folder / METRICS
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    losses = {name: series(rows, name) for name in _names(rows) if name.startswith("loss")}
    rate = {"lr": series(rows, "lr")}
    if not rows:
        return None
    return draw_panels(folder / "curves.png", {"losses": losses, "learning rate of the fastest group": rate})


def draw_panels(path: Path, panels: Mapping[str, Mapping[str, Points]]) -> Path:
    """A picture of diagrams one below the other, with one axis of steps: title -> name of a curve -> its points."""
    image = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), "white")
    draw = ImageDraw.Draw(image)
    steps = [step for curves in panels.values() for points in curves.values() for step, _ in points]
    for number, (title, curves) in enumerate(panels.items()):
        _panel(draw, number * HEIGHT, title, curves, max(steps, default=0.0))
    image.save(path)
    return path


def _names(rows: Sequence[Mapping[str, float]]) -> list[str]:
    return sorted({name for row in rows for name in row})


def series(rows: Sequence[Mapping[str, float | None]], name: str) -> Points:
    """(step, value) of the rows that have a value of this name."""
    return [(float(row["step"] or 0), float(value)) for row in rows if (value := row.get(name)) is not None]


def _panel(draw: ImageDraw.ImageDraw, top: int, title: str, curves: Mapping[str, Points], last: float) -> None:
    """One diagram, its axes and its legend."""
    values = [value for points in curves.values() for _, value in points] or [0.0]
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(step: float, value: float) -> tuple[float, float]:
        return LEFT + width * step / max(last, 1), top + TOP + height * (1 - (value - low) / (high - low))

    draw.text((LEFT, top + 8), title, fill=INK)
    for share in (0, 0.25, 0.5, 0.75, 1):
        value, step = low + share * (high - low), share * last
        draw.line([place(0, value), place(last, value)], fill=GRID)
        draw.text((8, place(0, value)[1] - 6), f"{value:.3g}", fill=INK)
        draw.text((place(step, low)[0] - 8, top + HEIGHT - BOTTOM + 8), f"{step:.0f}", fill=INK)
    draw.line([place(0, high), place(0, low), place(last, low)], fill=INK)
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        spots = [place(*point) for point in points]
        if len(spots) > 1:
            draw.line(spots, fill=colour, width=2)
        elif spots:
            x, y = spots[0]
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        y = top + TOP + 16 * i
        draw.line([(WIDTH - RIGHT + 15, y + 6), (WIDTH - RIGHT + 35, y + 6)], fill=colour, width=2)
        draw.text((WIDTH - RIGHT + 42, y), name, fill=INK)
