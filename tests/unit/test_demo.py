"""``python -m maskrcnn_benchmark.demo``, what ``make demo`` runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.demo.__main__ import main


def demo(folder: Path, *argv: str) -> int:
    return cli.run(main, ["--output", str(folder), *argv])


def test_the_page_shows_drawn_and_found_pictures_and_says_that_weights_are_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    assert demo(folder, "--pictures", "2") == 0
    said = capsys.readouterr().out
    assert "weights are random" in said
    assert said.strip().endswith("index.html")
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "weights are random" in page
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert len(pictures) == 4
    sizes = {Image.open(folder / picture).size for picture in pictures}
    assert all(min(size) > 100 for size in sizes)
    assert list(folder.glob("eval/*/inference/drawn/results.json"))


def test_it_empties_its_own_folder_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("keep me")
    assert demo(tmp_path) == 2
    assert "--output" in capsys.readouterr().err
    assert mine.read_text() == "keep me"
    folder = tmp_path / "demo"
    for pictures in ("2", "1"):
        assert demo(folder, "--pictures", pictures) == 0
    assert len(list((folder / "found").iterdir())) == 1
