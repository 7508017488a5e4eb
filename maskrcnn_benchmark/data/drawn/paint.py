"""Paint for drawn scenes, in whole numbers: grounds, textures, light and shadow, grain."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskrcnn_benchmark.data.drawn.dice import Dice
from maskrcnn_benchmark.data.drawn.scene import Scene, Sprite, Thing
from maskrcnn_benchmark.data.drawn.shapes import FULL, TURN, cover, rotation

SHADOW = 90  # darkness of a shadow, of 256

Ints = npt.NDArray[np.int32]
Pixels = npt.NDArray[np.uint8]  # (h, w, 3) RGB


def paint(scene: Scene, dice: Dice) -> Pixels:
    """Paint a scene, back to front."""
    canvas = _ground(scene, dice)
    _strew(canvas, dice)
    light = rotation(dice.between(0, 359))
    for thing, pixels in zip(scene.things, scene.sprites, strict=True):
        _shade(canvas, thing, pixels, light)
        inside, part = pixels.window(thing.centre, scene.size)
        cover_, colour = pixels.coverage.astype(np.int32)[part][..., None], _colour(thing, pixels, light, dice)[part]
        canvas[inside] += (colour - canvas[inside]) * cover_ // FULL
    return _finish(canvas, dice)


def _ground(scene: Scene, dice: Dice) -> Ints:
    """(h, w, 3) a muted pattern under uneven light."""
    h, w = scene.size
    x, y = np.arange(w, dtype=np.int32)[None], np.arange(h, dtype=np.int32)[:, None]
    pattern = np.zeros((h, w), dtype=np.int32)
    side = min(h, w)
    if scene.setting == "clouds":
        pattern = _clouds(dice.other("clouds"), scene.size, dice.between(3, 7)) // 5
    elif scene.setting == "planks":
        board = max(6, side * dice.between(10, 20) // 100)
        along, across = (y, x) if dice.chance(50) else (x, y)
        slanted = across + along * dice.between(-3, 3) // 16 + side
        tones = dice.other("boards").bytes(2 * (h + w) // board + 2).astype(np.int32) // 8 - 16
        pattern = tones[slanted // board] - 22 * (slanted % board < 1 + side // 150)
        pattern = pattern + _clouds(dice.other("grain"), scene.size, 12) // 12
    elif scene.setting == "tiles":
        pitch = max(8, side * dice.between(13, 26) // 100)
        joint = np.minimum((x + pitch // 2) % pitch, (y + pitch // 3) % pitch) < 1 + side // 120
        squares = ((x + pitch // 2) // pitch + (y + pitch // 3) // pitch) % 2
        pattern = dice.between(0, 12) * squares - 20 * joint
    elif scene.setting == "stripes":
        pitch = max(6, side * dice.between(6, 14) // 100)
        pattern = dice.between(7, 14) * ((x * dice.between(-2, 2) + y * dice.between(1, 3)) // (2 * pitch) % 2)
    elif scene.setting == "speckles":
        spots = dice.other("speckles").bytes(h, w)
        pattern = 20 * (spots > 250).astype(np.int32) - 26 * (spots < 7)
    sweep = _clouds(dice.other("sweep"), scene.size, 2) // dice.between(6, 12)
    tint = np.array([dice.between(200, 256) for _ in range(3)], dtype=np.int32)
    return np.array(scene.ground, dtype=np.int32) + pattern[..., None] + (sweep[..., None] * tint >> 8)


def _clouds(dice: Dice, size: tuple[int, int], cells: int) -> Ints:
    """(h, w) smooth noise, -128..127, ``cells`` blobs across."""
    values = dice.bytes(cells + 1, cells + 1).astype(np.int32) - 128
    for axis in (0, 1):
        place = np.arange(size[axis], dtype=np.int32) * (cells * 256) // size[axis]
        cell, part = place >> 8, place & 255
        weight = part * part * (768 - 2 * part) >> 16
        weight = weight[:, None] if axis == 0 else weight[None]
        values = values.take(cell, axis) * (256 - weight) + values.take(cell + 1, axis) * weight >> 8
    return values


def _strew(canvas: Ints, dice: Dice) -> None:
    """Straws and pebbles in the colours of the ground: things of no name."""
    h, w = canvas.shape[:2]
    side = min(h, w)
    for _ in range(dice.between(0, 10)):
        centre, angle = (dice.below(w), dice.below(h)), dice.below(360)
        tone = dice.pick((-52, -34, 30, 44))
        if dice.chance(55):
            long, thin = side * dice.between(20, 110), max(700, side * dice.between(4, 9))
            points = np.array([(-long, -thin), (long, -thin), (long, thin), (-long, thin)])
        else:
            reach = side * dice.between(8, 28)
            points = np.array([(reach * dice.between(6, 10) // 10 * x, reach * y) for x, y in _PEBBLE])
            points = points // 4
        cosine, sine = rotation(angle)
        turned = points @ np.array([[cosine, sine], [-sine, cosine]]) // TURN
        speck = Sprite(*cover(turned + 500))
        inside, part = speck.window(centre, (h, w))
        canvas[inside] += speck.coverage[part].astype(np.int32)[..., None] * tone // FULL


_PEBBLE = ((0, -3), (2, -3), (4, -1), (4, 1), (2, 3), (0, 4), (-3, 3), (-4, 1), (-3, -2))


def _shade(canvas: Ints, thing: Thing, pixels: Sprite, light: tuple[int, int]) -> None:
    """The soft shadow of a thing, away from the light."""
    reach = max(1, thing.radius // 9000)
    soft = np.pad(pixels.coverage.astype(np.int32), reach + 1)
    for axis in (0, 1):
        soft = np.roll(soft, reach // 2 + 1, axis) + soft + np.roll(soft, -(reach // 2 + 1), axis)
    shift = (-reach * light[0] // TURN, -reach * light[1] // TURN)
    shadow = Sprite(soft.astype(np.uint8), (pixels.first[0] - reach - 1, pixels.first[1] - reach - 1))
    centre = (thing.centre[0] + shift[0], thing.centre[1] + shift[1])
    inside, part = shadow.window(centre, (canvas.shape[0], canvas.shape[1]))
    dark = soft[part][..., None] * SHADOW // (9 * FULL)
    canvas[inside] -= canvas[inside] * dark >> 8


def _colour(thing: Thing, pixels: Sprite, light: tuple[int, int], dice: Dice) -> Ints:
    """(h, w, 3) the surface of a thing, with a darker rim."""
    h, w = pixels.coverage.shape
    x = np.arange(w, dtype=np.int32)[None] + pixels.first[0]
    y = np.arange(h, dtype=np.int32)[:, None] + pixels.first[1]
    cosine, sine = rotation(thing.angle + dice.pick((0, 45)))
    u, v = (cosine * x + sine * y) >> 14, (cosine * y - sine * x) >> 14
    reach = thing.radius // 1000
    pitch = max(4, reach * dice.between(36, 50) // 100)
    marks = np.zeros((h, w), dtype=bool)
    if thing.texture == "striped":
        marks = 2 * (u % pitch) < pitch
    elif thing.texture == "dotted":
        across, down = 2 * (u % pitch) + 1 - pitch, 2 * (v % pitch) + 1 - pitch
        marks = 9 * (across * across + down * down) < 4 * pitch * pitch
    elif thing.texture == "checked":
        marks = (u // pitch + v // pitch) % 2 == 1
    base = np.array(thing.rgb, dtype=np.int32)
    other = base + (250 - base) * 76 // 256 if base.sum() < 260 else base * 166 // 256
    colour = np.where(marks[..., None], other, base)
    tone = (light[0] * x + light[1] * y) // (TURN // 256) * dice.between(8, 38) // max(1, 256 * reach)
    colour = colour + colour * tone[..., None] // 256
    rim = _rim(pixels, max(1, reach // 14))[..., None]
    return np.clip(colour - colour * rim * 96 // (256 * FULL), 0, 255)


def _rim(pixels: Sprite, width: int) -> Ints:
    """(h, w) 0..FULL: what of a thing is near its border."""
    padded = np.pad(pixels.coverage, width).astype(np.int32)
    h, w = pixels.coverage.shape
    inner = pixels.coverage.astype(np.int32)
    for dy, dx in ((0, width), (2 * width, width), (width, 0), (width, 2 * width)):
        inner = np.minimum(inner, padded[dy : dy + h, dx : dx + w])
    return pixels.coverage - inner


def _finish(canvas: Ints, dice: Dice) -> Pixels:
    """Lens and sensor: sometimes a little out of focus, always some grain."""
    if dice.chance(25):
        edged = np.pad(canvas, ((1, 1), (1, 1), (0, 0)), mode="edge")
        rows = edged[:-2] + 2 * edged[1:-1] + edged[2:]
        canvas = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) >> 4
    exposure = np.array([dice.between(238, 270)] * 3, dtype=np.int32)
    exposure += [dice.between(-6, 6) for _ in range(3)]
    raw = dice.other("grain of the picture").bytes(*canvas.shape).astype(np.int32)
    grain = (raw & 15) + (raw >> 4) - 15  # -15..15, most often near 0
    return np.clip((canvas * exposure >> 8) + (grain * dice.between(1, 14) >> 4), 0, 255).astype(np.uint8)
