"""Boxes for pictures with names only, found off-line by a narrow DECOLA, and names of its own for any detector of the
kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskrcnn_benchmark import Predictor, labelling, load_model, mrb, self_labelling
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import CLASSES, World, write_coco
from maskrcnn_benchmark.data.drawn.forms import write_lvis
from maskrcnn_benchmark.errors import DataError, PromptError
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.text.class_bank import ClassBank, write_bank
from tools import (
    convert_predictions_to_pseudo_annotations,
    deduplicate_pseudo_annotations,
    make_multi_resolution_pseudo_annotations,
)

CONFIG = "configs/decola/DECOLA_PHASE1_Lbase_CLIP_R5021k_4x.yaml"
BASELINE = "configs/decola/BoxSup_SELF_LABELING_Lbase_CLIP_R5021k_4x.yaml"
WIDTH = 16  # of the embeddings
NARROW: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.CONV_BODY": "SWIN",
    "MODEL.SWINT.SIZE": "",
    "MODEL.SWINT.EMBED_DIM": 8,
    "MODEL.SWINT.DEPTHS": "(1, 1, 1, 1)",
    "MODEL.SWINT.NUM_HEADS": "(1, 1, 2, 2)",
    "MODEL.SWINT.WINDOW_SIZE": 4,
    "MODEL.DEFORMABLE_DETR.NUM_CLASSES": len(CLASSES),
    "MODEL.DEFORMABLE_DETR.HIDDEN_DIM": 32,
    "MODEL.DEFORMABLE_DETR.NHEADS": 2,
    "MODEL.DEFORMABLE_DETR.ENC_LAYERS": 1,
    "MODEL.DEFORMABLE_DETR.DEC_LAYERS": 2,
    "MODEL.DEFORMABLE_DETR.DIM_FEEDFORWARD": 32,
    "MODEL.ZEROSHOT_CLS.DIM": WIDTH,
    "MODEL.DECOLA.QUERIES_PER_PROMPT": 6,
    "INPUT.MIN_SIZE_TEST": 80,
    "INPUT.MAX_SIZE_TEST": 160,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.DETECTIONS_PER_IMG": 20,
    "TEST.IMS_PER_BATCH": 2,
}


class Place:
    """A folder with weights, embeddings, and pictures with names only."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        self.names = folder / "named"
        self.annotations = write_coco(self.names, World(2, size=(96, 128), classes=CLASSES), 6).annotations
        only_names(self.annotations)
        row = {"kind": "imagenet_lvis", "ann_file": str(self.annotations), "img_dir": str(self.names)}
        register = {"DATASETS": {"REGISTER": {"drawn_names": row}, "TEST": ["drawn_names"]}}
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump({"_BASE_": str(Path(config).resolve()), **register}))
        keys = dict(NARROW)
        for key, names in {"WEIGHT_PATH": CLASSES, "OBJECT_WEIGHT_PATH": ("object",)}.items():
            table = torch.randn(len(names), WIDTH, generator=torch.Generator().manual_seed(0))
            bank = write_bank(ClassBank(table, tuple(names)), folder / f"{key}.safetensors")
            keys[f"MODEL.ZEROSHOT_CLS.{key}"] = bank
        self.opts = [str(word) for pair in keys.items() for word in pair]
        torch.manual_seed(0)
        detector = build_detector(load_cfg(self.config, opts=self.opts))
        self.weight = save_weights(detector.state_dict(), folder / "weights.pth")

    def self_label(self, out: Path, *words: str) -> int:
        argv = ["self-label", "--config-file", str(self.config), "--weight", str(self.weight), "--output", str(out)]
        return mrb.main([*argv, *words, "--set", *self.opts])

    def predictions(self, out: Path, size: int) -> list[dict[str, Any]]:
        file = out / "inference_drawn_names" / f"lvis_instances_results_minsize_{size}.json"
        rows: list[dict[str, Any]] = json.loads(file.read_text())
        return rows


def only_names(annotations: Path) -> None:
    """Turn a file of boxes into one that says what is in each picture, and no more."""
    data = json.loads(annotations.read_text(encoding="utf-8"))
    for image in data["images"]:
        own = {row["category_id"] for row in data["annotations"] if row["image_id"] == image["id"]}
        image["pos_category_ids"] = sorted(own)
    annotations.write_text(json.dumps({**data, "annotations": []}), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("decola"))
    sorted(made.names.rglob("*.png"))[0].write_bytes(b"no picture")
    return made


def test_each_size_has_its_own_file(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = tmp_path / "joined.json"
    assert place.self_label(tmp_path / "out", "--sizes", "80", "96", "--join", str(joined)) == 0
    names = {row["id"]: row["pos_category_ids"] for row in json.loads(place.annotations.read_text())["images"]}
    readable = set(names) - {1}
    for size in (80, 96):
        rows = place.predictions(tmp_path / "out", size)
        assert [(row["image_id"], row["category_id"]) for row in rows] == [
            (image, category) for image in sorted(readable) for category in names[image]
        ]
    assert place.predictions(tmp_path / "out", 80) != place.predictions(tmp_path / "out", 96)
    folder = tmp_path / "out" / "inference_drawn_names"
    report = json.loads((folder / "lvis_instances_results_minsize_80.report.json").read_text())
    assert len(report["unreadable"]) == 1
    assert "1 of 6 pictures cannot be read and have no boxes" in capsys.readouterr().err
    first = joined.read_text()

    monkeypatch.setattr(self_labelling, "_find", None)  # nothing is found again
    assert place.self_label(tmp_path / "out", "--sizes", "80", "96", "--join", str(joined)) == 0
    monkeypatch.undo()

    common = ["--annotation_name", "x", "--out_root", str(tmp_path)]
    for short in ("80", "96"):  # one path for all sizes, as in DECOLA's documents
        words = ["--annotation_name", f"x_minsize_{short}", "--out_root", str(tmp_path)]
        words += ["--prediction_path", str(folder / "lvis_instances_results.json")]
        convert_predictions_to_pseudo_annotations.main([*words, "--annotation_path", str(place.annotations)])
    make_multi_resolution_pseudo_annotations.main(["--sizes", "80", "96", *common])
    deduplicate_pseudo_annotations.main(["--ioiu_thres", "0.9", *common])
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads(first)


def test_a_file_that_is_missing_is_told_with_what_writes_it(place: Place, tmp_path: Path) -> None:
    common = ["--annotation_name", "x", "--out_root", str(tmp_path)]
    with pytest.raises(DataError, match=r"x\.json: no such .*: make_multi_resolution_pseudo_annotations\.py"):
        deduplicate_pseudo_annotations.main(common)
    with pytest.raises(
        DataError, match=r"x_minsize_80\.json: no such .*: convert_predictions_to_pseudo_annotations\.py"
    ):
        make_multi_resolution_pseudo_annotations.main([*common, "--sizes", "80"])
    words = [*common, "--annotation_path", str(place.annotations), "--prediction_path", str(tmp_path / "none.json")]
    with pytest.raises(DataError, match=r"none\.json: no such predictions: `mrb self-label`"):
        convert_predictions_to_pseudo_annotations.main(words)


def test_an_interrupted_run_goes_on(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.self_label(tmp_path / "whole", "--sizes", "80") == 0
    seen: list[int] = []
    find = self_labelling._find

    most = 2

    def stop(*args: Any) -> Any:
        if len(seen) >= most:
            raise KeyboardInterrupt
        seen.extend(args[1].numbers)
        return find(*args)

    monkeypatch.setattr(self_labelling, "_find", stop)
    words = ["--sizes", "80"]
    assert place.self_label(tmp_path / "parts", *words) == 130
    most = 99
    assert place.self_label(tmp_path / "parts", *words) == 0
    assert len(seen) == len(set(seen))
    assert place.predictions(tmp_path / "parts", 80) == place.predictions(tmp_path / "whole", 80)


def test_what_cannot_be_labelled(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.opts += ["MODEL.META_ARCHITECTURE", "CenterNet2RCNN"]
    assert place.self_label(tmp_path) == 2
    place.opts[-2:] = []
    assert "boxes for names are found by DecolaDeformableDETR and DeformableDETR" in capsys.readouterr().err
    assert place.self_label(tmp_path, "--dry-run", "--sizes", "80", "96") == 0
    assert "minsize_96" in capsys.readouterr().out
    assert not (tmp_path / "inference_drawn_names").exists()


def test_the_baseline_finds_the_best_box_of_each_name(tmp_path: Path) -> None:
    """Of its queries, which are for objects of any class."""
    baseline = Place(tmp_path / "baseline", BASELINE)
    assert baseline.self_label(tmp_path / "out", "--sizes", "80", "--strict-config") == 0
    rows = baseline.predictions(tmp_path / "out", 80)
    data = json.loads(baseline.annotations.read_text())
    asked = {(image["id"], category) for image in data["images"] for category in image["pos_category_ids"]}
    assert {(row["image_id"], row["category_id"]) for row in rows} == asked
    assert len(rows) == len(asked)

    model = load_model(baseline.config, baseline.weight, "cpu", baseline.opts)
    names = {row["id"]: row["name"] for row in data["categories"]}
    predictor = Predictor(model).set_image(baseline.names / data["images"][0]["file_name"])
    for row in rows:
        if row["image_id"] == data["images"][0]["id"]:
            found = predictor.predict([names[row["category_id"]]])
            assert row["score"] == pytest.approx(float(found.scores[0]), abs=1e-4)


def test_any_names_that_have_embeddings(place: Place, tmp_path: Path) -> None:
    model = load_model(place.config, place.weight, "cpu", place.opts)
    picture = sorted(place.names.rglob("*.png"))[1]
    predictor = Predictor(model).set_image(picture)
    one, two = CLASSES[3], CLASSES[0]
    found = predictor.predict([one, two.upper().replace(" ", "_")])
    assert {found.name(i) for i in range(len(found))} <= {one, two.upper().replace(" ", "_")}
    assert set(found.labels.tolist()) <= {1, 2}
    assert len(found) > 0
    everything = predictor.predict()
    assert {everything.name(i) for i in range(len(everything))} <= set(CLASSES)
    with pytest.raises(PromptError, match="this detector: no embedding of 'zebra crossing'"):
        predictor.predict(["zebra crossing"])
    with pytest.raises(PromptError, match="this detector reads no text"):
        predictor.predict(caption="a zebra")
    out = labelling.label_pictures(model, [picture], labelling.Query((one, two), 0.0), tmp_path / "found.json")
    assert [row["name"] for row in out["categories"]] == [one, two]


def test_labelled_pictures_are_accepted(place: Place, tmp_path: Path) -> None:
    shots = tmp_path / "shots"
    shots.mkdir()
    for picture in sorted(place.names.rglob("*.png"))[1:3]:
        shutil.copy(picture, shots)
    argv = ["label", str(shots), "--labels", CLASSES[0], "--config-file", str(place.config), "--device", "cpu"]
    argv += ["--weight", str(place.weight), "--min-score", "0", "--output", str(tmp_path / "found.json")]
    assert mrb.main([*argv, "--set", *place.opts]) == 0
    checked = ["data", "check", str(tmp_path / "found.json"), "--images", str(shots), "--output", str(tmp_path / "c")]
    assert mrb.main(checked) == 0


def test_pictures_are_asked_for_the_classes_of_their_own_objects(place: Place, tmp_path: Path) -> None:
    """Conditioned AP, from the command."""
    written = write_lvis(tmp_path / "lvis", World(3, size=(96, 128), classes=CLASSES), 3)
    data = json.loads(written.annotations.read_text())
    data["annotations"] = [row for row in data["annotations"] if row["image_id"] != 1]  # nothing to ask for
    written.annotations.write_text(json.dumps(data))
    register = {"REGISTER": {"drawn_lvis": written.entry}, "TEST": ["drawn_lvis"]}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"_BASE_": str(place.config), "DATASETS": register}))
    argv = ["eval", "--config-file", str(config), "--weight", str(place.weight), "--output", str(tmp_path / "out")]
    assert mrb.main([*argv, "--set", *place.opts, "TEST.DETECTIONS_PER_IMG", "7"]) == 0
    folder = tmp_path / "out" / "eval" / "weights" / "inference" / "drawn_lvis"
    results = json.loads((folder / "results.json").read_text())
    assert {"C-AP@7", "C-APr@7", "AP-novel", "AP-base"} <= set(results["metrics"])
    assert results["protocol"] == {
        "name": "lvis_standard",
        "per_class": -1,
        "per_image": 7,
        "per_image_class": -1,
        "conditioned": True,
    }
    assert results["prompts"] == "the classes of the objects of each picture"
    own: dict[int, set[int]] = {}
    for row in data["annotations"]:
        own.setdefault(row["image_id"], set()).add(row["category_id"])
    found = json.loads((folder / "bbox.json").read_text())
    assert {row["image_id"] for row in found} == {2, 3}
    assert all(row["category_id"] in own[row["image_id"]] for row in found)
