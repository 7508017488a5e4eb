"""Stored predictions of MDETR through our evaluators: PhraseCut, Flickr30k Entities, referring expressions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_benchmark.data.catalog import Entry
from maskrcnn_benchmark.data.datasets.modulated import ModulatedDataset
from maskrcnn_benchmark.data.datasets.modulated_captions import ModulatedCaptions
from maskrcnn_benchmark.evaluation.coco_variants import CaptionBoxesEvaluator
from maskrcnn_benchmark.evaluation.engine import ENGINES
from maskrcnn_benchmark.evaluation.flickr import FlickrEvaluator
from maskrcnn_benchmark.evaluation.phrasecut import LIMITS, PhraseCutEvaluator, kept_boxes
from maskrcnn_benchmark.evaluation.phrasecut_tasks import read_tasks
from maskrcnn_benchmark.evaluation.refexp import RefExpEvaluator
from maskrcnn_benchmark.modeling.heads.query_decode import find_objects, find_phrases
from maskrcnn_benchmark.structures import Detections, ImageMeta
from tests.golden.common import golden_cases, load_case, shared_path

TOLERANCE = 1e-9  # far below that of the cases


def write_json(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def split_of(files: dict[str, Any]) -> str:
    (name,) = (name for name in files if name.startswith("refer_"))
    return name.removeprefix("refer_").removesuffix(".json")


def same_subsets(evaluator: PhraseCutEvaluator, want: dict[str, Any], masks: bool) -> None:
    got = evaluator.scores()
    assert set(got) == set(want)
    for subset, numbers in want.items():
        expected = {"box_mean_iou": numbers["mean_box_iou"]}
        expected |= {f"box_Pr@{limit}": numbers["pred_box_acc"][str(limit)] for limit in LIMITS}
        if masks:
            expected |= {"mask_mean_iou": numbers["mean_mask_iou"], "mask_cum_iou": numbers["cum_mask_iou"]}
            expected |= {f"mask_Pr@{limit}": numbers["pred_mask_acc"][str(limit)] for limit in LIMITS}
        found = {key: value for key, value in got[subset].items() if key != "phrases"}
        assert found == pytest.approx(expected, abs=TOLERANCE), subset


@pytest.mark.parametrize("path", golden_cases("mdetr", "eval_phrasecut*"))
def test_phrasecut_of_mdetr(path: Path, tmp_path: Path) -> None:
    case, tensors = load_case(path)
    folder = write_json(tmp_path, case["files"])
    evaluator = PhraseCutEvaluator(folder, case["split"])
    assert len(evaluator.number) == case["all tasks"]
    for row in case["predictions"]:
        mask = tensors[f"mask.{row['task_id']}"].numpy() > 0
        evaluator.add(row["task_id"], row["boxes"], mask)
    same_subsets(evaluator, case["expected analyze_stats per subset"], masks=True)
    got = evaluator.scores()["all"]
    assert got["phrases"] == case["evaluated tasks"]
    returned = case["expected value returned to the logger"]
    assert {f"Precision@{t}": got[f"box_Pr@{t}"] for t in LIMITS} == pytest.approx(returned, abs=TOLERANCE)
    listed = next(value for name, value in case.items() if name.startswith("per-task"))
    order = list(dict.fromkeys(row["original_id"] for row in case["predictions"]))  # stable: tasks in file order
    rows = sorted(evaluator.predictions(), key=lambda row: order.index(row["original_id"]))
    columns = ("box_iou", "mask_iou", "intersection", "union")
    for name, want in zip(columns, listed, strict=True):
        assert [row[name] for row in rows] == pytest.approx(want, abs=TOLERANCE), name


@pytest.mark.parametrize("path", golden_cases("eval", "phrasecut*"))
def test_phrasecut_of_all_systems(path: Path, tmp_path: Path) -> None:
    case, _ = load_case(path)
    files, predictions = (
        json.loads(gzip.decompress(path.with_name(case["files"][name]).read_bytes()))
        for name in ("annotations", "predictions")
    )
    folder = write_json(tmp_path, files)
    for masks, want in ((True, case["expected"]["with_masks"]), (False, case["expected"]["boxes_only"])):
        evaluator = PhraseCutEvaluator(folder, split_of(files))
        for row in predictions:
            evaluator.add(row["task_id"], row["boxes"], decoded(row["mask_rle"]) if masks else None)
        same_subsets(evaluator, want["subsets"], masks)
        got = evaluator.scores()["all"]
        assert (got["phrases"], len(evaluator.number)) == (want["evaluated_tasks"], want["tasks_in_split"])
        returned = {f"Precision@{limit}": got[f"box_Pr@{limit}"] for limit in LIMITS}
        assert returned == pytest.approx(want["returned_by_summarize"], abs=TOLERANCE)


def decoded(shape: dict[str, Any]) -> np.ndarray:
    mask: np.ndarray = mask_api.decode(mask_api.frPyObjects(shape, *shape["size"])) > 0
    return mask


@pytest.mark.parametrize("path", golden_cases("mdetr", "eval_flickr*"))
def test_flickr(path: Path, tmp_path: Path) -> None:
    case, _ = load_case(path)
    folder = write_json(tmp_path, case["files"])
    for title, want in case["expected"].items():
        evaluator = FlickrEvaluator(folder, case["subset"], (title.split()[0],))
        evaluator.update_ranked(case["predictions"])
        assert evaluator.summary() == pytest.approx(want, abs=TOLERANCE), title


@pytest.mark.parametrize("path", golden_cases("mdetr", "eval_refexp*"))
def test_expressions_and_class_agnostic_boxes(path: Path, tmp_path: Path) -> None:
    case, _ = load_case(path)
    predictions = next(value for name, value in case.items() if name.startswith("predictions"))
    found = [of_one_object(int(number), row) for number, row in predictions.items()]
    data = {"images": case["images"], "annotations": case["annotations"], "categories": [{"id": 1, "name": "object"}]}
    file = write_json(tmp_path, {"finetune_refcoco_val.json": data}) / "finetune_refcoco_val.json"
    refexp = RefExpEvaluator(file)
    refexp.update(found)
    got = refexp.summary()
    (want,) = (value for name, value in case.items() if name.startswith("expected refexp"))
    for name, values in want.items():
        assert [got[f"{name}/P@{limit}"] for limit in (1, 5, 10)] == pytest.approx(values, abs=TOLERANCE), name
    (stats,) = (value for name, value in case.items() if name.startswith("expected coco"))
    assert reference_boxes(data, found, first=0) == pytest.approx(stats, abs=TOLERANCE)
    stats = reference_boxes(data, found, first=1)  # the object of annotation 0 is never found there
    for engine in ENGINES:
        boxes = CaptionBoxesEvaluator(file, engine=engine)
        boxes.update(found)
        assert list(boxes.summary().values()) == pytest.approx(stats, abs=TOLERANCE), engine


def reference_boxes(data: dict[str, Any], found: list[Detections], first: int) -> list[float]:
    """pycocotools' twelve numbers without categories; annotation ids count from ``first``."""
    rows = [{**row, "id": index, "category_id": 1} for index, row in enumerate(data["annotations"], first)]
    truth = COCO()
    truth.dataset = {**data, "annotations": rows}
    truth.createIndex()
    results = [{**row, "category_id": 1} for detections in found for row in detections.to_coco()]
    run = COCOeval(truth, truth.loadRes(results), "bbox")
    run.params.useCats = 0
    run.evaluate()
    run.accumulate()
    run.summarize()
    return [float(value) for value in run.stats]


def of_one_object(number: int, row: dict[str, list[Any]]) -> Detections:
    scores = torch.tensor(row["scores"], dtype=torch.float32)
    boxes = torch.tensor(row["boxes"], dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, scores, torch.zeros(len(scores), dtype=torch.int64), ImageMeta(number, (1, 1), (1, 1)))


@pytest.mark.parametrize("path", golden_cases("eval", "flickr_post*"))
def test_what_mdetr_makes_of_its_output(path: Path) -> None:
    case, tensors = load_case(path)
    want = case["mdetr"]
    spans = iter(want["token_spans"])
    for index, count in enumerate(want["items_per_batch_element"]):
        logits, boxes = tensors["pred_logits"][index], tensors["pred_boxes"][index]
        size = tuple(tensors["orig_size_hw"][index].tolist())
        meta = ImageMeta(index, size, size)
        tokens = torch.zeros(count, logits.shape[-1], dtype=torch.bool)
        for row, (begin, end) in zip(tokens, spans, strict=False):
            row[begin:end] = True
        objects = find_objects(logits, boxes, meta)
        torch.testing.assert_close(objects.boxes, tensors["bbox_boxes"][index], atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(objects.scores, tensors["bbox_scores"][index], atol=1e-5, rtol=0)
        kept = kept_boxes(Detections(objects.boxes, objects.scores, objects.labels, meta))
        expected = sorted(want["phrasecut_boxes_xywh_thresh0.7"][index])
        assert np.array(sorted(kept.tolist())).reshape(-1, 4) == pytest.approx(
            np.array(expected).reshape(-1, 4), abs=1e-3
        )
        if count:
            rows = find_phrases(logits, boxes, meta, tokens, range(1, count + 1))
            found = Detections(rows.boxes, rows.scores, rows.labels, meta)
            ranked = torch.stack([found[found.labels == label].boxes for label in range(1, count + 1)])
            torch.testing.assert_close(ranked, tensors[f"flickr_boxes_{index}"], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("split", ["miniv", "test"])
def test_a_perfect_answer_to_real_phrases(split: str) -> None:
    """Pictures, captions and polygons speak of the same phrases, and the right answer scores 1."""
    root = shared_path("data", "DATASET")
    file = root / "derived" / "mdetr_annotations" / f"finetune_phrasecut_{split}.json"
    options = {"original": str(root / "derived" / "phrasecut"), "split": split}
    entry = Entry("cut", "phrasecut", root / "coco" / "val2017", file, "phrasecut", options)
    asked = ModulatedCaptions.from_entry(entry)
    evaluator = PhraseCutEvaluator.from_entry(entry)
    tasks = {task.task_id: task for task in read_tasks(options["original"], split).tasks}
    assert len(tasks) == asked.num_entries
    for picture in range(len(asked)):
        for number in asked.entries(picture):
            meta = asked.meta(number, asked.size(picture))
            task = tasks[meta.extra["task_id"]]
            prompt = asked.prompts(picture)[asked.entries(picture).index(number)]
            assert (task.size, task.phrase) == (meta.orig_size, prompt.text)
            evaluator.add(task.task_id, task.boxes, task.mask())
    assert {name: value for name, value in evaluator.summary().items() if value != 1} == {}


@pytest.mark.parametrize("split", ["miniv"])
def test_masks_for_training_are_those_that_are_scored(split: str) -> None:
    """COCO's polygons and PhraseCut's painting differ by a border of a pixel at most."""
    root = shared_path("data", "DATASET")
    file = root / "derived" / "mdetr_annotations" / f"finetune_phrasecut_{split}.json"
    data = ModulatedDataset(root / "coco" / "val2017", file, masks=True)
    tasks = {task.task_id: task for task in read_tasks(root / "derived" / "phrasecut", split).tasks}
    shared, either = 0, 0
    for index in range(0, len(data), 5):
        target = data[index].target
        assert target.masks.shape == (len(target), *target.meta.orig_size)
        mask, truth = target.masks.any(dim=0).numpy(), tasks[target.meta.extra["task_id"]].mask()
        shared, either = shared + int((mask & truth).sum()), either + int((mask | truth).sum())
    assert shared / either > 0.93
