"""docs/tutorial.md, from its first block to its last, in an empty folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.docs import blocks, environment, run_python, run_server, run_shell

pytestmark = pytest.mark.full


def arrow(folder: Path) -> float:
    """AP of the new class, from the results of ``mrb eval --output``."""
    (file,) = folder.glob("eval/*/inference/arrows/results.json")
    rows = json.loads(file.read_text())["per_category"]["bbox"]
    return float(next(row["AP"] for row in rows if row["name"] == "arrow"))


def test_every_block_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "tutorial"
    home.mkdir()
    env = environment(dict(os.environ), tmp_path)
    monkeypatch.chdir(home)
    names: dict[str, Any] = {"__name__": "tutorial"}
    for block in blocks("docs/tutorial.md"):
        if block.language == "python":
            run_python(block.text, block, names)
        elif block.text.startswith("mrb serve"):
            assert "<html" in run_server(block.text, home, env)
        else:
            assert block.language == "bash", f"{block}: no way to run {block.info!r}"
            run_shell(block.text, home, env)

    sheet = json.loads((home / "checked" / "check.json").read_text())
    assert sheet["problems"] == [], "nothing is wrong with drawn data"
    assert arrow(home / "after") > arrow(home / "before")
    for folder, count in (("found", 13), ("said", 1)):
        assert len(json.loads((home / folder / "detections.json").read_text())) == count
    assert set(names["arrows"].names.values()) == {"arrow"}
    assert (home / "arrows.png").is_file()
