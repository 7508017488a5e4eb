"""The commands of FIBER's instructions, as printed there, on real pictures with filled weights."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_benchmark.zero_shot import zero_shot
from tests.e2e.reference import environment, filled_checkpoint
from tests.golden.common import case_files, load_case, shared_path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/pretrain/mixed_nococo_flickr_objects365.yaml"
TASK = "configs/odinw/Aquarium_Aquarium_Combined.v2-raw-1024.coco.yaml"
AQUARIUM = "odinw/Aquarium/Aquarium Combined.v2-raw-1024.coco/valid"
COMMAND = """tools/test_grounding_net.py --config-file {config_file} --weight {model_checkpoint} \
      --task_config {odinw_configs} \
      TEST.IMS_PER_BATCH 1 SOLVER.IMS_PER_BATCH 1 \
      TEST.EVAL_TASK detection \
      DATASETS.TRAIN_DATASETNAME_SUFFIX _grounding \
      DATALOADER.DISTRIBUTE_CHUNK_AMONG_NODE False \
      DATASETS.USE_OVERRIDE_CATEGORY True \
      DATASETS.USE_CAPTION_PROMPT True"""

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared_path()
    case, _ = load_case(case_files("e2e")["odinw_aquarium_320"])
    return filled_checkpoint(case, tmp_path_factory.mktemp("checkpoints"))


def aquarium(folder: Path, count: int) -> Path:
    """A DATASET folder with the first ``count`` pictures of Aquarium's validation set."""
    source, target = shared_path("data", "DATASET", AQUARIUM), folder / "DATASET" / AQUARIUM
    target.mkdir(parents=True)
    data: dict[str, Any] = json.loads((source / "annotations_without_background.json").read_text())
    data["images"] = sorted(data["images"], key=lambda row: row["id"])[:count]
    ids = {row["id"] for row in data["images"]}
    data["annotations"] = [row for row in data["annotations"] if row["image_id"] in ids]
    (target / "annotations_without_background.json").write_text(json.dumps(data))
    for row in data["images"]:
        shutil.copy(source / row["file_name"], target)
    return folder / "DATASET"


def test_the_odinw_command_runs_as_printed(weights: Path, tmp_path: Path) -> None:
    words = COMMAND.format(config_file=ROOT / CONFIG, model_checkpoint=weights, odinw_configs=ROOT / TASK)
    command = [sys.executable, ROOT / "tools/test_grounding_net.py", *shlex.split(words)[1:]]
    env = environment(aquarium(tmp_path, 2)) | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "OUTPUT" / "eval" / weights.stem / "inference" / "val"
    assert {"bbox.json", "bbox.csv", "results.json", "predictions.pth"} <= {path.name for path in folder.iterdir()}
    results = json.loads((folder / "results.json").read_text())
    assert results["counts"]["pictures"] == 2
    assert "jellyfish" in run.stderr, "the table names the classes"


def test_batches_of_one_and_four_find_the_same(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in environment(aquarium(tmp_path, 6)).items():
        monkeypatch.setenv(key, value)
    small = ["INPUT.MIN_SIZE_TEST", "256", "INPUT.MAX_SIZE_TEST", "448", "DATALOADER.NUM_WORKERS", "0"]
    found = []
    for batch in ("1", "4"):
        output = tmp_path / batch
        opts = ["TEST.EVAL_TASK", "detection", "TEST.IMS_PER_BATCH", batch, "OUTPUT_DIR", str(output), *small]
        zero_shot(CONFIG, str(weights), [TASK], [*opts, "DATASETS.USE_CAPTION_PROMPT", "True"])
        found.append(json.loads((output / "eval" / weights.stem / "inference" / "val" / "bbox.json").read_text()))
    assert len(found[0]) == len(found[1]) > 0
    key = [sorted(rows, key=lambda r: (r["image_id"], r["category_id"], r["bbox"])) for rows in found]
    for one, four in zip(*key, strict=True):
        assert (one["image_id"], one["category_id"]) == (four["image_id"], four["category_id"])
        assert one["score"] == pytest.approx(four["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(four["bbox"], abs=0.02)
