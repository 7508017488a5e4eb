"""LVIS evaluation: protocols and their limits, the files, bounded memory, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.evaluation import collector
from maskrcnn_benchmark.evaluation.engine import ENGINES
from maskrcnn_benchmark.evaluation.lvis import LvisEvaluator
from maskrcnn_benchmark.structures import Detections, ImageMeta

NINE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
CATEGORIES = [
    {"id": 2, "name": "cat", "frequency": "f"},
    {"id": 5, "name": "yak", "frequency": "r"},
    {"id": 7, "name": "owl", "frequency": "c"},
]


def truth(**fields: Any) -> dict[str, Any]:
    """A cat in each of two pictures; nobody has looked for yaks in the first, nor for owls in the second."""
    about = {"width": 200, "height": 100, "not_exhaustive_category_ids": []}
    data: dict[str, Any] = {
        "images": [
            {"id": 11, "neg_category_ids": [7], **about},
            {"id": 12, "neg_category_ids": [5], **about},
        ],
        "categories": CATEGORIES,
        "annotations": [
            {"id": 1, "image_id": 11, "category_id": 2, "bbox": [10, 10, 40, 40], "area": 1600},
            {"id": 2, "image_id": 12, "category_id": 2, "bbox": [20, 20, 60, 60], "area": 3600},
        ],
    }
    return data | fields


def found(image_id: int, *rows: tuple[list[float], float, int], masks: torch.Tensor | None = None) -> Detections:
    """(box xyxy, score, label) rows of one picture."""
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    scores, labels = torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return Detections(boxes, scores.float(), labels, ImageMeta(image_id, (100, 200), (100, 200)), masks)


CAT_11 = ([10, 10, 50, 50], 0.9, 2)  # no last pixel: x2 = x + w
CAT_12 = ([20, 20, 80, 80], 0.8, 2)
WRONG = [0.0, 80, 30, 100]


def full(*more: tuple[list[float], float, int], **options: Any) -> LvisEvaluator:
    """Both cats, and more in the first picture."""
    evaluator = LvisEvaluator(options.pop("annotations", truth()), **options)
    evaluator.update([found(12, CAT_12), found(11, CAT_11, *more)])
    return evaluator


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("protocol", "limit"), [("fixed", -1), ("standard", 300)])
def test_perfect_detections(engine: str, protocol: str, limit: int) -> None:
    numbers = full(protocol=protocol, engine=engine).summary()
    recalls = [f"{name}@{limit}" for name in ("AR", "ARs", "ARm", "ARl")]
    assert list(numbers) == [*NINE, *recalls]
    nothing = {"APs", "APl", "APr", "APc", recalls[1], recalls[3]}
    assert numbers == pytest.approx({name: -1.0 if name in nothing else 1.0 for name in numbers})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("label", "fields", "harms"),
    [
        (2, {}, True),
        (5, {}, False),  # nobody has looked
        (7, {}, False),  # a class without objects has no AP
        (2, {"not_exhaustive_category_ids": [2]}, False),
    ],
)
def test_what_nobody_has_looked_for_does_no_harm(engine: str, label: int, fields: dict[str, Any], harms: bool) -> None:
    data = truth()
    data["images"][0] |= fields
    numbers = full((WRONG, 0.95, label), annotations=data, engine=engine).summary()
    assert (numbers["AP"] < 0.9) == harms


@pytest.mark.parametrize("engine", ENGINES)
def test_objects_to_be_ignored(engine: str) -> None:
    data = truth()
    extra = {"id": 3, "image_id": 11, "category_id": 2, "bbox": [0, 80, 30, 20], "area": 600, "ignore": 1}
    data["annotations"].append(extra)
    evaluator = full((WRONG, 0.95, 2), annotations=data, engine=engine)
    assert evaluator.summary()["AP"] == pytest.approx(1)
    assert evaluator.per_category()[0]["objects"] == 2
    assert evaluator.card()["engine"]["name"] == "pycocotools"


@pytest.mark.parametrize("engine", ENGINES)
def test_crowds_are_objects_and_flat_boxes_nothing(engine: str) -> None:
    data = truth()
    data["annotations"][0]["iscrowd"] = 1
    data["annotations"].append({"id": 3, "image_id": 11, "category_id": 2, "bbox": [1, 1, 0, 9], "area": 0})
    evaluator = full(([5, 5, 5, 9], 0.99, 2), annotations=data, engine=engine)
    assert evaluator.summary()["AP"] == pytest.approx(1)
    assert "1 annotations without area: left out, as lvis-api does" in evaluator.card()["notes"]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_predictions(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = LvisEvaluator(truth(), engine=engine)
    evaluator.update([found(11), found(12)])
    assert {evaluator.summary()[name] for name in ("AP", "AP50", "APf", "AR@-1")} == {0.0}
    assert evaluator.summary()["APr"] == -1
    assert "no predictions" in caplog.text


def test_limits_of_a_picture() -> None:
    rows = [(WRONG, 0.6, 2), (WRONG, 0.5, 7), (WRONG, 0.4, 7), (WRONG, 0.3, 7)]

    def labels(**options: Any) -> list[int]:
        kept = full(*rows, protocol="standard", **options).rows()
        return [row["category_id"] for row in kept if row["image_id"] == 11]

    assert labels() == [2, 2, 7, 7, 7]
    assert labels(per_image=3) == [2, 2, 7]
    assert labels(per_image_class=1) == [2, 7]
    assert labels(per_image_class=2, per_image=3) == [2, 2, 7]
    assert labels(per_image=3, categories=CATEGORIES[1:]) == [7]  # others took their part of the three


def test_limit_of_a_class_keeps_the_earlier_of_equals() -> None:
    def pictures(*order: int) -> list[int]:
        evaluator = LvisEvaluator(truth(), per_class=2)
        evaluator.update([found(i, (WRONG, 0.5, 2), (WRONG, 0.5, 5), (WRONG, 0.4, 2)) for i in order])
        return [row["image_id"] for row in evaluator.rows() if row["category_id"] == 2]

    assert pictures(11, 12) == pictures(12, 11) == [11, 12]


def test_memory_is_bounded_by_classes_not_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "WAITING", 50)
    generator = torch.Generator().manual_seed(0)
    about = {"width": 200, "height": 100, "neg_category_ids": [2, 5, 7], "not_exhaustive_category_ids": []}
    images = [{"id": i, **about} for i in range(1, 101)]
    data = truth(images=images, annotations=[truth()["annotations"][0] | {"image_id": 1}])
    bounded, free = LvisEvaluator(data, per_class=10), LvisEvaluator(data, per_class=-1)
    most = 0
    for image in torch.randperm(100, generator=generator).tolist():
        scores = (torch.rand(20, generator=generator) * 30).round() / 30  # many ties
        labels = torch.tensor([2, 5, 7])[torch.randint(3, (20,), generator=generator)]
        boxes = torch.tensor([0.0, 0, 30, 30]).repeat(20, 1) + image
        picture = Detections(boxes, scores, labels, ImageMeta(1 + image, (100, 200), (100, 200)))
        for evaluator in (bounded, free):
            evaluator.update([picture])
        most = max(most, len(bounded.found))
    assert most <= 2 * 50 + 20
    kept, everything = list(bounded.rows()), list(free.rows())
    assert len(everything) == 2000
    for category in (2, 5, 7):
        best = sorted((r for r in everything if r["category_id"] == category), key=lambda r: -r["score"])[:10]
        wanted = sorted(best, key=lambda row: row["image_id"])
        assert [row for row in kept if row["category_id"] == category] == wanted


@pytest.mark.parametrize("engine", ENGINES)
def test_masks(engine: str) -> None:
    data = truth()
    for row in data["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    masks = torch.zeros(2, 1, 100, 200, dtype=torch.bool)
    masks[0, 0, 10:50, 10:50], masks[1, 0, 20:80, 20:80] = True, True
    evaluator = LvisEvaluator(data, engine=engine, iou_types=("bbox", "segm"))
    evaluator.update([found(11, CAT_11, masks=masks[0]), found(12, CAT_12, masks=masks[1])])
    numbers = evaluator.summary()
    assert numbers["segm/AP"] == numbers["AP"] == pytest.approx(1)
    assert list(numbers)[13:] == [f"segm/{name}" for name in list(numbers)[:13]]


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "val.json"
    file.write_text(json.dumps(truth()))
    evaluator = full((WRONG, 0.5, 99), annotations=file)
    evaluator.write(tmp_path / "out", card={"weights": "fiber.pth"})
    out = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert set(out) == {"bbox.json", "bbox.csv", "results.json"}
    assert json.loads(out["bbox.json"])[0]["bbox"] == [10, 10, 40, 40]
    lines = out["bbox.csv"].splitlines()
    assert lines[1] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets= -1 catIds=all], 1.000 "
    assert lines[7] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets= -1 catIds=  r], -1.000 "
    card = json.loads(out["results.json"])
    assert card["metrics"] == evaluator.summary()
    assert card["protocol"] == {"name": "lvis_fixed", "per_class": 10_000, "per_image": -1, "per_image_class": -1}
    assert card["counts"] == {
        "pictures": 2, "objects": 2, "categories": 3, "detections": 2, "detections_with_unknown_labels": 1,
    }  # fmt: skip
    assert (card["main"], card["weights"], len(card["annotations"]["sha256"])) == ("AP", "fiber.pth", 64)
    assert "| cat   |         f |       2 | 1.0000 |" in evaluator.table()


def test_pictures_are_scored_once_and_all_of_them(tmp_path: Path) -> None:
    evaluator = LvisEvaluator(truth())
    evaluator.update([found(12, CAT_12)])
    with pytest.raises(DataError, match=r"1 pictures scored, but annotations has 2: .*picture 11\)"):
        evaluator.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"picture 12 .* was scored twice"):
        evaluator.update([found(12)])
    with pytest.raises(DataError, match=r"picture 1 .* was scored but is not in annotations"):
        evaluator.update([found(1)])


IMAGE = truth()["images"][0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (truth(images=[{"id": 11}], annotations=[]), "images[0] (id 11): neg_category_ids None is no list of category"),
        (truth(images=[IMAGE | {"neg_category_ids": ["7"]}], annotations=[]), "neg_category_ids ['7'] is no list"),
        (truth(images=[IMAGE | {"not_exhaustive_category_ids": None}], annotations=[]), "not_exhaustive_category_ids"),
        (truth(categories=[{"id": 2, "name": "cat"}]), "category 2 ('cat'): frequency None is none of r, c, f"),
        (truth(images=[IMAGE, IMAGE], annotations=[]), "picture ids occur more than once: 11"),
        (truth(annotations=2 * truth()["annotations"]), "annotation ids occur more than once: 1, 2"),
    ],
)
def test_wrong_annotations(data: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as error:
        LvisEvaluator(data)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_options() -> None:
    with pytest.raises(ConfigError, match=r"no LVIS protocol 'best'\. Choices: fixed, standard"):
        LvisEvaluator(truth(), protocol="best")
    with pytest.raises(DataError, match=r"labels lead to category ids \[3\], which are not in categories"):
        LvisEvaluator(truth(), {1: 3})
