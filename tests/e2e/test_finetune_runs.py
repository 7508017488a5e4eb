"""``tools/finetune.py`` on real pictures: a narrow network without weights learns its few shots by heart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from maskrcnn_benchmark.engine.finetune_report import HEADER, Row
from tests.e2e.test_training_runs import shots
from tests.golden.common import shared_path
from tests.training_runs import ROOT, environment

pytestmark = pytest.mark.full

COMMAND = """tools/finetune.py --config-file configs/demo/fiber_narrow.yaml --ft-tasks {task}
      --custom_shot_and_epoch_and_general_copy {schedule} --evaluate_only_best_on_test
      TEST.DURING_TRAINING True TEST.EVAL_TASK detection DATASETS.TRAIN_DATASETNAME_SUFFIX _grounding"""
AQUARIUM = "odinw/Aquarium/Aquarium Combined.v2-raw-1024.coco/train"
SHALLOW = {
    "MODEL.SWINT.DEPTHS": "(1,1,5,2)",
    "MODEL.LANGUAGE_BACKBONE.NUM_LAYERS": 6,
    "MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN": 48,
    "SOLVER.CHECKPOINT_PER_EPOCH": 3.0,
}
PROMPTS = {
    "DATASETS.DISABLE_SHUFFLE": True,
    "DATASETS.USE_OVERRIDE_CATEGORY": True,
    "DATASETS.USE_CAPTION_PROMPT": True,
}
KEYS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.SWINT.DROP_PATH_RATE": 0.0,
    "MODEL.DYHEAD.NUM_CONVS": 1,
    "MODEL.DYHEAD.USE_CHECKPOINT": False,
    "MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN": 32,
    "MODEL.ATSS.INFERENCE_TH": 0.05,
    "INPUT.MIN_SIZE_TRAIN": 240,
    "INPUT.MAX_SIZE_TRAIN": 400,
    "INPUT.MIN_SIZE_TEST": 240,
    "INPUT.MAX_SIZE_TEST": 400,
    "AUGMENT.MULT_MIN_SIZE_TRAIN": "()",
    "AUGMENT.FLIP_PROB_TRAIN": 0.0,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.BASE_LR": 6e-4,
    "SOLVER.LANG_LR": 6e-4,
    "SOLVER.STEPS": "(0.8,0.95)",
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WARMUP_ITERS": 30,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MODEL_EMA": 0.0,
    "SOLVER.USE_AMP": False,
    "SOLVER.CHECKPOINT_PER_EPOCH": 4.0,
    "TEST.IMS_PER_BATCH": 2,
}
"""Few steps on small pictures, and nothing of what keeps large networks from overfitting."""


def learn_by_heart(folder: Path, task: Path | str, schedule: str, pictures: str, keys: Mapping[str, object]) -> Row:
    """Fine-tune with the tool and score what it was trained with, as the test split; returns the row of the summary."""
    data, tokenizers = shared_path("data", "DATASET"), shared_path("tokenizers")
    annotations = data / pictures / "annotations_without_background.json"
    own = {
        "DATASETS.REGISTER.test.img_dir": pictures,
        "DATASETS.REGISTER.test.ann_file": shots(folder, data / pictures, annotations, int(schedule.split("_")[0])),
        "DATASETS.TEST": "('test',)",
        "OUTPUT_DIR": folder / "out",
    }
    opts = [str(part) for pair in {**KEYS, **keys, **own}.items() for part in pair]
    words = [*COMMAND.format(task=task, schedule=schedule).split(), *opts]
    env = environment(DATASET=str(data), MB_TOKENIZERS=str(tokenizers))
    run = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=3600, check=False
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((folder / "out/ft_task_1/eval/model_best/test/results.json").read_text())
    print(f"AP50 {results['metrics']['AP50']:.3f} on its own shots\n{run.stdout}")
    assert results["metrics"]["AP50"] > 0.5
    row: Row
    (row,) = json.loads((folder / "out" / "finetune.json").read_text())["rows"]
    assert row["fine_tuned"] == pytest.approx(results["metrics"]["AP"])
    header, line = (told for told in run.stdout.splitlines() if not told.startswith("+"))
    assert cells(header) == list(HEADER)
    told = [row["task"], "test", str(row["shots"]), "-", *(f"{row[key]:.4f}" for key in ("zero_shot", "fine_tuned"))]
    assert cells(line) == [*told, f"{row['val']:.4f}", str(row["best_step"]), "-"]
    return row


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_five_shots_of_blood_cells(tmp_path: Path) -> None:
    """The task file is in the form of ODinW's."""
    register = {
        name: {"img_dir": f"odinw/BCCD/{split}", "ann_file": f"odinw/BCCD/{split}/annotations_without_background.json"}
        for name, split in (("train", "train"), ("val", "valid"), ("test", "test"))
    }
    task = tmp_path / "BCCD.yaml"
    task.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": register, "TRAIN": ["train"], "TEST": ["val"]}}))
    row = learn_by_heart(tmp_path, task, "5_10_16", "odinw/BCCD/train", {})
    assert (row["task"], row["shots"], row["steps"]) == ("BCCD", 5, 480)


def test_one_shot_of_the_animals_of_an_aquarium(tmp_path: Path) -> None:
    """Six pictures with seven classes; the prompts are those of the task file."""
    task = "configs/odinw/Aquarium_Aquarium_Combined.v2-raw-1024.coco.yaml"
    row = learn_by_heart(tmp_path, task, "1_12_16", AQUARIUM, SHALLOW | PROMPTS)
    assert (row["task"], row["shots"], row["steps"]) == (Path(task).stem, 1, 576)
