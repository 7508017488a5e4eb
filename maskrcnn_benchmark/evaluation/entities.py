"""Flickr30k Entities: sentences whose phrases have boxes (https://github.com/BryanPlummer/flickr30k_entities)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from maskrcnn_benchmark.data.xml_files import parse_xml, read_bytes
from maskrcnn_benchmark.errors import DataError

SHOWN = 5
OPENING = re.compile(r"\[/EN#([^/\]]+)((?:/[^/\]]+)*)")

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels, as in the file
SentenceId = tuple[str, int]  # picture, and which of its sentences, from 0


@dataclass(frozen=True)
class Phrase:
    """A phrase that has boxes."""

    text: str
    types: tuple[str, ...]  # such as "people"; a phrase may be of several
    boxes: tuple[Box, ...]  # at least one


@dataclass(frozen=True)
class Entities:
    """A split of the data."""

    where: str  # the folder and the list of pictures, for messages
    sentences: Mapping[SentenceId, tuple[Phrase, ...]]  # those with phrases, in the order of the list
    pictures: int
    sha256: str  # of everything that was read


def read_entities(folder: str | Path, split: str) -> Entities:
    """Read the sentences of a split and the boxes of their phrases.

    The folder has ``<split>.txt`` with the ids of the pictures, ``Sentences/<id>.txt`` with lines such as
    ``[/EN#283585/people A young child] sits .``, and ``Annotations/<id>.xml`` with the boxes of the numbers in them.
    Empty lines of sentences are not counted. A phrase whose number has no box (a scene, something that is not to be
    seen) is left out, and so is a sentence without any phrase that has one.

    Raises:
        DataError: a file is missing or cannot be understood; names the file and the line.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    pictures = _pictures(folder, split)
    digest.update("\n".join(pictures).encode())
    sentences: dict[SentenceId, tuple[Phrase, ...]] = {}
    for picture in pictures:
        path = folder / "Annotations" / f"{picture}.xml"
        data = read_bytes(path)
        boxes = _boxes(parse_xml(data, path), path)
        path = folder / "Sentences" / f"{picture}.txt"
        text = read_bytes(path)
        digest.update(data + text)
        for number, phrases in enumerate(_sentences(_decode(text, path), path, boxes)):
            if phrases:
                sentences[picture, number] = phrases
    where = f"{folder} ({split}.txt)"
    if not sentences:
        raise DataError(f"{where}: none of the {len(pictures)} pictures has a sentence with a phrase that has a box")
    return Entities(where, sentences, len(pictures), digest.hexdigest())


def _pictures(folder: Path, split: str) -> list[str]:
    path = folder / f"{split}.txt"
    for needed in ("Annotations", "Sentences"):
        if not (folder / needed).is_dir():
            raise DataError(
                f"{folder}: no folder {needed}: give the folder of Flickr30k Entities, with Annotations/<id>.xml, "
                "Sentences/<id>.txt and <split>.txt"
            )
    if not path.is_file():
        there = ", ".join(sorted(other.name for other in folder.glob("*.txt"))) or "none"
        raise DataError(f"{path}: no such list of pictures (there: {there})")
    names = _decode(read_bytes(path), path).split()
    if not names:
        raise DataError(f"{path}: the list of pictures is empty")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{path}: lists pictures twice: {', '.join(twice[:SHOWN])}")
    return names


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}): download or copy it again") from None


def _boxes(root: Element, path: Path) -> dict[str, list[Box]]:
    """Number of an entity -> its boxes."""
    found: dict[str, list[Box]] = {}
    for index, item in enumerate(root.findall("object")):
        names = [(name.text or "").strip() for name in item.findall("name")]
        if not all(names) or not names:
            raise DataError(f"{path}: object {index}: no name, the number of the phrase that it belongs to")
        corners = item.find("bndbox")
        if corners is not None:
            box = _box(corners, f"{path}: object {index} ({', '.join(names)})")
            for name in names:
                found.setdefault(name, []).append(box)
        elif item.find("nobndbox") is None and item.find("scene") is None:
            raise DataError(f"{path}: object {index} ({', '.join(names)}): neither bndbox nor nobndbox nor scene")
    return found


def _box(corners: Element, where: str) -> Box:
    texts = [corners.findtext(side, "") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = map(float, texts)
    except ValueError:
        raise DataError(f"{where}: bndbox is {texts}, not four numbers xmin, ymin, xmax, ymax") from None
    if not (x1 <= x2 and y1 <= y2):
        raise DataError(f"{where}: bndbox {texts} ends before it begins")
    return x1, y1, x2, y2


def _sentences(text: str, path: Path, boxes: Mapping[str, list[Box]]) -> list[tuple[Phrase, ...]]:
    """The phrases with boxes of each sentence."""
    return [
        tuple(
            Phrase(words, types, tuple(boxes[entity]))
            for entity, types, words in _marked(line, f"{path}: line {number}")
            if entity in boxes
        )
        for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1)
        if line
    ]


def _marked(line: str, where: str) -> list[tuple[str, tuple[str, ...], str]]:
    """(entity, types, words) of every phrase of a line, in its order."""
    phrases: list[tuple[str, tuple[str, ...], str]] = []
    entity, types = "", tuple[str, ...]()
    words: list[str] | None = None  # of the phrase that is open
    for token in line.split():
        if words is None:
            if not token.startswith("["):
                continue
            opening = OPENING.fullmatch(token)
            if opening is None:
                raise DataError(f"{where}: {token!r} does not open a phrase as [/EN#<number>/<type> does")
            entity, types, words = opening[1], tuple(opening[2].split("/")[1:]), []
        elif token.endswith("]"):
            phrases.append((entity, types, " ".join([*words, token[:-1]])))
            words = None
        else:
            words.append(token)
    if words is not None:
        raise DataError(f"{where}: the phrase [/EN#{entity} is not closed by a word that ends with ]")
    return phrases
