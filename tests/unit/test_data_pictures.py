"""Pictures of every kind become upright RGB; those that cannot are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn_benchmark.data.pictures import header_size, open_picture, read_picture, to_rgb
from maskrcnn_benchmark.errors import DataError

RED, GREY = (200, 20, 10), 77


def colours(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture).reshape(-1, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "HSV", "YCbCr"])
def test_colour_modes_keep_their_colour(mode: str) -> None:
    image = Image.new("RGB", (8, 6), RED)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    assert np.abs(colours(to_rgb(image)).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I", "F", "I;16"])
def test_grey_modes_become_grey(mode: str) -> None:
    value = 255 if mode == "1" else GREY
    image = Image.new("L", (8, 6), value)
    image = Image.fromarray(np.asarray(image).astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    assert (colours(to_rgb(image)) == value).all()


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_become_eight_by_their_full_range(mode: str) -> None:
    values = np.array([[0, 257 * 10], [257 * 100, 65535]])
    image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    assert colours(to_rgb(image))[:, 0].tolist() == [0, 10, 100, 255]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = colours(open_picture(tmp_path / "a.jpg"))[0].tolist()
    assert red > 200
    assert max(green, blue) < 60


def test_transparent_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (*RED, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "a.png")
    assert colours(open_picture(tmp_path / "a.png")).tolist() == [[255, 255, 255], list(RED)]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "p.png", transparency=0)
    assert colours(open_picture(tmp_path / "p.png")).tolist() == [[255, 255, 255], list(RED)]


def turned(path: Path, orientation: int) -> Path:
    """40 x 20 pixels as stored, red in the left half, with an EXIF orientation."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)
    return path


STORED, UPRIGHT, OTHER = (20, 40), (40, 20), (33, 44)
EXIF = [
    (6, None, UPRIGHT, ""),
    (6, UPRIGHT, UPRIGHT, ""),
    (6, STORED, STORED, "annotated as it is stored"),
    (6, OTHER, UPRIGHT, "20x40 pixels, but 44x33 by the annotations"),
    (1, STORED, STORED, ""),
    (1, UPRIGHT, STORED, "40x20 pixels, but 20x40 by the annotations"),
    (99, STORED, STORED, ""),
]


@pytest.mark.parametrize(("orientation", "annotated", "size", "note"), EXIF)
def test_exif_orientation_follows_the_annotations(
    tmp_path: Path, orientation: int, annotated: tuple[int, int] | None, size: tuple[int, int], note: str
) -> None:
    picture, said = read_picture(turned(tmp_path / "a.jpg", orientation), annotated)
    assert (picture.height, picture.width) == size
    assert (note in said) if note else not said


@pytest.mark.parametrize(("orientation", "corner"), [(3, "right"), (6, "top"), (8, "bottom"), (2, "right"), (5, "top")])
def test_a_turned_picture_is_upright(tmp_path: Path, orientation: int, corner: str) -> None:
    path = turned(tmp_path / "a.jpg", orientation)
    picture = open_picture(path)
    width, height = picture.size
    assert header_size(path) == (height, width)
    place = {"right": (width - 4, height // 2), "top": (width // 2, 3), "bottom": (width // 2, height - 4)}[corner]
    assert picture.getpixel(place)[0] > 200


BAD = {
    "missing": (None, "missing"),
    "empty": (b"", "the file is empty"),
    "text": (b"hello, I am no picture", "not a picture, or of a format that cannot be read"),
    "cut off": (-200, "damaged"),
    "header only": (30, ""),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_that_cannot_be_read(tmp_path: Path, kind: str, suffix: str) -> None:
    content, words = BAD[kind]
    path = tmp_path / f"bad.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(DataError) as error:
        open_picture(path)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        open_picture(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="too large to be read safely"):
        open_picture(tmp_path / "big.png")
    assert header_size(tmp_path / "big.png") is None


def test_header_size_of_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no")
    assert header_size(tmp_path / "x.png") is None
    assert header_size(tmp_path / "none.png") is None
