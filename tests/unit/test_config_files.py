"""Our YAML files, and those that were published with FIBER, GLIP and DAP: both load, to the same values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskrcnn_benchmark.config import load_cfg

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OURS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "published_configs.json").read_text(encoding="utf-8"))
TASKS = ("refexp/", "flickr/", "lvis/", "odinw")
FIBER = "pretrain/mixed_nococo_flickr_objects365.yaml"


def published(name: str) -> dict[str, Any]:
    """The flat keys of a published file: those of the file it is like, without some, with others."""
    entry = PUBLISHED[name]
    keys = published(entry["like"]) if "like" in entry else {}
    return {key: value for key, value in keys.items() if key not in entry.get("without", ())} | entry["set"]


def write_nested(path: Path, flat: dict[str, Any]) -> Path:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_load_unchanged_and_ours_say_the_same(name: str, tmp_path: Path) -> None:
    original = write_nested(tmp_path / "original.yaml", published(name))
    task = name.startswith(TASKS)
    theirs = dict((load_cfg(FIBER, original) if task else load_cfg(original)).keys_and_values())
    ours = dict((load_cfg(FIBER, name) if task else load_cfg(name)).keys_and_values())
    if task:  # it never reached the network, and the data set knows
        del theirs["MODEL.DYHEAD.NUM_CLASSES"], ours["MODEL.DYHEAD.NUM_CLASSES"]
    if not ours["MODEL.DYHEAD.FUSE_CONFIG.EARLY_FUSE_ON"]:  # the kind of a fusion that is off
        del theirs["MODEL.DYHEAD.FUSE_CONFIG.TYPE"], ours["MODEL.DYHEAD.FUSE_CONFIG.TYPE"]
    if theirs["MODEL.WEIGHT"].startswith("~output"):  # a place on the disk of its authors
        del theirs["MODEL.WEIGHT"], ours["MODEL.WEIGHT"]
    if ours["MODEL.META_ARCHITECTURE"] == "GeneralizedRCNN":  # maskrcnn-benchmark knows no other way to make batches
        assert (ours.pop("DATALOADER.SAMPLER"), theirs.pop("DATALOADER.SAMPLER")) == ("chunks", "shared")
    assert ours == theirs


def test_a_key_that_dap_published_twice_counts_once(tmp_path: Path) -> None:
    name = "imagenet1k/dap_in1k_faster_rcnn_r50fpn.yaml"
    original = write_nested(tmp_path / "original.yaml", published(name))
    text = original.read_text(encoding="utf-8")
    original.write_text(text.replace("SOLVER:\n", "SOLVER:\n  CHECKPOINT_EPOCH: 1\n"), encoding="utf-8")
    assert load_cfg(original).SOLVER.CHECKPOINT_EPOCH == 10


@pytest.mark.parametrize("name", OURS)
def test_our_files_load_without_a_note(name: str) -> None:
    cfg = load_cfg(FIBER, name) if name.startswith(TASKS) else load_cfg(name)
    assert cfg.notes == []


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("odinw")])
def test_odinw_files_name_data_sets_and_classes_that_fit(name: str) -> None:
    data = load_cfg(task_config=name).DATASETS
    for used in (*data.TRAIN, *data.TEST):
        assert set(data.REGISTER[used]) == {"img_dir", "ann_file"}
    if data.OVERRIDE_CATEGORY:
        assert [category["id"] for category in data.OVERRIDE_CATEGORY] == list(
            range(1, len(data.OVERRIDE_CATEGORY) + 1)
        )
    if data.OVERRIDE_CATEGORY and data.CAPTION_PROMPT:
        assert len(data.CAPTION_PROMPT) == len(data.OVERRIDE_CATEGORY)


def test_there_are_13_and_35_data_sets_of_odinw() -> None:
    thirteen, all_of_them = (
        {name.split("/")[1] for name in OURS if name.startswith(f"{f}/")} for f in ("odinw_13", "odinw_35")
    )
    assert thirteen < all_of_them
    assert (len(thirteen), len(all_of_them - {"plantdoc_100x100.yaml"})) == (13, 35)


@pytest.mark.parametrize(
    "command",
    [
        "TEST.IMS_PER_BATCH 1 TEST.EVAL_TASK detection OUTPUT_DIR out",
        "TEST.EVAL_TASK detection OUTPUT_DIR out TEST.CHUNKED_EVALUATION 40 TEST.IMS_PER_BATCH 4 "
        "SOLVER.IMS_PER_BATCH 4 TEST.MDETR_STYLE_AGGREGATE_CLASS_NUM 3000 MODEL.RETINANET.DETECTIONS_PER_IMG 300 "
        "MODEL.FCOS.DETECTIONS_PER_IMG 300 MODEL.ATSS.DETECTIONS_PER_IMG 300 MODEL.ROI_HEADS.DETECTIONS_PER_IMG 300",
        "TEST.IMS_PER_BATCH 1 SOLVER.IMS_PER_BATCH 1 TEST.EVAL_TASK detection "
        "DATASETS.TRAIN_DATASETNAME_SUFFIX _grounding DATALOADER.DISTRIBUTE_CHUNK_AMONG_NODE False "
        "DATASETS.USE_OVERRIDE_CATEGORY True DATASETS.USE_CAPTION_PROMPT True",
        "MODEL.WEIGHT w.pth SOLVER.USE_AMP True TEST.DURING_TRAINING True SOLVER.WEIGHT_DECAY 0.05 "
        "MODEL.BACKBONE.FREEZE_CONV_BODY_AT 2 MODEL.DYHEAD.USE_CHECKPOINT True SOLVER.FIND_UNUSED_PARAMETERS False "
        "SOLVER.TEST_WITH_INFERENCE True SOLVER.USE_AUTOSTEP True SOLVER.SEED 10 DATASETS.SHUFFLE_SEED 3 "
        "DATASETS.DISABLE_SHUFFLE True SOLVER.STEP_PATIENCE 3 SOLVER.CHECKPOINT_PER_EPOCH 1.0 "
        "SOLVER.AUTO_TERMINATE_PATIENCE 8 SOLVER.MODEL_EMA 0.0 SOLVER.TUNING_HIGHLEVEL_OVERRIDE full",
    ],
    ids=["coco", "lvis", "odinw", "finetune"],
)
def test_published_command_lines_load(command: str) -> None:
    opts = command.split()
    cfg = load_cfg(FIBER, opts=opts)
    without_effect = {key for note in cfg.notes for key in opts[::2] if key in note}
    assert all(cfg.source(key) == "command line" for key in opts[::2] if key not in without_effect)
    assert without_effect <= {
        "MODEL.RETINANET.DETECTIONS_PER_IMG",
        "MODEL.FCOS.DETECTIONS_PER_IMG",
        "MODEL.ROI_HEADS.DETECTIONS_PER_IMG",
        "DATALOADER.DISTRIBUTE_CHUNK_AMONG_NODE",
    }
