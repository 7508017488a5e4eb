"""Task files named on a command line: by path, by folder, by glob, or by a list of them."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from pathlib import Path

from maskrcnn_benchmark.config.files import SUFFIXES, display, find
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.paths import config_root

LIST = "_all.json"  # which files of a folder make up its suite, when not all of them do


def find_task_files(patterns: str, option: str = "--task_config") -> list[Path]:
    """The task files that names with commas between them stand for, every file once.

    A name is looked for in the current folder, then beside and in the ``configs`` folder of the package. It is

    - a YAML file;
    - a folder: the files that its ``_all.json`` lists, in that order, or else its YAML files, sorted;
    - a glob such as ``configs/odinw_35/*.yaml`` (``**`` goes into folders): the YAML files that it matches, sorted;
    - a JSON file with a list of YAML files, as ``configs/odinw_35/_all.json`` is.

    Args:
        patterns: The names; none: no files.
        option: What they were given to, for messages.

    Raises:
        ConfigError: a name stands for no file.
    """
    found: dict[Path, Path] = {}
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        for file in _matches(pattern, option):
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _matches(pattern: str, option: str) -> list[Path]:
    root, path = config_root(), Path(pattern).expanduser()
    empty = None
    for here in (path, root.parent / path, root / path):
        if here.is_file():
            return _listed(here) if here.suffix == ".json" else [here]
        if here.is_dir():
            files = _listed(here / LIST) if (here / LIST).is_file() else _yaml(here.glob("*"))
            empty = empty or here
        else:
            files = _yaml(Path(name) for name in glob.glob(str(here), recursive=True))
        if files:
            return files
    if empty is not None:
        raise ConfigError(f"{option}: there is no YAML file in the folder {display(empty)!r}: name one that has some")
    if glob.has_magic(pattern):
        raise ConfigError(
            f"{option}: {pattern!r} matches no YAML file here nor in {root}: "
            "give task files, a folder of them, or a glob such as configs/odinw_13/*.yaml"
        )
    if not path.suffix:
        raise ConfigError(
            f"{option}: there is no file or folder {pattern!r} here nor in {root}: "
            "give task files, a folder of them such as configs/odinw_13, or a glob"
        )
    return [find(path)]  # which says what is like it


def _yaml(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())


def _listed(path: Path) -> list[Path]:
    """The files in a list, whose names start from its folder or are looked for as any other."""
    try:
        names = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{display(path)}: cannot be read as a JSON list of task files ({error})") from None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ConfigError(f'{display(path)}: holds no list of task files such as ["PascalVOC.yaml", "pothole.yaml"]')
    beside = [path.parent / name for name in names]
    return [file if file.is_file() else find(name) for file, name in zip(beside, names, strict=True)]
