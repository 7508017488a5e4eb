"""Checkpoints filled by name, and data folders cut down to the pictures of a stored reference run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from tests.golden.common import fill, shared_path


def overrides(model: torch.nn.Module, rules: dict[str, Any]) -> None:
    """Apply the "overrides_after_fill" of a case: by name suffix, set a value or multiply."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            for suffix, rule in rules.items():
                if "<i>" in suffix:
                    head, tail = suffix.split("<i>")
                    if head in name and name.endswith(tail):
                        tensor.fill_(1 + 0.1 * int(name[: -len(tail)].rsplit(".", 1)[-1]))
                elif name.endswith(suffix.lstrip("*")):
                    if isinstance(rule, str):
                        tensor.mul_(float(rule.rsplit(" ", 1)[-1]))
                    else:
                        tensor.fill_(rule)


def filled_checkpoint(case: dict[str, Any], folder: Path, opts: tuple[str, ...] = ()) -> Path:
    """A checkpoint file of the case's network with the case's weights; made once per folder."""
    path = folder / f"{Path(case['config_file']).stem}_{case['fill_seed']}.pth"
    if not path.exists():
        model = build_detector(load_cfg(f"configs/{case['config_file']}", opts=opts))
        anchors = tuple(name for name in model.state_dict() if "anchor_generator.cell_anchors" in name)
        fill.fill_(model, case["fill_seed"], skip=anchors)
        overrides(model, case["overrides_after_fill (by name suffix)"])
        save_weights({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, path)
    return path


def data_folder(case_path: Path, case: dict[str, Any], folder: Path, annotations: str = "annotations.json") -> Path:
    """A DATASET folder in which the case's annotation file holds only its pictures; pictures are linked."""
    shared = shared_path("data", "DATASET")
    script = shared_path("golden", "e2e", "make_subset.py")
    subset = folder / "subset"
    subprocess.run([sys.executable, script, case_path, shared, subset], check=True)
    file = folder / "DATASET" / case["annotation_file"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((subset / annotations).read_bytes())
    for picture in case["images"]:
        name = Path(picture["file_name"]).name
        source = next(shared.glob(f"{Path(case['annotation_file']).parts[0]}/**/{name}"))
        target = folder / "DATASET" / source.relative_to(shared)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    return folder / "DATASET"


def task_file(case: dict[str, Any], folder: Path) -> str | None:
    """The case's task config: one of ours, or the YAML that the case quotes."""
    task = case["task_config"]
    if task is None or task.endswith(".yaml"):
        return task and f"configs/{task}"
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(task)), encoding="utf-8")
    return str(path)


def environment(dataset: Path) -> dict[str, str]:
    """Environment of a tool that is to find data in ``dataset`` and the shared tokenizers."""
    return {**os.environ, "DATASET": str(dataset), "MB_TOKENIZERS": str(shared_path("tokenizers"))}
