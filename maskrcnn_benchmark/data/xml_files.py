"""XML annotation files, read without doing anything that stands in them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from maskrcnn_benchmark.errors import DataError


class _Refused(Exception):
    """A document type declaration: it may define entities that grow without end, or that name other files."""


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _Refused


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        DataError: the file is missing, is not XML, or declares a document type.
    """
    return parse_xml(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """What an annotation file holds.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file: put it there, or take it out of the list that names it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def parse_xml(data: bytes, path: Path) -> ElementTree.Element:
    """The root of what an XML file holds; ``path`` is for messages.

    Raises:
        DataError: it is not XML, or declares a document type.
    """
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(data)
        return parser.close()
    except ElementTree.ParseError as error:
        what = "the file is empty" if not data.strip() else f"not valid XML ({error})"
        raise DataError(f"{path}: {what}: download or copy it again") from None
    except _Refused:
        raise DataError(
            f"{path}: has a document type declaration (<!DOCTYPE ...>), which annotations do not need and which could "
            "make a parser read other files: take it out"
        ) from None
    except (ValueError, LookupError) as error:
        raise DataError(f"{path}: not valid XML ({error}): download or copy it again") from None
