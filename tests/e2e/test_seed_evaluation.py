"""FIBER's evaluation commands as its instructions print them, on real pictures with a narrow network."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.benchmarks import BENCHMARKS, lay_out
from tests.narrow import CONFIG, Narrow, make_narrow

ROOT = Path(__file__).resolve().parents[2]
COCO = """python tools/test_grounding_net.py --config-file {config_file} --weight {model_checkpoint} \\
        TEST.IMS_PER_BATCH 1 \\
        TEST.EVAL_TASK detection \\
        OUTPUT_DIR {output_dir}"""
LVIS = """python -m torch.distributed.launch --nproc_per_node=4 \\
        tools/test_grounding_net.py \\
        --config-file {config_file} \\
        --task_config configs/lvis/minival.yaml \\
        --weight {model_checkpoint} \\
        TEST.EVAL_TASK detection OUTPUT_DIR {output_dir} 
        TEST.CHUNKED_EVALUATION 40  TEST.IMS_PER_BATCH 4 SOLVER.IMS_PER_BATCH 4 TEST.MDETR_STYLE_AGGREGATE_CLASS_NUM 3000 MODEL.RETINANET.DETECTIONS_PER_IMG 300 MODEL.FCOS.DETECTIONS_PER_IMG 300 MODEL.ATSS.DETECTIONS_PER_IMG 300 MODEL.ROI_HEADS.DETECTIONS_PER_IMG 300"""  # noqa: E501, W291
FLICKR = """python tools/test_grounding_net.py \\
        --config-file {config_file} \\
        --task_config configs/flickr/test.yaml,configs/flickr/val.yaml \\
        --weight {model_checkpoint} \\
        OUTPUT_DIR {output_dir} TEST.IMS_PER_BATCH 1 SOLVER.IMS_PER_BATCH 1 TEST.MDETR_STYLE_AGGREGATE_CLASS_NUM 100 TEST.EVAL_TASK grounding"""  # noqa: E501


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


def config_file(narrow: Narrow, folder: Path, test: str) -> Path:
    """A config of the narrow network, so that nothing has to be added to the commands."""
    tree: dict[str, object] = {"_BASE_": str(ROOT / CONFIG)}
    for key, value in [*zip(narrow.opts[::2], narrow.opts[1::2], strict=True), ("DATASETS.TEST", [test])]:
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})  # type: ignore[assignment]
        node[leaf] = yaml.safe_load(value) if isinstance(value, str) else value
    path = folder / "narrow.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(command: str, narrow: Narrow, dataset: Path, folder: Path, test: str) -> tuple[Path, str]:
    """The command from the repository; returns the folder of all results, and what it said."""
    output = folder / "out"
    config = config_file(narrow, folder, test)
    words = command.format(config_file=config, model_checkpoint=narrow.weights, output_dir=output)
    argv = [sys.executable, *shlex.split(words.replace("\\\n", " "))[1:]]
    env = {**os.environ, "DATASET": str(dataset), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return output / "eval" / narrow.weights.stem / "inference", done.stdout + done.stderr


def results(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "results.json").read_text())
    return found


def test_coco(narrow: Narrow, tmp_path: Path) -> None:
    dataset = lay_out(BENCHMARKS["coco"], tmp_path)
    folder, said = run(COCO, narrow, dataset, tmp_path, "coco_2017_val")
    assert results(folder / "coco_2017_val")["counts"]["pictures"] == 9  # type: ignore[index]
    assert "toothbrush" in said


def test_lvis_in_four_processes(narrow: Narrow, tmp_path: Path) -> None:
    dataset = lay_out(BENCHMARKS["lvis"], tmp_path)
    folder, said = run(LVIS, narrow, dataset, tmp_path, "coco_2017_val")
    found = results(folder / "lvis_evaluation_mini_val")
    assert found["counts"]["pictures"] == 3  # type: ignore[index]
    assert {"AP", "APr", "APc", "APf"} <= set(found["metrics"])  # type: ignore[arg-type]
    assert json.loads((folder / "lvis_evaluation_mini_val" / "run.json").read_text())["processes"] == 4
    assert said.count("1203 classes") == 1, "one process speaks for all"


def test_flickr_test_and_val(narrow: Narrow, tmp_path: Path) -> None:
    dataset = lay_out(BENCHMARKS["flickr"], tmp_path)
    lay_out(BENCHMARKS["flickr_test"], tmp_path)
    folder, said = run(FLICKR, narrow, dataset, tmp_path, "flickr30k_val")
    for split in ("test", "val"):
        found = results(folder / f"flickr30k_{split}")
        assert 0 <= found["metrics"]["Recall@1_all"] <= found["metrics"]["Recall@10_all"] <= 1  # type: ignore[index]
    assert "Recall@1_all" in said


def test_refcoco(narrow: Narrow, tmp_path: Path) -> None:
    """The instructions have no command of its own for it; this is COCO's with the other task."""
    dataset = lay_out(BENCHMARKS["refexp"], tmp_path)
    command = COCO.replace("EVAL_TASK detection", "EVAL_TASK grounding")
    folder, _ = run(command, narrow, dataset, tmp_path, "refcoco_val")
    found = results(folder / "refcoco_val")
    assert {"P@1", "P@5", "P@10", "P@1_IoU"} <= set(found["metrics"])  # type: ignore[arg-type]
    assert found["counts"]["expressions"] >= 8  # type: ignore[index]
