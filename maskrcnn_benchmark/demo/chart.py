"""A line chart as SVG, for pages that load nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40
LINES = 4  # of the grid, above the axis
COLOURS = ("var(--line-1)", "var(--line-2)", "var(--line-3)", "var(--line-4)")

Points = Sequence[tuple[float, float]]


def line_chart(title: str, curves: Mapping[str, Points], across: str) -> str:
    """An ``<svg>`` with a line for each name, and the names below it; colours are ``--line-1`` ... of the page.

    Args:
        title: What it shows, for those who do not see it.
        curves: At most four: name -> (x, y).
        across: What the x axis counts.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    top = _round_up(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + (1 - y / top) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for step in range(LINES + 1):
        value = top * step / LINES
        y = place(first, value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{value:g}</text>')
    for step in range(LINES + 1):
        value = first + (last - first) * step / LINES
        x = place(value, 0)[0]
        anchor = "end" if step == LINES else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 20}" text-anchor="{anchor}">{value:.0f}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(across)}</text>')
    for colour, curve in zip(COLOURS, curves.values(), strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
    names = "".join(
        f'<li><i style="background:{colour}"></i>{escape(name)}</li>'
        for colour, name in zip(COLOURS, curves, strict=False)
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'<figure class="chart">{svg}<ul>{names}</ul></figure>'


def _round_up(value: float) -> float:
    """The next of 1, 2, 4 and 8 times a power of ten, so that a grid of four lines has short numbers."""
    power = 1e-6
    while power < value:
        for step in (1, 2, 4, 8):
            if power * step >= value:
                return power * step
        power *= 10
    return power
