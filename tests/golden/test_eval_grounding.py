"""Phrases of Flickr30k Entities and referring expressions: stored predictions through our evaluators."""

from __future__ import annotations

import gzip
import json
import runpy
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_benchmark.data.datasets.captions import CaptionSet
from maskrcnn_benchmark.evaluation.entities import read_entities
from maskrcnn_benchmark.evaluation.flickr import FlickrEvaluator
from maskrcnn_benchmark.evaluation.refexp import RefExpEvaluator
from maskrcnn_benchmark.structures import Detections, ImageMeta
from maskrcnn_benchmark.text.positive_map import label_tokens, text_batch
from maskrcnn_benchmark.text.tokenizer import load_tokenizer
from tests.golden.common import golden_cases, load_case, shared_path, tokenizer_dir

TOLERANCE = 1e-9  # far below that of the cases
TOP = "top (score, xyxy box in original pixels)"


def read(path: Path, case: dict[str, Any], name: str) -> Any:
    with gzip.open(path.with_name(case["files"][name])) as file:
        return json.load(file)


def entities(path: Path, case: dict[str, Any], folder: Path) -> Path:
    with tarfile.open(path.with_name(case["files"]["entities"])) as file:
        file.extractall(folder, filter="data")
    return folder


def found(rows: Sequence[tuple[float, list[float], int]], image_id: int | str, **extra: object) -> Detections:
    """(score, box, label) rows as detections, as exact as they are stored."""
    return Detections(
        torch.tensor([box for _, box, _ in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for score, _, _ in rows], dtype=torch.float32),
        torch.tensor([label for _, _, label in rows], dtype=torch.int64),
        ImageMeta(image_id, (1, 1), (1, 1), extra=extra),
    )


@pytest.mark.parametrize("path", golden_cases("eval", "flickr*", "refexp*"))
def test_eval(path: Path, tmp_path: Path) -> None:
    case, _ = load_case(path)
    checks = {"flickr30k": check_flickr, "flickr_post_process": check_flickr_post, "refexp": check_refexp}
    checks[case["kind"]](path, case, tmp_path)


def check_flickr(path: Path, case: dict[str, Any], folder: Path) -> None:
    """``<split>_<protocol>`` numbers, ``bbox_csv_<split>_<protocol>`` texts, ``n_sentences_<split>`` counts."""
    root, predictions = entities(path, case, folder), read(path, case, "predictions")
    for name, want in case["expected"].items():
        if name.startswith("n_sentences_"):
            assert len(FlickrEvaluator(root, name.removeprefix("n_sentences_")).number) == want
            continue
        split, protocol = name.removeprefix("bbox_csv_").split("_")
        for ranked in (True, False):  # predictions that are ranked, and the same with scores
            evaluator = FlickrEvaluator(root, split, (protocol,))
            if ranked:
                evaluator.update_ranked(predictions[split])
            else:
                evaluator.update([with_scores(row) for row in predictions[split]])
            if name.startswith("bbox_csv_"):
                assert evaluator.csv() == want
            else:
                assert evaluator.summary() == pytest.approx(want, abs=TOLERANCE)


def with_scores(row: dict[str, Any]) -> Detections:
    """Ranked boxes of phrases, mixed, with scores that rank them so."""
    boxes = [
        (1 - rank / 1000 - label / 1e5, box, label)
        for label, ranked in enumerate(row["boxes"], 1)
        for rank, box in enumerate(ranked)
    ]
    return found(boxes, "caption", original_img_id=row["image_id"], sentence_id=row["sentence_id"])


def check_flickr_post(path: Path, case: dict[str, Any], folder: Path) -> None:
    """What the network found, as our results file has it."""
    for number, part in enumerate(case["fiber_cases"]):
        root = folder / str(number)
        write_entities(root, part["n_phrases"])
        height, width = part["orig_size_hw"]
        scale = torch.tensor([width, height] * 2) / torch.tensor(part["network_size_wh"] * 2)
        boxes = (torch.tensor(part["boxes_xyxy"]).reshape(-1, 4) * scale).tolist()
        rows = list(zip(part["scores"], boxes, part["labels_1based_phrase"], strict=True))
        evaluator = FlickrEvaluator(root, "val")
        evaluator.update([found(rows, 0, original_img_id=7, sentence_id=0)])
        evaluator.write(root / "results")
        (row,) = json.loads((root / "results" / "predictions.json").read_text())
        assert (row["image_id"], row["sentence_id"]) == (7, 0)
        for key in ("boxes", "scores"):
            for got, want in zip(row[key], part[f"expected_{key}"], strict=True):
                torch.testing.assert_close(torch.tensor(got), torch.tensor(want), atol=case["tolerance"], rtol=1e-6)


def write_entities(folder: Path, phrases: int) -> None:
    """One picture with one sentence of so many phrases, each with a box."""
    for name in ("Annotations", "Sentences"):
        (folder / name).mkdir(parents=True)
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax>"
    items = [f"<object><name>{i}</name><bndbox>{corners}</bndbox></object>" for i in range(1, phrases + 1)]
    words = " ".join(f"[/EN#{i}/other thing]" for i in range(1, phrases + 1))
    (folder / "Annotations" / "7.xml").write_text(f"<annotation>{''.join(items)}</annotation>")
    (folder / "Sentences" / "7.txt").write_text(words)
    (folder / "val.txt").write_text("7\n")


def check_refexp(path: Path, case: dict[str, Any], folder: Path) -> None:
    truth, want = folder / "truth.json", case["expected"]
    truth.write_text(json.dumps(read(path, case, "gt")))
    rows = read(path, case, "predictions")
    for given in (rows, rows[::-1]):  # the order of the expressions does not matter
        evaluator = RefExpEvaluator(truth)
        for row in given:
            boxes = [(score, box, 1) for score, box in zip(row["scores"], row["boxes"], strict=True)]
            evaluator.update([found(boxes, row["image_id"])])
        check_precision(evaluator, want["precision_at_1_5_10"], "")
        check_precision(evaluator, case["iou_version_for_information"], "_IoU")
        assert evaluator.counts == want["counts"]
        assert evaluator.csv() == want["Recall_results_csv"]
        evaluator.write(folder / "results")
        assert (folder / "results" / "Recall_results.csv").read_text() == want["Recall_results_csv"]


def check_precision(evaluator: RefExpEvaluator, want: dict[str, list[float]], ending: str) -> None:
    numbers = evaluator.summary()
    for name, values in want.items():
        got = [numbers[f"{name}/P@{limit}{ending}"] for limit in (1, 5, 10)]
        assert got == pytest.approx(values, abs=TOLERANCE), name


@pytest.mark.parametrize("path", golden_cases("e2e", "flickr_*"))
def test_flickr_metrics_of_stored_predictions(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = load_case(path)
    root = subset(path, tmp_path, monkeypatch) / "flickr"
    split = "test" if "_test" in case["annotation_file"] else "val"
    extras = captions(case, tmp_path, "flickr")
    evaluator = filled_flickr(case, extras, root, split)
    assert check(case, evaluator) == case["metrics"]
    assert evaluator.csv() == case["bbox_csv"]
    (root / "Annotations").rename(root / "Annotations_real")
    (root / "Annotations_pseudo").rename(root / "Annotations")
    assert check(case, filled_flickr(case, extras, root, split)) == case["pseudo_gt_metrics"]


def check(case: dict[str, Any], evaluator: FlickrEvaluator) -> dict[str, float]:
    """The numbers, once what would be written has been compared with what was stored."""
    for got, stored in zip(evaluator.predictions(), case["predictions"], strict=True):
        assert (got["image_id"], got["sentence_id"]) == (stored["image_id"], stored["sentence_id"])
        for key in ("boxes", "scores"):
            assert got[key] == [torch.tensor(part, dtype=torch.float32).tolist() for part in stored[key]]
    return evaluator.summary()


def filled_flickr(
    case: dict[str, Any], extras: dict[tuple[int, int], ImageMeta], root: Path, split: str
) -> FlickrEvaluator:
    evaluator = FlickrEvaluator(root, split)
    for row in case["predictions"]:
        pairs = zip(row["scores"], row["boxes"], strict=True)
        boxes = [
            (score, box, label)
            for label, (scores, ranked) in enumerate(pairs, 1)
            for score, box in zip(scores, ranked[:-1], strict=True)  # the last one is the box without a score
        ]
        meta = extras[row["image_id"], row["sentence_id"]]
        evaluator.update([found(boxes, meta.image_id, **meta.extra)])
    return evaluator


def subset(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The annotation files of an end-to-end case."""
    script = shared_path("golden", "e2e", "make_subset.py")
    monkeypatch.setattr(sys, "argv", [script.name, str(path), str(shared_path("data", "DATASET")), str(folder)])
    runpy.run_path(str(script))
    return folder


def captions(case: dict[str, Any], folder: Path, kind: str) -> dict[tuple[Any, Any], ImageMeta]:
    """(picture, sentence) -> its caption; text and tokens are compared with those that the reference used."""
    dataset = CaptionSet(folder, folder / "annotations.json", kind=kind)
    tokenizer = load_tokenizer(tokenizer_dir("roberta-base"))
    metas, prompts = {}, {}
    for picture in range(len(dataset)):
        for entry, prompt in zip(dataset.entries(picture), dataset.prompts(picture), strict=True):
            meta = dataset.meta(entry, (1, 1))
            metas[meta.extra.get("original_img_id"), meta.extra.get("sentence_id", entry)] = meta
            prompts[meta.image_id] = prompt
    assert dataset.num_entries == len(case["images"]) == len(prompts)
    for image in case["images"]:
        prompt = prompts[image["image_id"]]
        assert prompt.text == image["caption"]
        tokens = label_tokens(text_batch([prompt], tokenizer).entity_tokens[0], prompt.ids)
        assert {str(label): places for label, places in tokens.items()} == image["label_to_tokens"]
    return metas


@pytest.mark.parametrize("path", golden_cases("e2e", "refcoco*"))
def test_refexp_metrics_of_stored_predictions(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = load_case(path)
    root = subset(path, tmp_path, monkeypatch)
    captions(case, root, "refexp")
    for file, key in (("annotations.json", "metrics"), ("annotations_pseudo.json", "pseudo_gt_metrics")):
        evaluator = RefExpEvaluator(root / file)
        for row in case["predictions"]:
            assert len(row[TOP]) == row["num"]
            evaluator.update([found([(score, box, 1) for score, box in row[TOP]], row["image_id"])])
        check_precision(evaluator, {name.split(" [")[0]: values for name, values in case[key].items()}, "")
        if key == "metrics":
            assert evaluator.csv() == case["recall_results_csv"]
        for got, stored in zip(evaluator.predictions(), case["predictions"], strict=True):
            want = torch.tensor([[score, *box] for score, box in stored[TOP]])
            rows = torch.tensor([[score, *box] for score, box in zip(got["scores"], got["boxes"], strict=True)])
            assert got["image_id"] == stored["image_id"]
            assert torch.equal(rows, want)


@pytest.mark.parametrize(("split", "images", "phrases"), [("train", 44, 212), ("val", 64, 351), ("test", 71, 357)])
def test_captions_and_entities_speak_of_the_same_phrases(split: str, images: int, phrases: int) -> None:
    root = shared_path("data", "DATASET")
    file = root / "derived" / "mdetr_annotations" / f"final_flickr_separateGT_{split}.json"
    dataset = CaptionSet(root / "coco" / ("train2017" if split == "train" else "val2017"), file)
    evaluator = FlickrEvaluator(root / "derived" / "flickr30k_entities", split)
    truth = read_entities(root / "derived" / "flickr30k_entities", split).sentences
    for picture in range(len(dataset)):
        for entry, prompt in zip(dataset.entries(picture), dataset.prompts(picture), strict=True):
            extra = dataset.meta(entry, (1, 1)).extra
            sentence = truth[str(extra["original_img_id"]), extra["sentence_id"]]  # type: ignore[index]
            assert [prompt.name(i) for i in range(len(prompt))] == [phrase.text for phrase in sentence]
            rows = [(0.5, list(phrase.boxes[-1]), label) for label, phrase in enumerate(sentence, 1)]
            evaluator.update([found(rows, entry, **extra)])
    assert evaluator.summary()["Recall@1_all"] == 1
    assert (len(dataset), evaluator.card()["counts"]["phrases"]["all"]) == (images, phrases)


@pytest.mark.parametrize(
    ("name", "images", "expressions"),
    [("refcocos_train", 68, 74), ("refcocos_val", 17, 18), ("refcocos_test", 25, 29), ("refcocog_val", 8, 9)],
)
def test_expressions_and_their_boxes(name: str, images: int, expressions: int) -> None:
    root = shared_path("data", "DATASET")
    file = root / "mdetr_annotations" / f"finetune_{name}.json"
    folder = root / ("refcoco/train2014" if name.startswith("refcocog") else "coco/val2017")
    dataset, evaluator = CaptionSet(folder, file, kind="refexp"), RefExpEvaluator(file)
    assert (len(dataset), dataset.num_entries) == (images, expressions)
    boxes = {row["image_id"]: row["bbox"] for row in json.loads(file.read_text())["annotations"]}
    for entry in range(expressions):
        number = dataset.meta(entry, (1, 1)).image_id
        x, y, width, height = boxes[number]
        evaluator.update([found([(0.5, [x, y, x + width, y + height], 1)], number)])
    assert evaluator.summary()["P@1"] == 1
    assert {prompt.ids for picture in range(images) for prompt in dataset.prompts(picture)} == {(1,)}
