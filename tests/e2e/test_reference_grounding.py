"""FIBER-B on LVIS, Flickr30k and referring expressions, from files to numbers, against stored runs of the reference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_benchmark.zero_shot import zero_shot
from tests.e2e.reference import environment, filled_checkpoint
from tests.golden.common import golden_cases, load_case, shared_path

STRICT = ("--score", "1e-4", "--box", "0.05")
ANNOTATIONS = {  # where the released configs look for them
    "lvis": "coco/annotations/lvis_v1_minival_inserted_image_name.json",
    "flickr": "mdetr_annotations/final_flickr_separateGT_{split}.json",
    "refcocos": "mdetr_annotations/finetune_refcoco_val.json",
}
PICTURES = {"lvis": "coco/val2017", "flickr": "flickr30k/flickr30k_images/{split}", "refcocos": "refcoco/train2014"}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def lay_out(path: Path, case: dict[str, Any], folder: Path, kind: str) -> Path:
    """A DATASET folder with the case's pictures, and with annotations made from the predictions of the reference.

    Random weights find nothing of what is really there, and numbers that are all 0 would show nothing.
    """
    shared, root = shared_path("data", "DATASET"), folder / "DATASET"
    script = shared_path("golden", "e2e", "make_subset.py")
    subprocess.run([sys.executable, script, path, shared, folder / "subset"], check=True)
    split = "test" if "_test" in case["annotation_file"] else "val"
    source = "annotations.json" if kind == "flickr" else "annotations_pseudo.json"
    file = root / ANNOTATIONS[kind].format(split=split)
    file.parent.mkdir(parents=True)
    file.write_bytes((folder / "subset" / source).read_bytes())
    pictures = root / PICTURES[kind].format(split=split)
    pictures.parent.mkdir(parents=True, exist_ok=True)
    pictures.symlink_to(shared / "coco" / "val2017")
    if kind == "flickr":
        entities, made = root / "flickr30k" / "flickr30k", folder / "subset" / "flickr"
        entities.mkdir()
        (entities / f"{split}.txt").symlink_to(made / f"{split}.txt")
        (entities / "Sentences").symlink_to(made / "Sentences")
        (entities / "Annotations").symlink_to(made / "Annotations_pseudo")
    return root


def evaluate(path: Path, folder: Path, weight: Path, *more: str) -> tuple[Path, dict[str, float]]:
    """Result folder and numbers of a case's command."""
    case, _ = load_case(path)
    kind = case["case"].split("_")[0]
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(lay_out(path, case, folder, kind)).items():
            patch.setenv(key, value)
        opts = [*map(str, case["opts"]), "OUTPUT_DIR", str(folder / "out"), "DATALOADER.NUM_WORKERS", "0", *more]
        tasks = [f"configs/{case['task_config']}"] if case["task_config"] else []
        results = zero_shot(f"configs/{case['config_file']}", str(weight), tasks, opts)
    (name, numbers), *_ = results.items()
    return folder / "out" / "eval" / weight.stem / "inference" / name, numbers


def in_stored_layout(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predictions as the comparison wants them."""
    if not rows or "category_id" in rows[0] or "sentence_id" in rows[0]:
        return rows
    key = "top (score, xyxy box in original pixels)"
    return [{"image_id": row["image_id"], key: list(zip(row["scores"], row["boxes"], strict=True))} for row in rows]


def expected_metrics(case: dict[str, Any]) -> dict[str, float]:
    """The case's numbers under our names."""
    metrics = next(value for key, value in case.items() if key.startswith("pseudo_gt_metrics"))
    if "refcoco [P@1,P@5,P@10]" in metrics:
        return dict(zip(("P@1", "P@5", "P@10"), metrics["refcoco [P@1,P@5,P@10]"], strict=True))
    return dict(metrics)


@pytest.mark.parametrize("case_path", golden_cases("e2e", "lvis_*", "flickr_*", "refcoco*"))
def test_run_equals_the_reference(case_path: Path, checkpoints: Path, tmp_path: Path) -> None:
    case, _ = load_case(case_path)
    folder, numbers = evaluate(case_path, tmp_path, filled_checkpoint(case, checkpoints))
    name = "bbox.json" if (folder / "bbox.json").exists() else "predictions.json"
    compare = shared_path("golden", "e2e", "compare.py")
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(in_stored_layout(json.loads((folder / name).read_text()))))
    run = subprocess.run(
        [sys.executable, compare, case_path, mine, *STRICT], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for metric, value in expected_metrics(case).items():
        assert numbers[metric] == pytest.approx(value, abs=0.01), metric
    written = next(folder.glob("*.csv")).read_text()
    stored = case.get("bbox_csv") or case["recall_results_csv"]
    assert [line.split(",")[0].split(" = ")[0] for line in written.splitlines()][:2] == [
        line.split(",")[0].split(" = ")[0] for line in stored.splitlines()
    ][:2]
