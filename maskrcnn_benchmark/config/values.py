"""From what a user wrote to the value of a key: the default says the type, a kind where the default cannot."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from typing import Any

EXPECTED = 'a list like [["bbox", "AP", [0.384, 0.002]]]: task, metric, mean and standard deviation'
BOOLEANS = {"true": True, "false": False}


def coerce(value: object, default: object, kind: str | None = None) -> Any:
    """The value of a key as its readers expect it.

    Args:
        value: From YAML (any type) or from the command line (text, read as a Python literal where text is not wanted).
        default: What the key holds by default; the result has its type.
        kind: A name in :data:`KINDS`, for keys whose default is None or empty and so does not tell.

    Raises:
        ValueError: what the key expects, to be put after its name.
    """
    check = KINDS[kind] if kind else _by_default(default)
    return check(value, default)


def literal(value: object) -> object:
    """Text as the Python literal that it is, or else as JSON, or else as it is; anything but text as it is."""
    if not isinstance(value, str):
        return value
    for read in (ast.literal_eval, json.loads):
        try:
            result: object = read(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return result
    return value


def show(value: object, limit: int = 80) -> str:
    """``repr`` for a message: of bounded length."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def _by_default(default: object) -> Callable[[object, Any], Any]:
    if isinstance(default, tuple):
        if not default:
            raise TypeError("a key with an empty default needs a kind")
        return {bool: _booleans, int: _integers, float: _floats, str: _names}[type(default[0])]
    return {bool: _boolean, int: _integer, float: _float, str: _text}[type(default)]


def _boolean(value: object, default: object) -> bool:
    if isinstance(value, str):
        value = BOOLEANS.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise ValueError("expects True or False")
    return value


def _integer(value: object, default: object) -> int:
    value = literal(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expects int like {default!r}")
    return value


def _float(value: object, default: object) -> float:
    value = literal(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expects float like {default!r}")
    return float(value)


def _text(value: object, default: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expects text like {default!r}" if default else "expects text")
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":  # quoted once more for the shell
        inner = literal(value)
        return inner if isinstance(inner, str) else value
    return value


def _sequence(
    value: object, fits: Callable[[object], bool], expects: str, convert: Callable[[Any], Any] | None = None
) -> tuple[Any, ...]:
    value = literal(value)
    if not isinstance(value, (list, tuple)) or not all(fits(item) for item in value):
        raise ValueError(f"expects {expects}")
    return tuple(convert(item) if convert else item for item in value)


def _is_number(item: object) -> bool:
    return isinstance(item, (int, float)) and not isinstance(item, bool)


def _integers(value: object, default: Sequence[object]) -> tuple[int, ...]:
    def fits(item: object) -> bool:
        return isinstance(item, int) and not isinstance(item, bool)

    return _sequence(value, fits, f"a tuple of int like {default or (480, 800)!r}")


def _sizes(value: object, default: object) -> int | tuple[int, ...]:
    """One number, or several."""
    value = literal(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not value:
        raise ValueError(f"expects int like {default!r}, or a tuple of them")
    return _integers(value, (480, 800))


def _floats(value: object, default: Sequence[object]) -> tuple[float, ...]:
    return _sequence(value, _is_number, f"a tuple of numbers like {default or (0.5, 1.0)!r}", float)


def _numbers(value: object, default: Sequence[object]) -> tuple[float, ...]:
    return _sequence(value, _is_number, f"a tuple of numbers like {default!r}")


def _rows(value: object, default: Sequence[Sequence[object]]) -> tuple[tuple[Any, ...], ...]:
    """Lists of as many numbers as each of the default has."""
    length = len(default[0])

    def fits(item: object) -> bool:
        return isinstance(item, (list, tuple)) and len(item) == length and all(map(_is_number, item))

    return _sequence(value, fits, f"a tuple of tuples of {length} numbers like {default!r}", tuple)


def _booleans(value: object, default: Sequence[object]) -> tuple[bool, ...]:
    return _sequence(value, lambda item: isinstance(item, bool), f"a tuple of True or False like {default!r}")


def _names(value: object, default: Sequence[object]) -> tuple[str, ...]:
    example = default or ("name",)
    if isinstance(value, str) and value and all(c.isalnum() or c in "_-+./" for c in value):
        example = (value,)
    return _sequence(value, lambda item: isinstance(item, str), f'a tuple of names like "{example!r}"')


def _optional_text(value: object, default: object) -> str | None:
    return None if value in (None, "None", "") else _text(value, "full")


def _words(value: object, default: object) -> tuple[str, ...] | None:
    """None, a list of words, or one word."""
    if value in (None, "None", ""):
        return None
    decoded = literal(value)
    if isinstance(decoded, str):
        decoded = [decoded]
    return _sequence(decoded, lambda item: isinstance(item, str), 'a list of words like ["person", "car"]')


def _caption_prompt(value: object, default: object) -> list[dict[str, str]] | None:
    """None, or per class what stands before, instead of and after its name."""

    def fits(item: object) -> bool:
        return (
            isinstance(item, dict)
            and set(item) <= {"prefix", "name", "suffix"}
            and "name" in item
            and all(isinstance(text, str) for text in item.values())
        )

    if value in (None, "None", ""):
        return None
    rows = _sequence(value, fits, 'a list like [{"prefix": "", "name": "fish", "suffix": ""}]')
    return [{"prefix": row.get("prefix", ""), "name": row["name"], "suffix": row.get("suffix", "")} for row in rows]


def _categories(value: object, default: object) -> list[dict[str, Any]] | None:
    """None, or the ``categories`` of a COCO file."""

    def fits(item: object) -> bool:
        if not isinstance(item, dict):
            return False
        number = item.get("id")
        return isinstance(number, int) and not isinstance(number, bool) and isinstance(item.get("name"), str)

    if value in (None, "None", ""):
        return None
    return list(_sequence(value, fits, 'a list like [{"id": 1, "name": "fish", "supercategory": "animal"}]'))


def _expected(value: object, default: object) -> tuple[tuple[str, str, float, float], ...]:
    """Numbers that an evaluation should give: (task, metric, mean, standard deviation) each."""
    rows = []
    for row in _sequence(value, lambda item: isinstance(item, (list, tuple)), EXPECTED):
        flat = [*row[:2], *row[2]] if len(row) == 3 and isinstance(row[2], (list, tuple)) else list(row)
        if len(flat) != 4 or not all(isinstance(name, str) for name in flat[:2]) or not all(map(_is_number, flat[2:])):
            raise ValueError(f"expects {EXPECTED}")
        rows.append((flat[0], flat[1], float(flat[2]), float(flat[3])))
    return tuple(rows)


KINDS: dict[str, Callable[[object, Any], Any]] = {
    "names": _names,
    "integers": _integers,
    "sizes": _sizes,
    "floats": _floats,
    "numbers": _numbers,
    "rows": _rows,
    "optional text": _optional_text,
    "words": _words,
    "caption prompt": _caption_prompt,
    "categories": _categories,
    "expected results": _expected,
}
