"""DECOLA beside its networks: names to embeddings, the three scripts for pseudo annotations, limits of LVIS AP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from maskrcnn_benchmark.checkpoint.clip import load_clip_text
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.evaluation.engine import ENGINES
from maskrcnn_benchmark.text.class_bank import make_bank, read_bank, write_bank
from maskrcnn_benchmark.text.clip_encoder import ClipText
from maskrcnn_benchmark.text.clip_tokenizer import load_clip_tokenizer
from tests.conftest import fill, golden_cases, load_case, shared_path
from tests.golden.test_eval_lvis import filled, in_percent, same, sides_as_stored
from tools import (
    convert_predictions_to_pseudo_annotations,
    deduplicate_pseudo_annotations,
    make_multi_resolution_pseudo_annotations,
)

__all__ = ["sides_as_stored"]

Row = dict[str, Any]


def run_tools(folder: Path, info: Row, predictions: dict[str, list[Row]], *thresholds: str) -> dict[str, Row]:
    """The files that the scripts leave, by name: one per size, "all", and "all" after each deduplication."""
    (folder / "info.json").write_text(json.dumps(info))
    found = {}
    for size, rows in predictions.items():
        (folder / f"predictions_{size}.json").write_text(json.dumps(rows))
        argv = ["--annotation_name", f"all_minsize_{size}", "--prediction_path", f"{folder}/predictions_{size}.json"]
        argv += ["--annotation_path", f"{folder}/info.json", "--out_root", f"{folder}"]
        convert_predictions_to_pseudo_annotations.main(argv)
        found[size] = json.loads((folder / f"all_minsize_{size}.json").read_text())
    common = ["--annotation_name", "all", "--out_root", f"{folder}"]
    make_multi_resolution_pseudo_annotations.main(["--sizes", *predictions, *common])
    joined = (folder / "all.json").read_text()
    found["all"] = json.loads(joined)
    for threshold in thresholds:
        for boxes, argv in {"released": ["--iou_thres", threshold], "xywh": ["--ioiu_thres", threshold]}.items():
            (folder / "all.json").write_text(joined)
            deduplicate_pseudo_annotations.main([*argv, *(["--boxes", boxes] if boxes == "xywh" else []), *common])
            found[f"{boxes} {threshold}"] = json.loads((folder / "all.json").read_text())
    return found


@pytest.mark.parametrize("path", golden_cases("decola", "offline_tools*"))
def test_offline_tools(path: Path, tmp_path: Path) -> None:
    case, _ = load_case(path)
    released = case["deduplicated_released (boxes treated as XYXY)"]
    found = run_tools(tmp_path, case["imagenet_info"], case["predictions_per_size"], *released)
    for name, want in case.items():
        if name.startswith("converted_minsize_"):
            assert found[name.rpartition("_")[2]] == want
    assert found["all"] == case["multi_resolution"]
    by_id = {row["id"]: row for row in found["all"]["annotations"]}
    for threshold, want in released.items():
        assert found[f"released {threshold}"]["annotations"] == want
        kept = found[f"xywh {threshold}"]["annotations"]
        ids = case["ids_kept_if_boxes_are_read_as_XYWH"][threshold]
        assert [row["bbox"] for row in kept] == [pytest.approx(by_id[number]["bbox"], rel=1e-6) for number in ids]


@pytest.mark.parametrize("path", golden_cases("eval", "decola_*"))
def test_decola_tools(path: Path, tmp_path: Path) -> None:
    case, _ = load_case(path)
    wanted = {name.rpartition("_")[2]: rows for name, rows in case.items() if name.startswith("expected_dedup_")}
    found = run_tools(tmp_path, case["image_info"], case["predictions_by_size"], *wanted)
    assert sorted(found["all"]) == case["expected_multi_keys"]
    assert found["all"]["annotations"] == case["expected_multi_annotations"]
    for threshold, rows in wanted.items():
        assert found[f"released {threshold}"]["annotations"] == rows


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("path", golden_cases("decola", "lvis_eval*"))
def test_lvis_limits(path: Path, engine: str) -> None:
    case, _ = load_case(path)
    for name, want in case["results"].items():
        limits = dict(part.split("=") for part in name.split(","))
        options = {"per_image": int(limits["max_dets"]), "per_image_class": int(limits["max_dets_per_class"])}
        evaluator = filled(case["gt"], case["detections"], engine, protocol="standard", **options)
        same(in_percent(evaluator.summary()), want, f"{name} with {engine}")


@pytest.mark.parametrize("path", golden_cases("decola", "clip_text*"))
def test_clip_text(path: Path, tmp_path: Path) -> None:
    """From names to embeddings, with weights that go through the loader under their released names."""
    case, wanted = load_case(path)
    tokenizer = load_clip_tokenizer(shared_path("data", "DATASET", "metadata"))
    assert torch.equal(tokenizer.encode(case["prompts"]), wanted["tokens"])
    net = ClipText()
    kinds = {name: [str(value.dtype), list(value.shape)] for name, value in net.state_dict().items()}
    assert kinds == case["state_names"]
    fill.fill_(net, case["seed"])
    weights = save_weights({**net.state_dict(), "visual.proj": torch.zeros(2)}, tmp_path / "clip.safetensors")
    bank = make_bank(case["names"], load_clip_text(weights), tokenizer)
    assert bank.encoder == net.digest()
    close = {"rtol": 0, "atol": case["tolerance"]}
    torch.testing.assert_close(bank.table, wanted["features"], **close)
    torch.testing.assert_close(F.normalize(bank.table, dim=1), wanted["normalized"], **close)
    read = read_bank(write_bank(bank, tmp_path / "bank.safetensors")).check(case["names"], bank, 512)
    torch.testing.assert_close(read.rows(case["names"][::-1]), bank.table.flip(0), rtol=0, atol=0)
