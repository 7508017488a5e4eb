"""DECOLA from beginning to end on drawn pictures: each stage of the benchmark, in a few steps."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import decola_drawn
from maskrcnn_benchmark import cli

STEPS = 2


def test_each_stage_works(tmp_path: Path) -> None:
    place = tmp_path / "out"
    few = ["--steps", str(STEPS), str(STEPS), "--start-steps", "1", "--boxed", "8", "--named", "12", "--tests", "12"]
    assert cli.run(decola_drawn.main, ["--seeds", "1", "--output", str(place), *few]) == 0
    found = json.loads((place / "numbers.json").read_text())["1"]
    ends = {kind: max(map(int, scores)) for kind, scores in found["scores"].items()}
    assert ends == {"phase 1": STEPS, "off-line": 2 * STEPS, "on-line": 2 * STEPS, "BoxSup": 2 * STEPS}
    assert all(0 <= row[part] <= 1 for scores in found["scores"].values() for row in scores.values() for part in row)
    boxes = json.loads((place / "1" / "found.json").read_text())["annotations"]
    assert len({row["image_id"] for row in boxes}) == 12, "each name has a box"
    trained = json.loads((place / "1" / "boxes" / "annotations_norare.json").read_text())
    novel = {row["id"] for row in trained["categories"] if row["name"].replace("_", " ") in decola_drawn.NOVEL}
    assert len(novel) == 4
    assert novel.isdisjoint(row["category_id"] for row in trained["annotations"])
    assert (place / "curves.png").stat().st_size > 1000
    for log in ("phase_1", "BoxSup"):
        assert "173 of 173 tensors loaded: detr.backbone 173" in (place / "1" / log / "log.txt").read_text()
    assert cli.run(decola_drawn.main, ["--output", str(place)]) == 2, "nothing is written over"
