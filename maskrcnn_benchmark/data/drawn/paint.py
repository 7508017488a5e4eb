"""Paint for drawn scenes: grounds, textures, light and shadow, grain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from maskrcnn_benchmark.data.drawn.scene import Scene, Thing

FINER = 4  # outlines are drawn so many times larger, for smooth edges
SHADOW = 0.14  # reach of a shadow, in radii of the thing

Array = np.ndarray
Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels; may reach beyond the picture


@dataclass(frozen=True)
class Painting:
    """A picture of a scene, and what can be seen of each of its things."""

    scene: Scene
    image: Image.Image
    masks: tuple[Array, ...]  # per thing (h, w) bool: the part that nothing covers

    def box(self, index: int) -> tuple[int, int, int, int] | None:
        """x1, y1, x2, y2 around the visible part of a thing (last row and column not in it); None: nothing visible."""
        rows, columns = (np.flatnonzero(self.masks[index].any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def paint(scene: Scene) -> Painting:
    """Paint a scene, back to front."""
    rng = np.random.default_rng(scene.seed)
    canvas = _ground(scene, rng)
    _strew(canvas, rng)
    light = rng.uniform(0, 2 * np.pi)
    seen: list[Array] = []
    for thing in scene.things:
        window = _window(thing)
        cover, rim = _coverage(thing, window)
        colour = _colour(thing, window, light, rng) * (1 - 0.35 * rim[..., None])
        inside, part = _overlap(window, scene.size)
        canvas[inside] *= 1 - 0.38 * _shadow(cover, light, SHADOW * thing.radius)[part][..., None]
        alpha = np.zeros(scene.size)
        alpha[inside] = cover[part]
        canvas[inside] += (colour[part] - canvas[inside]) * cover[part][..., None]
        seen = [other * (1 - alpha) for other in seen] + [alpha]
    image = _picture(_finish(canvas, rng))
    return Painting(scene, image, tuple(alpha > 0.5 for alpha in seen))


def _picture(canvas: Array) -> Image.Image:
    return Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))


def _grid(window: Window) -> tuple[Array, Array]:
    """x and y of the centre of each pixel of a window."""
    y, x = np.mgrid[window[1] : window[3], window[0] : window[2]]
    return x + 0.5, y + 0.5


def _ground(scene: Scene, rng: Generator) -> Array:
    """(h, w, 3) 0..255: a muted pattern under soft light."""
    h, w = scene.size
    x, y = _grid((0, 0, w, h))
    pattern = np.zeros((h, w))
    if scene.setting == "clouds":
        pattern = _clouds(rng, scene.size, 5)
    elif scene.setting == "planks":
        across = (x * np.cos(0.1) + y * np.sin(0.1)) / (w * rng.uniform(0.1, 0.2))
        board = np.floor(across).astype(int)
        tone = rng.normal(0, 0.8, board.max() - board.min() + 1)[board - board.min()]
        pattern = tone + 0.4 * _clouds(rng, scene.size, 12) - 1.8 * (np.abs(across % 1 - 0.5) > 0.48)
    elif scene.setting == "tiles":
        pitch = min(h, w) * rng.uniform(0.14, 0.25)
        joint = (np.minimum(x % pitch, y % pitch) < max(1.0, 0.04 * pitch)).astype(float)
        pattern = 0.6 * ((x // pitch + y // pitch) % 2) - 1.6 * joint
    elif scene.setting == "speckles":
        pattern = (rng.random((h, w)) > 0.965) * rng.choice([-2.0, 1.5], (h, w))
    sweep = _clouds(rng, scene.size, 2)
    tint = rng.normal(0, 0.3, 3)
    return np.array(scene.ground) + 11 * pattern[..., None] + 9 * sweep[..., None] * (1 + tint)


def _clouds(rng: Generator, size: tuple[int, int], cells: int) -> Array:
    """(h, w) smooth noise of deviation about 1, ``cells`` blobs across."""
    coarse = Image.fromarray(rng.normal(0, 1, (cells + 1, cells + 2)).astype(np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC), dtype=np.float64)


def _strew(canvas: Array, rng: Generator) -> None:
    """Straws and pebbles in the colours of the ground: things of no name."""
    h, w = canvas.shape[:2]
    plane = Image.new("L", (w * 2, h * 2), 128)
    pen = ImageDraw.Draw(plane)
    for _ in range(rng.integers(0, 9)):
        x, y = rng.uniform(0, 2 * w), rng.uniform(0, 2 * h)
        tone, reach, turn = int(rng.choice([70, 95, 165, 190])), rng.uniform(0.02, 0.12) * min(h, w), rng.uniform(0, 7)
        if rng.random() < 0.5:
            dx, dy = 2 * reach * np.cos(turn), 2 * reach * np.sin(turn)
            pen.line([(x, y), (x + dx, y + dy)], fill=tone, width=max(1, round(0.012 * min(h, w))))
        else:
            rx, ry = 0.3 * reach, 0.3 * reach * rng.uniform(0.5, 0.9)
            pen.ellipse([x - rx, y - ry, x + rx, y + ry], fill=tone)
    canvas += 0.6 * (np.asarray(plane.reduce(2), dtype=np.float64) - 128)[..., None]


def _window(thing: Thing) -> Window:
    """The pixels that a thing and its shadow may touch."""
    reach = 4 * SHADOW * thing.radius + 4
    low = np.floor(thing.outline.min(axis=0) - reach).astype(int)
    high = np.ceil(thing.outline.max(axis=0) + reach).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _overlap(window: Window, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a window that is in the picture: slices of the picture, and slices of the window."""
    x1, y1, x2, y2 = window
    top, bottom, left, right = max(0, y1), min(size[0], y2), max(0, x1), min(size[1], x2)
    return (slice(top, bottom), slice(left, right)), (slice(top - y1, bottom - y1), slice(left - x1, right - x1))


def _coverage(thing: Thing, window: Window) -> tuple[Array, Array]:
    """0..1 each over the window: how much of a pixel the thing takes, and how much of that is its rim."""
    size = ((window[2] - window[0]) * FINER, (window[3] - window[1]) * FINER)
    points = [(x, y) for x, y in ((thing.outline - window[:2]) * FINER - 0.5).tolist()]
    body, rim = Image.new("L", size), Image.new("L", size)
    ImageDraw.Draw(body).polygon(points, fill=255)
    width = max(2, round(0.12 * thing.radius * FINER))
    ImageDraw.Draw(rim).line([*points, *points[:2]], fill=255, width=width, joint="curve")
    cover, edge = (np.asarray(plane.reduce(FINER), dtype=np.float64) / 255 for plane in (body, rim))
    return cover, edge


def _shadow(cover: Array, light: float, reach: float) -> Array:
    """0..1 over the window: the thing's soft shadow, away from the light."""
    shift = (round(-reach * np.sin(light)), round(-reach * np.cos(light)))
    moved = Image.fromarray((255 * np.roll(cover, shift, axis=(0, 1))).astype(np.uint8))
    return np.asarray(moved.filter(ImageFilter.GaussianBlur(max(0.6, reach))), dtype=np.float64) / 255


def _colour(thing: Thing, window: Window, light: float, rng: Generator) -> Array:
    """(h, w, 3) 0..255 over the window: the thing's surface, without its edge."""
    x, y = _grid(window)
    x, y = (x - thing.centre[0]) / thing.radius, (y - thing.centre[1]) / thing.radius
    u, v = x * np.cos(thing.angle) + y * np.sin(thing.angle), y * np.cos(thing.angle) - x * np.sin(thing.angle)
    pitch = rng.uniform(0.36, 0.52)
    towards_light = x * np.cos(light) + y * np.sin(light)
    tone = 0.06 * towards_light
    if thing.texture == "shaded":
        tone = 0.22 * towards_light
    elif thing.texture == "striped":
        tone = tone - 0.26 * ((u / pitch) % 1 < 0.45)
    elif thing.texture == "dotted":
        tone = tone - 0.28 * (np.hypot((u / pitch) % 1 - 0.5, (v / pitch) % 1 - 0.5) < 0.28)
    elif thing.texture == "checked":
        tone = tone - 0.22 * ((np.floor(u / pitch) + np.floor(v / pitch)) % 2)
    lighter, darker = np.clip(tone, 0, 1)[..., None], np.clip(1 + tone, 0, 1)[..., None]
    colour = np.array(thing.rgb) * darker
    return colour + (255 - colour) * lighter


def _finish(canvas: Array, rng: Generator) -> Array:
    """Lens and sensor: sometimes a little out of focus, always some grain."""
    if rng.random() < 0.3:
        soft = _picture(canvas).filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.8)))
        canvas = np.asarray(soft, dtype=np.float64)
    exposure = rng.uniform(0.9, 1.07)
    return canvas * exposure + rng.normal(0, rng.uniform(1.0, 4.5), canvas.shape)
