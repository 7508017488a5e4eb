"""Where the files that belong to the package lie, in a checkout and after an installation."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def repository_root() -> Path | None:
    """The checkout that the package runs from (also after ``pip install -e``); None when it was copied elsewhere."""
    root = _PACKAGE.parent
    return root if (root / "setup.py").is_file() and (root / "configs").is_dir() else None


def config_root() -> Path:
    """Folder of the YAML configs: ``configs/`` of the checkout, or the copy inside the installed package."""
    root = repository_root()
    return root / "configs" if root else _PACKAGE / "configs"
