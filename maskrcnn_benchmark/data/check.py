"""COCO annotation files, read and checked before anything relies on them.

What cannot be meant is refused, all of it at once; what can be mended is mended, with a note. Columns are checked as
arrays, so that a million boxes take seconds.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_benchmark.errors import DataError

logger = logging.getLogger(__name__)

MOST_PROBLEMS = 20  # collected before giving up
LISTS = ("images", "annotations", "categories")
LARGEST = 2**63  # of a number in a box; no such picture is, and what is larger does not fit into an array
SLACK = 0.5  # pixels by which a box may leave its picture without a word: rounding

Row = dict[str, Any]


class AnnotationError(DataError):
    """A broken annotation file; the message has the first of ``problems``."""

    def __init__(self, file: str | Path, problems: Sequence[str]):
        more = len(problems) - 1
        count = f"at least {more}" if len(problems) >= MOST_PROBLEMS else f"{more}"
        rest = f" (and {count} more problem{'s' * (more > 1)}, see above)" if more else ""
        super().__init__(f"{file}: {problems[0]}{rest}")
        self.problems = tuple(problems)


@dataclass(frozen=True)
class CocoAnnotations:
    """A checked annotation file. M boxes, in the order of the file, those without area left out."""

    file: Path
    images: list[Row]  # ascending ids
    categories: list[Row]  # as in the file
    ids: np.ndarray  # (M,) int64, from 1
    picture: np.ndarray  # (M,) int64, index into images
    category: np.ndarray  # (M,) int64, index into categories
    boxes: np.ndarray  # (M, 4) float64 x, y, w, h, inside the picture
    crowd: np.ndarray  # (M,) bool
    in_use: frozenset[int]  # indices of the categories that any annotation has, also one without area
    notes: tuple[str, ...]  # what was mended, and what looks odd


def read_annotations(path: str | Path) -> CocoAnnotations:
    """Read and check a COCO annotation file.

    Raises:
        DataError: the file is missing, is not JSON, or is not what COCO annotations are.
    """
    path = Path(path)
    return check_annotations(as_lists(read_json(path), path), path)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: the file is missing, empty or cut off, or something else than JSON.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not data.strip():
        raise DataError(f"{path}: the file is empty ({len(data)} bytes): download or copy it again")
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno} of {len(data):,} bytes"
        raise DataError(f"{path}: not valid JSON at {place} ({error.msg}): {_guess(data)}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid JSON ({error}): {_guess(data)}") from None
    except RecursionError:
        raise DataError(f"{path}: not valid JSON (nested without end): {_guess(data)}") from None


def _guess(data: bytes) -> str:
    """What a file that is not JSON looks like, and what to do."""
    if data.lstrip()[:1] == b"<":
        return "it looks like a web page or XML, give the JSON file itself"
    if data.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, fetch the file that it stands for (git lfs pull)"
    return "download or copy it again"


def as_lists(data: Any, path: Path) -> dict[str, list[Row]]:
    """The three lists of dicts of a COCO file.

    Raises:
        DataError: they are not there.
    """
    if isinstance(data, list):
        raise DataError(
            f"{path}: holds a list of {len(data)} rows and no {', '.join(LISTS)}; "
            "this looks like a results file (list of detections), give the annotation file"
        )
    if not isinstance(data, dict):
        raise DataError(f"{path}: holds {type(data).__name__} {data!r:.40}, not COCO annotations")
    for key in LISTS:
        if not isinstance(data.get(key), list):
            has = ", ".join(map(str, islice(data, 8))) or "nothing"
            raise DataError(f'{path}: no "{key}" list; COCO annotations have {", ".join(LISTS)}, this file has {has}')
        for index, row in enumerate(data[key]):
            if type(row) is not dict:
                raise DataError(f"{path}: {key}[{index}] is {row!r:.60}, not a JSON object")
    return data


def check_annotations(data: Mapping[str, list[Row]], path: Path) -> CocoAnnotations:
    """Check the three lists of a file.

    Raises:
        AnnotationError: with up to 20 problems; all are in the log when there are several.
    """
    images, annotations, categories = (data[key] for key in LISTS)
    refuse(path, problems_of(images, annotations, categories))
    images = sorted(images, key=lambda image: image["id"])
    picture = positions(annotations, "image_id", images)
    category = positions(annotations, "category_id", categories)
    boxes = box_array([row["bbox"] for row in annotations])
    notes: list[str] = []
    ids = _numbered([row.get("id") for row in annotations], notes)
    boxes, keep = inside(boxes, sizes_of(images)[picture], [row.get("id") for row in annotations], notes)
    crowd = np.array([bool(row.get("iscrowd", 0)) for row in annotations], dtype=bool)
    return CocoAnnotations(
        path,
        images,
        categories,
        ids=ids[keep],
        picture=picture[keep],
        category=category[keep],
        boxes=boxes[keep],
        crowd=crowd[keep],
        in_use=frozenset(category.tolist()),
        notes=tuple(notes),
    )


def refuse(path: Path, problems: Iterator[str]) -> None:
    """Stop if there are problems; when there are several, the log has up to 20 of them.

    Raises:
        AnnotationError: there are.
    """
    found = list(islice(problems, MOST_PROBLEMS))
    for problem in found if len(found) > 1 else []:
        logger.error("%s: %s", path, problem)
    if found:
        raise AnnotationError(path, found)


def problems_of(images: list[Row], annotations: list[Row], categories: list[Row] | None) -> Iterator[str]:
    """What cannot be meant, one line each, the most telling first; without categories when these do not matter."""
    yield from _bad_images(images)
    if categories is not None:
        yield from _bad_categories(categories)
    yield from _unknown(annotations, "image_id", images, "images")
    if categories is not None:
        yield from _unknown(annotations, "category_id", categories, "categories")
    yield from _doubled([row.get("id") for row in annotations if row.get("id") is not None], "annotation")
    yield from _bad_boxes(annotations)


def _bad_images(images: list[Row]) -> Iterator[str]:
    if not images:
        yield 'the "images" list is empty: there is no picture'
    kinds = Counter(type(row.get("id")) for row in images)
    for index, row in enumerate(images):
        if type(row.get("id")) not in (int, str):
            yield f"images[{index}]: id {row.get('id')!r} is neither a whole number nor text"
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            yield f"images[{index}] (id {row.get('id')!r}): no file_name{_lvis_hint(row)}"
        if not all(row.get(side) is None or (_is_number(row[side]) and row[side] > 0) for side in ("width", "height")):
            size = f"{row.get('width')!r} x {row.get('height')!r}"
            yield f"images[{index}] (id {row.get('id')!r}): width x height is {size}, which is no size"
    if kinds[int] and kinds[str]:
        yield f"{kinds[str]} picture ids are text and {kinds[int]} are numbers: write all of them alike"
    yield from _doubled([row.get("id") for row in images], "image")


def _lvis_hint(row: Row) -> str:
    return ", only the coco_url of LVIS: name an LVIS data set" if "coco_url" in row else ""


def _bad_categories(categories: list[Row]) -> Iterator[str]:
    if not categories:
        yield 'the "categories" list is empty: there is nothing to look for'
    for index, row in enumerate(categories):
        if type(row.get("id")) is not int:
            yield f"categories[{index}]: id {row.get('id')!r} is not a whole number"
        if not isinstance(row.get("name"), str) or not row["name"].strip():
            yield f"categories[{index}] (id {row.get('id')!r}): no name"
    yield from _doubled([row.get("id") for row in categories], "category")


def _unknown(annotations: list[Row], key: str, rows: list[Row], where: str) -> Iterator[str]:
    """Annotations whose picture or category is not in its list."""
    known = {row.get("id") for row in rows if type(row.get("id")) in (int, str)}
    for index, row in enumerate(annotations):
        value = row.get(key)
        if type(value) not in (int, str) or value not in known:
            place = f"annotations[{index}] (id {row.get('id')!r})"
            yield f"{place}: {key} {value!r} is not in {where} ({describe_ids(known)})"


def describe_ids(ids: set[Any] | frozenset[Any]) -> str:
    """ "ids 1-7", "ids 1, 3, 9" or "5000 ids, such as 139"."""
    if not ids:
        return "no ids"
    whole = sorted(value for value in ids if type(value) is int)
    if len(whole) == len(ids) and whole[-1] - whole[0] == len(whole) - 1:
        return f"ids {whole[0]}-{whole[-1]}" if len(whole) > 1 else f"id {whole[0]}"
    if len(ids) <= 12:
        return f"ids {', '.join(sorted(map(repr, ids)) if len(whole) < len(ids) else map(str, whole))}"
    return f"{len(ids)} ids, such as {next(iter(ids))!r}"


def _doubled(ids: list[Any], what: str) -> Iterator[str]:
    hashable = [value for value in ids if type(value) in (int, str)]
    if len(set(hashable)) == len(hashable):
        return
    twice = [value for value, count in Counter(hashable).items() if count > 1]
    shown = ", ".join(map(repr, twice[:5])) + (", ..." if len(twice) > 5 else "")
    yield f"duplicate {what} ids: {shown}; each {what} needs its own"


def _bad_boxes(annotations: list[Row]) -> Iterator[str]:
    boxes = _numbers([row.get("bbox") for row in annotations])
    if boxes is not None and np.isfinite(boxes).all() and (boxes[:, 2:] >= 0).all():
        return
    for index, row in enumerate(annotations):
        box, place = row.get("bbox"), f"annotations[{index}] (id {row.get('id')!r})"
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(v) and abs(v) < LARGEST for v in box)):
            yield f"{place}: bbox {box!r} is not four numbers [x, y, width, height]"
        elif min(box[2:]) < 0:
            yield f"{place}: bbox {box} has a negative width or height; COCO wants [x, y, width, height]"


def box_array(boxes: list[Any]) -> np.ndarray:
    """(M, 4) float64, of boxes that :func:`problems_of` has seen."""
    array = _numbers(boxes)
    assert array is not None
    return array


def _numbers(boxes: list[Any]) -> np.ndarray | None:
    """(M, 4) float64; None when some box is not four numbers."""
    if not boxes:
        return np.zeros((0, 4))
    try:
        array = np.array(boxes)
    except ValueError:  # lists of different lengths
        return None
    fits = array.ndim == 2 and array.shape[1] == 4 and array.dtype.kind in "iuf"
    return array.astype(np.float64) if fits else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def positions(annotations: list[Row], key: str, rows: list[Row]) -> np.ndarray:
    """(M,) int64: where in ``rows`` the id under ``key`` of each annotation is."""
    position = {row["id"]: index for index, row in enumerate(rows)}
    return np.array([position[row[key]] for row in annotations], dtype=np.int64)


def sizes_of(images: list[Row]) -> np.ndarray:
    """(N, 2) w, h; infinite where the file does not say."""
    sides = [[row.get("width"), row.get("height")] for row in images]
    return np.array([[np.inf if side is None else side for side in pair] for pair in sides], dtype=np.float64)


def _numbered(ids: list[Any], notes: list[str]) -> np.ndarray:
    """The ids, or 1, 2, ... when some are not whole numbers above 0."""
    bad = next((value for value in ids if type(value) is not int or value <= 0), 1)
    if bad == 1:
        return np.array(ids, dtype=np.int64)
    what = "without an id" if bad is None else f"with id {bad!r}"
    notes.append(f"there is an annotation {what}: annotations renumbered from 1 (0 counts as no match in evaluation)")
    return np.arange(1, len(ids) + 1)


def inside(boxes: np.ndarray, sizes: np.ndarray, ids: list[Any], notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (x, y, w, h) cut at the border of their pictures (w, h), and which of them still have an area."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    flat = (boxes[:, 2:] == 0).any(axis=1)
    outside = ((low < -SLACK) | (high > sizes + SLACK)).any(axis=1) & ~flat
    cut = ((low < 0) | (high > sizes)).any(axis=1)
    low, high = np.clip(low, 0, sizes), np.clip(high, 0, sizes)
    gone = (high <= low).any(axis=1) & ~flat

    def note(which: np.ndarray, text: str, result: str) -> None:
        if count := int(which.sum()):
            first = int(which.argmax())
            amount = f"{count} box{'es' * (count > 1)}"
            notes.append(f"{amount} {text} (first: annotations[{first}], id {ids[first]!r}): {result}")

    note(flat, "without area", "left out of the targets")
    note(gone, "beyond the border of the picture", "left out of the targets")
    note(outside & ~gone, "partly outside the picture", "cut at the border")
    if len(boxes) and np.isfinite(sizes).any() and outside.mean() > 0.5:
        percent = round(100 * float(outside.mean()))
        notes.append(
            f"{percent}% of the boxes leave their picture: they look like [x1, y1, x2, y2], COCO wants [x, y, w, h]"
        )
    return np.where(cut[:, None], np.concatenate((low, high - low), axis=1), boxes), ~(flat | gone)
