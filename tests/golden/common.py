"""Where the shared material of the tests lies, and how its golden cases are found and read.

``MB_SHARED`` names the folder of shared material (golden cases, real pictures, tokenizers); ``MB_GOLDEN`` may point to
other golden cases of the same form. Without ``MB_SHARED`` the tests that need it are skipped with that reason, and
``pytest --need-shared`` turns such a skip into a failure.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

NO_SHARED = "needs MB_SHARED, the folder of shared test material"
CLAIMED: dict[str, set[str]] = {}  # system -> case names that the test files imported so far run


def _shared() -> Path | None:
    folder = os.environ.get("MB_SHARED")
    return Path(folder).resolve() if folder else None


def shared_path(*parts: str) -> Path:
    """The shared folder, or a path below it; skips the test where ``MB_SHARED`` is not set."""
    folder = _shared()
    if folder is None:
        pytest.skip(NO_SHARED)
    return folder.joinpath(*parts)


def tokenizer_dir(name: str) -> Path:
    """Folder with the files of a tokenizer, such as "roberta-base"."""
    return shared_path("tokenizers", name)


def golden_root() -> Path | None:
    """Folder of the golden cases; None where neither MB_GOLDEN nor MB_SHARED is set."""
    folder, shared = os.environ.get("MB_GOLDEN"), _shared()
    if folder:
        return Path(folder).resolve()
    return shared / "golden" if shared else None


def case_files(system: str) -> dict[str, Path]:
    """Case name -> its JSON, for every case of a system ("fiber", "eval", "e2e", ...)."""
    root = golden_root()
    folder = root / system / "cases" if root else None
    if folder is None or not folder.is_dir():
        return {}
    endings = (".json", ".json.gz")
    return {p.name.split(".")[0]: p for p in sorted(folder.iterdir()) if p.name[len(p.name.split(".")[0]) :] in endings}


def golden_cases(system: str, *patterns: str, but: Sequence[str] = ()) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``: the JSON paths of the cases whose name matches a pattern.

    The id is the case's name. Cases that need a full-size network carry the mark ``full``. ``but`` lists patterns of
    names to leave to another test.
    """
    chosen = {
        name: path
        for name, path in case_files(system).items()
        if any(fnmatchcase(name, p) for p in patterns) and not any(fnmatchcase(name, p) for p in but)
    }
    CLAIMED.setdefault(system, set()).update(chosen)
    if not chosen:
        why = NO_SHARED if golden_root() is None else f"no case of {system} is called {' or '.join(patterns)}"
        return [pytest.param(None, id="no-case", marks=pytest.mark.skip(reason=why))]
    return [pytest.param(p, id=name, marks=[pytest.mark.full] if is_full(p) else []) for name, p in chosen.items()]


def is_full(path: Path) -> bool:
    """Whether a case runs a network of released size (narrow ones say how small their text encoder or stem is)."""
    text = _text(path)
    if any(f'"text_config_overrides": {nothing}' in text for nothing in ("{}", "null")):
        return True
    return '"STEM_OUT_CHANNELS": 64' in text or ('"config_file"' in text and '"small_language"' not in text)


def load_case(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON of a case, and the tensors beside it (none: empty)."""
    tensors = path.with_name(path.name.split(".")[0] + ".safetensors")
    return json.loads(_text(path)), load_file(tensors) if tensors.exists() else {}


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.name.endswith(".gz") else data).decode()


@cache
def _fill_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_fill", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Fill:
    """``golden/fill.py`` of the shared folder, loaded at first use, so that a test file can import it at the top."""

    def __getattr__(self, name: str) -> Any:
        if name not in ("values", "fill_", "image"):  # pytest looks for its own marks on everything in a test file
            raise AttributeError(name)
        return getattr(_fill_module(shared_path("golden", "fill.py")), name)


fill = _Fill()
