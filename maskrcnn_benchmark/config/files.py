"""YAML files: where they are looked for, how they are read, and the chain of their ``_BASE_`` files."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.paths import config_root

BASE = "_BASE_"
BY_NAME = ("decola",)  # folders of configs whose files are also found without their folder
SUFFIXES = (".yaml", ".yml")
WRITTEN_TWICE = ("CHECKPOINT_EPOCH",)  # in a published file of DAP: the last one counts, as it did for its authors


def read_chain(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """``(name for messages, tree)`` of a config file and of the files it is based on, the nearest file last.

    Raises:
        ConfigError: a file is missing, is not YAML, or the chain runs in a circle.
    """
    chain: list[tuple[str, dict[str, Any]]] = []
    names: list[str] = []
    here: Path | None = find(path)
    while here is not None:
        name = display(here)
        if name in names:
            raise ConfigError(f"{names[0]}: {BASE} runs in a circle: {' -> '.join([*names, name])}")
        names.append(name)
        tree = read(here)
        base = tree.pop(BASE, None)
        chain.insert(0, (name, tree))
        here = _base(here, base) if base is not None else None
    return chain


def find(path: str | Path) -> Path:
    """A config file, looked for in the current folder, then beside and in the ``configs`` folder of the package.

    Files of :data:`BY_NAME` folders need not be called by their folder.

    Raises:
        ConfigError: it is in none of them; the message offers names that are close.
    """
    path = Path(path).expanduser()
    root = config_root()
    short = path.relative_to(root.name) if path.parts[:1] == (root.name,) else path  # DECOLA's were all in configs/
    candidates = (path, root.parent / path, root / path, *(root / folder / short for folder in BY_NAME))
    if not any(candidate.is_dir() for candidate in candidates):
        _refuse_code(path)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
        if candidate.is_dir():
            raise ConfigError(f"config file {str(path)!r} is a folder: name a YAML file in it")
    known = {file.relative_to(root.parent).as_posix(): file for file in root.rglob("*")}
    hint = _suggest(path, known) or f" The configs that come with the package are in {root}."
    raise ConfigError(f"no config file {str(path)!r}.{hint}")


def read(path: Path) -> dict[str, Any]:
    """The tree in one YAML file.

    Raises:
        ConfigError: it cannot be read, or is not a tree of keys.
    """
    name = display(path)
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: is not a text file in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{where}: is not valid YAML: {_one_line(error.problem)}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name}: is not valid YAML: {_one_line(error)}") from None
    if not isinstance(tree, dict) and tree is not None:
        raise ConfigError(f"{name}: expects keys and values like 'MODEL:', got a {type(tree).__name__}")
    return tree or {}


def display(path: Path) -> str:
    """A path as messages name it: relative to the current folder where it lies below it."""
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except ValueError:
        return str(path.resolve())


def _base(path: Path, base: object) -> Path:
    name = display(path)
    if not isinstance(base, str):
        raise ConfigError(f"{name}: {BASE} expects the path of a YAML file, relative to this one, got {base!r}")
    target = path.parent / Path(base).expanduser()
    _refuse_code(target)
    ours = config_root().parent / base  # a file that lies anywhere may build on configs/... of the package
    if not target.is_file() and ours.is_file():
        return ours
    if not target.is_file():
        hint = _suggest(target, {display(file): file for file in target.parent.glob("*")})
        raise ConfigError(f"{name}: its {BASE} {base!r} does not exist.{hint}")
    return target


def _refuse_code(path: Path) -> None:
    if path.suffix == ".py":
        raise ConfigError(f"{path}: a config is a YAML file; a Python file is refused because reading it would run it")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a config is a YAML file, named .yaml or .yml")


def _suggest(path: Path, files: Mapping[str, Path]) -> str:
    """``" Did you mean ...?"`` with the names of those files that are called similarly."""
    known = {name: file.stem.lower() for name, file in sorted(files.items()) if file.suffix in SUFFIXES}
    stem = path.stem.lower()
    near = difflib.get_close_matches(path.as_posix(), known, n=2, cutoff=0.85)
    near += [name for name, other in known.items() if stem in other or stem in name.lower()]
    close = difflib.get_close_matches(stem, known.values(), n=3, cutoff=0.6)
    near += [name for name, other in known.items() if other in close]
    return f" Did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?" if near else ""


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` that refuses a key written twice, as the first would be dropped; see also WRITTEN_TWICE."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Iterator[dict[Hashable, Any]]:
    tree: dict[Hashable, Any] = {}
    yield tree  # before it is filled, so that an alias to itself can be resolved
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        doubled = key_node.value in seen and key_node.value not in WRITTEN_TWICE
        if doubled and key_node.tag != "tag:yaml.org,2002:merge":
            problem = (
                f"{key_node.value!r} is written twice (lines {seen[key_node.value]} and {key_node.start_mark.line + 1})"
            )
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if isinstance(key_node, yaml.ScalarNode):
            seen[key_node.value] = key_node.start_mark.line + 1
    tree.update(loader.construct_mapping(node))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
