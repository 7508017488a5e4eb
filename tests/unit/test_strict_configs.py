"""``--strict-config`` over our own YAML files: no key in them is there for nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.classes import closed_vocabulary
from maskrcnn_benchmark.engine.tasks import plan_all_tasks
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.paths import config_root
from maskrcnn_benchmark.zero_shot import zero_shot
from tests.narrow import CONFIG, Narrow, make_narrow

CONFIGS = config_root()
MODELS = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in (*CONFIGS.glob("*.yaml"), *CONFIGS.glob("[pd]*/*.yaml"))
    if "SELF_LABELING" not in path.name  # these label pictures and score nothing
)
COUNTS = {  # of the drawn data's classes, where the network has as many outputs
    "GeneralizedRCNN": ["MODEL.ROI_BOX_HEAD.NUM_CLASSES", "9"],  # and the background
    "DeformableDETR": ["MODEL.DEFORMABLE_DETR.NUM_CLASSES", "8"],
    "DecolaDeformableDETR": ["MODEL.DEFORMABLE_DETR.NUM_CLASSES", "8"],
    "CenterNet2RCNN": ["MODEL.ROI_HEADS.NUM_CLASSES", "8"],
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.mark.parametrize("name", MODELS)
def test_model_configs(narrow: Narrow, tmp_path: Path, name: str) -> None:
    entry = narrow.task(narrow.data(tmp_path / "scenes", count=1), tmp_path)
    tokenizer = ["MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE", str(narrow.folder / "tokenizer")]
    opts = [*tokenizer, "TEST.EVAL_TASK", "detection"]
    if closed_vocabulary(load_cfg(name)):
        opts = COUNTS[load_cfg(name).MODEL.META_ARCHITECTURE]
    cfg, task = load_cfg(name, opts=opts), load_cfg(name, entry, opts)
    with torch.device("meta"):
        build_detector(cfg)
    assert len(plan_all_tasks({"task": task}, tmp_path / task.OUTPUT_DIR)) == 1
    cli.report_unread([cfg, task], strict=True)


@pytest.mark.parametrize("folder", ["odinw", "odinw_13", "odinw_35"])
def test_task_configs(narrow: Narrow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("DATASET", str(tmp_path / "DATASET"))
    tasks = sorted((CONFIGS / folder).glob("*.yaml"))
    for task in tasks:
        write_empty(load_cfg(task_config=task).DATASETS, tmp_path / "DATASET")
    opts = [*narrow.opts, "OUTPUT_DIR", str(tmp_path / "out"), "TEST.ON_BAD_IMAGE", "skip"]  # there are no pictures
    switches = ["DATASETS.USE_OVERRIDE_CATEGORY", "True", "DATASETS.USE_CAPTION_PROMPT", "True"]
    found = zero_shot(CONFIG, str(narrow.weights), list(map(str, tasks)), [*opts, *switches], True, dry_run=True)
    assert found == {}


def write_empty(data: Cfg, folder: Path) -> None:
    """Annotations with as many categories as a task file speaks of, and one picture, which is not there."""
    count = len(data.OVERRIDE_CATEGORY or data.CAPTION_PROMPT or "1")
    tree = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
        "annotations": [],
        "categories": [{"id": i, "name": f"thing {i}"} for i in range(1, count + 1)],
    }
    for name in data.TEST:
        (folder / data.REGISTER[name].img_dir).mkdir(parents=True, exist_ok=True)
        (folder / data.REGISTER[name].img_dir / "a.png").touch()
        file = folder / data.REGISTER[name].ann_file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(tree), encoding="utf-8")
