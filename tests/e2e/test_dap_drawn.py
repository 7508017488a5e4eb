"""DAP from beginning to end on drawn pictures: the benchmark, with one seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import dap_drawn
from maskrcnn_benchmark import cli

pytestmark = pytest.mark.full


def test_each_step_works(tmp_path: Path) -> None:
    place = tmp_path / "out"
    argv = ["--seeds", "1", "--output", str(place)]
    assert cli.run(dap_drawn.main, argv) == 0
    found = json.loads((place / "numbers.json").read_text())["1"]
    assert found["accuracy"] > 2 / len(dap_drawn.CLASSES), "the classifier learns"
    assert found["overlap"] > 2 * found["chance"], "boxes are where the things are"
    pre_training, *transfers = (
        (place / "1" / name / "log.txt").read_text() for name in ("dap", "transfer_classifier", "transfer_DAP")
    )
    for log in (pre_training, transfers[0]):
        assert "260 of 295 tensors loaded: backbone.body 260" in log
    assert "291 of 295 tensors loaded" in transfers[1]
    assert "dropped, as it belongs to the classes of the data that the file was trained on: roi_heads" in transfers[1]
    assert all(found["scores"][start]["AP"] > 0 for start in dap_drawn.STARTS)
    assert cli.run(dap_drawn.main, argv) == 2, "nothing is written over"
