"""``mrb models``: the list of released checkpoints."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from prettytable import PrettyTable

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint import zoo
from maskrcnn_benchmark.checkpoint.io import find_weights
from maskrcnn_benchmark.commands.parsers import MODELS_USAGE
from maskrcnn_benchmark.errors import ConfigError, WeightsError

GET = "get"


def models(args: argparse.Namespace) -> None:
    """List released checkpoints, tell all about one, or download one; nothing is downloaded unless asked for."""
    words: Sequence[str] = args.words
    if not words:
        print(_list())
    elif len(words) == 1 and words[0] != GET:
        print(_details(zoo.find(words[0])))
    elif len(words) == 2 and words[0] == GET:
        entry = zoo.find(words[1])
        folder = cli.output_folder(args.output or os.environ.get("MODEL") or "MODEL", "--output")
        print(zoo.download(entry, folder))
    else:
        raise ConfigError(f"`mrb models {' '.join(words)}`: write {MODELS_USAGE}")


def _list() -> str:
    rows = [
        [e.name, e.system, e.about, e.size or "?", "yes" if e.config else "no", "yes" if _here(e) else ""]
        for e in zoo.released().values()
    ]
    listed = PrettyTable(["name", "system", "what", "size", "runs here", "in MODEL/"], align="l")
    listed.add_rows(rows)
    return str(listed.get_string())


def _here(entry: zoo.Released) -> Path | None:
    try:
        return find_weights(entry.file)
    except WeightsError:
        return None


def _details(entry: zoo.Released) -> str:
    here = _here(entry)
    facts = {
        "name": entry.name,
        "system": entry.system,
        "what": entry.about,
        "config": entry.config or "none in this version",
        "file": str(here) if here else f"{entry.file} (not in MODEL/)",
        "size": entry.size or "not given by its authors",
        "sha256": entry.sha256 or "not published",
        "from": "\n".join(entry.urls) or f"by hand, from {entry.page}",
        "page": entry.page,
        "licence of the code": entry.code,
        "licence of the weights": entry.weights,
        "trained on": f"{entry.data} (each with terms of its own)",
        "note": entry.note,
    }
    width = max(map(len, facts))
    lines = [f"{key:<{width}}  {value}" for key, value in facts.items() if value]
    return "\n".join(line.replace("\n", f"\n{'':<{width}}  ") for line in lines)
