"""COCO evaluation: the same numbers from every engine, the files, and what is refused."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.evaluation import engine as engines
from maskrcnn_benchmark.evaluation.check import check_ground_truth, read_coco
from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.evaluation.engine import ENGINES, choose_engine, evaluate_coco
from maskrcnn_benchmark.evaluation.proposals import proposal_recall
from maskrcnn_benchmark.structures import Detections, ImageMeta

TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100"]
LABELS = {1: 3, 2: 8}


def truth(ids: Sequence[int | str] = (1, 2)) -> dict[str, Any]:
    """Two pictures with a cat each, and one with a dog too."""
    first, second = ids
    return {
        "images": [{"id": i, "width": 200, "height": 100, "file_name": f"{i}.jpg"} for i in ids],
        "categories": [{"id": 8, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": first, "category_id": 3, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0},
            {"id": 2, "image_id": second, "category_id": 3, "bbox": [20, 20, 40, 40], "area": 1600, "iscrowd": 0},
            {"id": 3, "image_id": second, "category_id": 8, "bbox": [100, 10, 30, 30], "area": 900, "iscrowd": 0},
        ],
    }


def changed(**lists: Any) -> dict[str, Any]:
    return truth() | lists


def annotation(**fields: Any) -> dict[str, Any]:
    row = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0}
    return {key: value for key, value in (row | fields).items() if value is not ...}


def found(image_id: int | str, *rows: tuple[list[float], float, int], masks: torch.Tensor | None = None) -> Detections:
    """(box xyxy, score, label) rows of one picture."""
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    scores, labels = torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows], dtype=torch.int64)
    meta = ImageMeta(image_id, (100, 200), (100, 200), f"{image_id}.jpg")
    return Detections(boxes, scores.float(), labels, meta, masks)


CAT_1 = ([10, 10, 59, 59], 0.9, 1)  # x2 = x + w - 1
CAT_2 = ([20, 20, 59, 59], 0.8, 1)
DOG_2 = ([100, 10, 129, 39], 0.7, 2)


def full(**options: Any) -> CocoEvaluator:
    evaluator = CocoEvaluator(options.pop("annotations", truth()), LABELS, **options)
    evaluator.update([found(2, CAT_2, DOG_2)])
    evaluator.update([found(1, CAT_1)])
    return evaluator


@pytest.mark.parametrize("engine", ENGINES)
def test_perfect_detections(engine: str) -> None:
    evaluator = full(engine=engine)
    numbers = evaluator.summary()
    assert list(numbers) == TWELVE
    assert numbers == pytest.approx(dict.fromkeys(TWELVE, 1.0) | {"APl": -1, "ARl@100": -1})
    rows = evaluator.per_category()
    assert [(row["id"], row["name"], row["objects"]) for row in rows] == [(3, "cat", 2), (8, "dog", 1)]
    assert [row[name] for row in rows for name in ("AP", "AP50", "AR@max")] == pytest.approx([1] * 6)


def test_plus_one_is_an_option() -> None:
    assert full().results()[0]["bbox"] == [10, 10, 50, 50]
    assert full(plus_one=False).results()[0]["bbox"] == [10, 10, 49, 49]
    assert full(plus_one=False).summary()["AP"] < 0.99


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree_on_messy_detections(engine: str) -> None:
    generator = torch.Generator().manual_seed(0)
    evaluators = [CocoEvaluator(truth(("b", "a")), LABELS, engine=name) for name in (engine, "pycocotools")]
    for image_id in ("a", "b"):
        noise = 4 * torch.randn(60, 4, generator=generator)
        boxes = (torch.tensor([CAT_1[0], CAT_2[0], DOG_2[0]]).repeat(20, 1) + noise).round()
        scores = (torch.rand(60, generator=generator) * 10).round() / 10  # many ties
        labels = torch.randint(1, 3, (60,), generator=generator)
        meta = ImageMeta(image_id, (100, 200), (100, 200))
        for evaluator in evaluators:
            evaluator.update([Detections(boxes, scores, labels, meta)])
    numbers, want = (evaluator.summary() for evaluator in evaluators)
    assert want["AR@100"] > 0
    assert numbers == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_predictions(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = CocoEvaluator(truth(), LABELS, engine=engine)
    evaluator.update([found(1), found(2)])
    assert evaluator.summary() == dict.fromkeys(TWELVE, 0.0) | {"APl": -1, "ARl@100": -1}
    assert "no predictions" in caplog.text


@pytest.mark.parametrize("engine", ENGINES)
def test_pooled_categories(engine: str) -> None:
    results = [{"image_id": 2, "category_id": 3, "bbox": [100, 10, 30, 30], "score": 0.5}]  # the dog, called a cat
    pooled = evaluate_coco(check_ground_truth(truth()), results, use_cats=False, engine=engine)
    assert pooled.stats["AR@100"] == pytest.approx(1 / 3)
    assert pooled.per_category == {}
    assert evaluate_coco(check_ground_truth(truth()), results, engine=engine).stats["AR@100"] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_masks(engine: str) -> None:
    data = truth()
    for row in data["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        del row["area"], row["iscrowd"]
    masks = torch.zeros(2, 100, 200, dtype=torch.bool)
    masks[0, 20:60, 20:60], masks[1, 10:40, 100:130] = True, True
    evaluator = CocoEvaluator(data, LABELS, engine=engine, iou_types=("bbox", "segm"))
    evaluator.update([found(1, masks=torch.zeros(0, 100, 200)), found(2, CAT_2, DOG_2, masks=masks)])
    numbers = evaluator.summary()
    assert list(numbers) == [*TWELVE, *(f"segm/{name}" for name in TWELVE)]
    assert numbers["segm/AP"] == pytest.approx(numbers["AP"]) == pytest.approx(0.752, abs=1e-3)
    assert numbers["segm/APs"] == pytest.approx(1)  # the dog, by the area of its mask


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "val.json"
    file.write_text(json.dumps(truth()))
    evaluator = full(annotations=file)
    evaluator.write(tmp_path / "out", card={"weights": "fiber.pth"})
    out = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(out) == {"bbox.json", "bbox.csv", "coco_results.json", "predictions.pth", "results.json"}
    rows = json.loads(out["bbox.json"].read_text())
    assert rows[0] == {"image_id": 1, "category_id": 3, "bbox": [10, 10, 50, 50], "score": rows[0]["score"]}
    assert len(rows) == 3
    csv = out["bbox.csv"].read_text().splitlines()
    assert csv[0] == "metric, cat, dog, avg "
    assert csv[1].startswith(" Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ], ")
    assert [line.split("area=")[1][:6] for line in csv[1:]] == ["   all", "   all", " small", "medium", " large"]
    predictions = torch.load(out["predictions.pth"], weights_only=True)
    assert [row["image_id"] for row in predictions] == [1, 2]
    assert predictions[1]["boxes"].tolist() == [CAT_2[0], DOG_2[0]]
    assert json.loads(out["coco_results.json"].read_text())["bbox"]["AP"] == pytest.approx(1)
    card = json.loads(out["results.json"].read_text())
    assert card["metrics"] == evaluator.summary()
    assert card["counts"] == {
        "pictures": 2, "objects": 3, "categories": 2, "detections": 3, "detections_with_unknown_labels": 0,
    }  # fmt: skip
    assert card["engine"]["name"] == "hotcoco"
    assert card["annotations"]["file"] == str(file)
    assert len(card["annotations"]["sha256"]) == 64
    assert card["weights"] == "fiber.pth"


def test_csv_row_without_ground_truth_is_as_the_reference_writes_it(tmp_path: Path) -> None:
    full().write(tmp_path)
    assert (tmp_path / "bbox.csv").read_text().endswith("| area= large | maxDets=100 ], ")


def test_class_without_objects_counts_as_minus_one_in_the_csv(tmp_path: Path) -> None:
    full(annotations=changed(annotations=truth()["annotations"][:2])).write(tmp_path)
    line = (tmp_path / "bbox.csv").read_text().splitlines()[1]
    assert line.endswith(", 1.0, -1.0, 0.0 ")


def test_table_names_classes() -> None:
    text = full().table()
    assert "AR@100" in text
    assert "| cat   |       2 | 1.0000 |" in text


def test_nothing_is_written_for_a_part_of_a_set(tmp_path: Path) -> None:
    evaluator = CocoEvaluator(truth(), LABELS)
    evaluator.update([found(2, CAT_2)])
    for call in (evaluator.summary, lambda: evaluator.write(tmp_path / "out")):
        with pytest.raises(DataError, match=r"1 pictures scored, but annotations has 2: .*picture 1\)"):
            call()
    assert not (tmp_path / "out").exists()


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(data: object, file: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        full().write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_are_scored_once_and_known() -> None:
    evaluator = full()
    with pytest.raises(DataError, match=r"picture 1 \(1\.jpg\) was scored twice"):
        evaluator.update([found(1)])
    with pytest.raises(DataError, match=r"picture 'x' \(x\.jpg\) was scored but is not in annotations"):
        evaluator.update([found("x")])


def test_scores_and_boxes_are_numbers() -> None:
    evaluator = CocoEvaluator(truth(), LABELS)
    with pytest.raises(DataError, match=r"picture 1 \(1\.jpg\): a score is not a finite number"):
        evaluator.update([found(1, (CAT_1[0], float("nan"), 1))])
    with pytest.raises(DataError, match=r"picture 2 \(2\.jpg\): a box is not a finite number"):
        evaluator.update([found(2, ([0, 0, float("inf"), 9], 0.5, 1))])


def test_unknown_labels_are_left_out_and_counted() -> None:
    evaluator = CocoEvaluator(truth(), LABELS)
    evaluator.update([found(1, CAT_1, ([0, 0, 9, 9], 0.95, 77)), found(2)])
    assert [row["category_id"] for row in evaluator.results()] == [3]
    assert evaluator.card()["counts"]["detections_with_unknown_labels"] == 1


def test_categories_that_count() -> None:
    evaluator = CocoEvaluator(truth(), {1: 3}, categories=[{"id": 3, "name": "cat"}])
    evaluator.update([found(1, CAT_1), found(2, CAT_2, DOG_2)])
    assert evaluator.summary()["AP"] == pytest.approx(1)
    assert "1 annotations of categories that are not evaluated: left out" in evaluator.card()["notes"]
    with pytest.raises(DataError, match=r"labels lead to category ids \[8\], which are not in categories"):
        CocoEvaluator(truth(), LABELS, categories=[{"id": 3, "name": "cat"}])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ids", [(0, 1), ("b", "a"), (7, -2)])
def test_any_whole_or_text_picture_ids(ids: tuple[int | str, int | str], engine: str) -> None:
    evaluator = CocoEvaluator(truth(ids), LABELS, engine=engine)
    evaluator.update([found(ids[0], CAT_1), found(ids[1], CAT_2, DOG_2)])
    assert evaluator.summary()["AP"] == pytest.approx(1)
    assert [row["image_id"] for row in evaluator.results()] == [*sorted([ids[0], ids[1], ids[1]])]


@pytest.mark.parametrize("engine", ENGINES)
def test_roboflow_export(engine: str) -> None:
    """Annotation ids from 0, category 0 for all, no iscrowd and no area."""
    data = truth()
    data["categories"].append({"id": 0, "name": "animals"})
    for row in data["annotations"]:
        row["id"] -= 1
        del row["area"], row["iscrowd"]
    before = copy.deepcopy(data)
    evaluator = full(annotations=data, engine=engine)
    assert evaluator.summary()["AP"] == pytest.approx(1)
    assert data == before
    notes = " ".join(evaluator.card()["notes"])
    assert "renumbered from 1" in notes
    assert "3 annotations without iscrowd (taken as 0)" in notes
    assert "3 annotations without area (taken from the box)" in notes


IMAGE = {"id": 1, "width": 9, "height": 9}
CAT = {"id": 3, "name": "cat"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"images": [], "annotations": []}, 'no "categories" list'),
        (changed(images=[]), "images is empty"),
        (changed(images=[IMAGE, IMAGE]), "picture ids occur more than once: 1"),
        (changed(images=[{**IMAGE, "id": 1.5}]), "images[0]: id 1.5 is neither a whole number nor text"),
        (changed(images=[{**IMAGE, "id": True}]), "images[0]: id True is neither"),
        (changed(images=[IMAGE, {**IMAGE, "id": "a"}]), "some picture ids are text, such as 'a', and some are numbers"),
        (changed(categories=[]), "categories is empty"),
        (changed(categories=[CAT, CAT]), "category ids occur more than once: 3"),
        (changed(categories=[{"id": "3"}]), "categories[0]: id '3' is not a whole number"),
        (changed(categories=[{"id": -1}]), "categories[0]: id -1 is not a whole number from 0 on"),
        (changed(annotations=[annotation(), annotation()]), "annotation ids occur more than once: 1"),
        (changed(annotations=[annotation(image_id=9)]), "annotations[0] (id 1): image_id 9 is not in images"),
        (changed(annotations=[annotation(category_id=9)]), "annotations[0] (id 1): category_id 9 is not in categories"),
        (changed(annotations=[annotation(bbox=...)]), "bbox None is not four numbers"),
        (changed(annotations=[annotation(bbox=[1, 2, 3])]), "bbox [1, 2, 3] is not four numbers"),
        (changed(annotations=[annotation(bbox=[1, 2, float("nan"), 3])]), "nan, 3] is not four numbers"),
        (changed(annotations=[annotation(bbox=[1, 2, -3, 4])]), "negative width or height"),
    ],
)
def test_wrong_annotations(data: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as error:
        CocoEvaluator(data, {1: 3})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ['{"images": [', "", "\x00\xff"])
def test_broken_annotation_file(tmp_path: Path, content: str) -> None:
    file = tmp_path / "val.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"val\.json: not valid JSON"):
        CocoEvaluator(file, LABELS)


def test_other_annotation_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json: no such annotation file"):
        CocoEvaluator(tmp_path / "gone.json", LABELS)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match="holds a list, not COCO annotations; is it a results file"):
        read_coco(tmp_path / "results.json")


def result(**fields: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 3, "bbox": [10, 10, 50, 50], "score": 0.5} | fields


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (result(image_id=9), "results[0]: image_id 9 is not in the annotations"),
        (result(image_id="1"), "image_id '1' is not in the annotations (ids there are numbers, such as 1)"),
        (result(score=float("nan")), "results[0] (picture 1): score nan is not a finite number"),
        (result(score=None), "score None is not a finite number"),
        (result(bbox=[1, 2, float("inf"), 3]), "bbox [1, 2, inf, 3] is no shape"),
        (result(category_id=0), "1 results have category_id 0, which is no category: are the ids counted from 0?"),
    ],
)
def test_wrong_results(row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as error:
        evaluate_coco(check_ground_truth(truth()), [row])
    assert says in str(error.value)


def test_odd_results_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [result(category_id=5), result(category_id=6), result(score=1.5)]
    with caplog.at_level(logging.WARNING):
        scores = evaluate_coco(check_ground_truth(truth()), rows)
    assert scores.notes == ("2 results of unknown categories dropped: ids 5, 6", "1 scores are outside 0..1")
    assert "ids 5, 6" in caplog.text


def test_choosing_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("auto") == "hotcoco"
    with pytest.raises(ConfigError, match=r"no evaluation engine 'coco'\. Choices: auto, hotcoco, faster, pycocotools"):
        CocoEvaluator(truth(), LABELS, engine="coco")
    installed: Callable[[str], object] = lambda name: name == "pycocotools" or None  # noqa: E731
    monkeypatch.setattr(engines.importlib.util, "find_spec", installed)
    assert choose_engine("auto") == "pycocotools"
    with pytest.raises(ConfigError, match="'faster' needs the package faster-coco-eval: pip install faster-coco-eval"):
        choose_engine("faster")


def test_proposal_recall() -> None:
    boxes = {1: found(1, ([0, 0, 5, 5], 0.9, 1), CAT_1), 2: found(2, CAT_2, DOG_2)}
    recall = proposal_recall(check_ground_truth(truth()), boxes, limits=(1, 100))
    assert recall["AR@100"] == 1
    assert recall["AR@1"] == pytest.approx(1 / 3)
    assert recall["ARs@100"] == 1
    assert recall["ARl@100"] == -1  # there is none to measure on
