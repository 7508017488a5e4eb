"""The configs of DECOLA say what the released ones do, and the released ones load as they are."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.config.aliases import Fixed, Mapped, NoEffect, Renamed, find
from maskrcnn_benchmark.config.defaults import NOT_OF
from maskrcnn_benchmark.config.detectron2 import ARCHITECTURES, TABLE
from maskrcnn_benchmark.config.node import is_under
from tests.golden.common import golden_root, shared_path

CONFIGS = Path(__file__).parents[2] / "configs" / "decola"
NOT_RUNNABLE = "DECOLA_DETA"  # nor is it in the original
GROUPS = {  # of keys that another family of networks has
    "DecolaDeformableDETR": ("MODEL.ROI_BOX_HEAD", "MODEL.ROI_HEADS", "MODEL.CENTERNET"),
    "DeformableDETR": ("MODEL.ROI_BOX_HEAD", "MODEL.ROI_HEADS", "MODEL.CENTERNET", "MODEL.DECOLA"),
    "CenterNet2RCNN": ("MODEL.DETR", "MODEL.DECOLA"),
}
OF_THE_BASELINE = tuple(  # keys of MODEL.DETR that have one of MODEL.DECOLA beside them
    f"MODEL.DETR.{name}"
    for name in (
        *("USE_ZEROSHOT_CLS", "ZEROSHOT_WEIGHT_PATH", "ZEROSHOT_WEIGHT_DIM", "NORM_WEIGHT", "NORM_TEMP", "USE_BIAS"),
        *("ORACLE_EVALUATION", "TEST_SCORE_THRESHOLD"),
    )
)


@cache
def released() -> dict[str, Any]:
    """What the shared folder knows of each file."""
    path = shared_path("spec", "decola_data", "configs_resolved.json")
    rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: row for name, row in rows.items() if _architecture(rows, name) != NOT_RUNNABLE}


def _architecture(rows: dict[str, Any], name: str) -> str:
    key = "MODEL.META_ARCHITECTURE"
    return next(str(rows[base]["own_keys"][key]) for base in rows[name]["base_chain"] if key in rows[base]["own_keys"])


def _names() -> list[str]:
    return sorted(released()) if golden_root() else []


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check(cfg: Cfg, key: str, value: Any) -> None:
    """One key of a released file against our config."""
    alias = None
    if not cfg.has(key) or is_under(key, NOT_OF[cfg.MODEL.META_ARCHITECTURE]):
        alias = find(key, TABLE)
        assert alias is not None, f"{key} is not known"
    if isinstance(alias, Fixed):
        alias.check(key, value, "released")
    elif isinstance(alias, (Renamed, Mapped)) or alias is None:
        name = alias.key if alias is not None else key
        wanted = alias.values[str(value)] if isinstance(alias, Mapped) else value
        assert _plain(cfg.peek(name)) == _plain(wanted), f"{name}, called {key} in the released file"
    else:
        assert isinstance(alias, NoEffect)


@pytest.mark.parametrize("name", _names() or [pytest.param("", marks=pytest.mark.skip(reason="needs MB_SHARED"))])
def test_a_config_says_what_the_released_one_does(name: str) -> None:
    cfg, row = load_cfg(name), released()[name]
    assert cfg.notes == [], "our own files have our own names"
    architecture = cfg.MODEL.META_ARCHITECTURE
    assert architecture == ARCHITECTURES[_architecture(released(), name)]
    keys = json.loads(shared_path("spec", "decola_data", "config_keys_added.json").read_text(encoding="utf-8"))
    values = {
        key: value for part in ("centernet", "detic", "decola") for key, value in keys[f"added_by_{part}"].items()
    }
    values |= {"TEST.DETECTIONS_PER_IMAGE": keys["changed_defaults"]["TEST.DETECTIONS_PER_IMAGE"][1]}
    values |= {key: value for key, value in values.items() if not key.startswith("WANDB")}
    changed = dict(row["resolved_differences_from_default"])
    for key in ("MODEL.META_ARCHITECTURE", "OUTPUT_DIR"):
        changed.pop(key, None)
    others = (*GROUPS[architecture], *(OF_THE_BASELINE if architecture == "DecolaDeformableDETR" else ()))
    skipped = {"SOLVER.USE_CUSTOM_SOLVER", "MODEL.CENTERNET.ONLY_PROPOSAL", "MODEL.CENTERNET.WITH_AGN_HM"}
    skipped |= {"DATALOADER.MULTI_DATASET_GROUPING", "FIND_UNUSED_PARAM", "MODEL.TIMM.BASE_NAME"}
    skipped |= {"MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", "SOLVER.OPTIMIZER"}
    if "MODEL.DECOLA.ORACLE_EVALUATION" in changed:
        skipped.add("MODEL.DETR.ORACLE_EVALUATION")  # of the baseline's file for labelling, which sets DECOLA's
    for key, value in {**values, **changed}.items():
        if is_under(key, others) or (key in skipped and key not in changed):
            continue
        _check(cfg, key, value)


@pytest.mark.parametrize("name", _names() or [pytest.param("", marks=pytest.mark.skip(reason="needs MB_SHARED"))])
def test_a_released_file_loads_as_it_is(name: str, tmp_path: Path) -> None:
    for file in released()[name]["base_chain"]:
        tree: dict[str, Any] = {}
        for key, value in released()[file]["own_keys"].items():
            *path, last = key.split(".")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
        chain = released()[file]["base_chain"]
        if len(chain) > 1:
            tree["_BASE_"] = str(tmp_path / chain[1])
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(yaml.safe_dump(tree), encoding="utf-8")
    theirs, ours = load_cfg(tmp_path / name), load_cfg(name)
    assert theirs.notes, "names of detectron2 are told of"
    assert dict(theirs.keys_and_values()) == dict(ours.keys_and_values())


def test_every_file_of_the_folder_loads() -> None:
    files = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
    for file in files:
        cfg = load_cfg(file)
        assert cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES.values()
        assert Path(cfg.OUTPUT_DIR).name == Path(file).stem
        assert load_cfg(f"configs/{file}").OUTPUT_DIR == cfg.OUTPUT_DIR
