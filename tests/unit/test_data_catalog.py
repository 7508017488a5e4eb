"""Names of data sets: where their files are found, and what is said when they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.catalog import find_path, names, resolve
from maskrcnn_benchmark.errors import DataError


def config(folder: Path, **datasets: Any) -> Cfg:
    (folder / "task.yaml").write_text(yaml.safe_dump({"DATASETS": datasets}))
    return load_cfg(None, folder / "task.yaml")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for $DATASET; the current folder is another, empty one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DATASET", str(tmp_path / "data"))
    return tmp_path / "data"


def put(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / path
        if file.suffix:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
        else:
            file.mkdir(parents=True, exist_ok=True)


def test_a_registered_data_set(data: Path, tmp_path: Path) -> None:
    put(data, "fish/test", "fish/test.json")
    row = {"img_dir": "fish/test", "ann_file": "fish/test.json", "split_note": "x"}
    entry = resolve(config(tmp_path, REGISTER={"test": row}, TEST=["test"]), "test", "test")
    assert (entry.kind, entry.evaluator, dict(entry.options)) == ("coco", "coco", {"split_note": "x"})
    assert (entry.images, entry.annotations) == (data / "fish/test", data / "fish/test.json")


def test_a_name_does_not_decide_the_kind(data: Path, tmp_path: Path) -> None:
    put(data, "a", "a.json")
    row = {"img_dir": "a", "ann_file": "a.json"}
    for name in ("mixed_fruit", "my_flickr", "voc_like", "lvis_evaluation_of_mine"):
        assert resolve(config(tmp_path, REGISTER={name: row}), name, "test").kind == "coco"


def test_a_known_name(data: Path, tmp_path: Path) -> None:
    put(data, "coco/val2017", "coco/annotations/instances_val2017.json")
    entry = resolve(config(tmp_path), "coco_2017_val", "test")
    assert entry.images == data / "coco/val2017"
    assert entry.annotations.name == "instances_val2017.json"


def test_a_registered_name_wins_over_the_catalog(data: Path, tmp_path: Path) -> None:
    put(data, "mine", "mine.json")
    cfg = config(tmp_path, REGISTER={"coco_2017_val": {"img_dir": "mine", "ann_file": "mine.json"}})
    assert resolve(cfg, "coco_2017_val", "test").images == data / "mine"


def test_a_registered_name_keeps_what_the_catalog_says_about_its_kind(data: Path, tmp_path: Path) -> None:
    put(data, "mine", "mine.json")
    row = {"img_dir": "mine", "ann_file": "mine.json"}
    entry = resolve(config(tmp_path, REGISTER={"flickr30k_test": row}), "flickr30k_test", "test")
    assert (entry.kind, entry.evaluator, dict(entry.options)) == ("flickr", "flickr", {"split": "test"})
    row = {**row, "kind": "coco", "evaluator": "coco"}
    entry = resolve(config(tmp_path, REGISTER={"flickr30k_test": row}), "flickr30k_test", "test")
    assert (entry.kind, dict(entry.options)) == ("coco", {})


def test_captions_name_their_evaluator_and_ground_truth(data: Path, tmp_path: Path) -> None:
    put(data, "flickr30k/flickr30k_images/val", "mdetr_annotations/final_flickr_separateGT_val.json")
    put(data, "coco/train2014", "mdetr_annotations/final_refexp_val.json")
    entry = resolve(config(tmp_path), "flickr30k_val", "test")
    assert (entry.kind, entry.evaluator) == ("flickr", "flickr")
    assert dict(entry.options) == {"entities": "flickr30k/flickr30k", "split": "val"}
    entry = resolve(config(tmp_path), "refexp_all_val", "test")
    assert (entry.kind, entry.evaluator, dict(entry.options)) == ("refexp", "refexp", {})


def test_suffixes_lead_to_their_entry_or_kind(data: Path, tmp_path: Path) -> None:
    put(data, "a", "a.json", "b", "b.json")
    rows = {"fish": {"img_dir": "a", "ann_file": "a.json"}, "fish_v2": {"img_dir": "b", "ann_file": "b.json"}}
    cfg = config(tmp_path, REGISTER=rows, TEST_DATASETNAME_SUFFIX="_v2", TRAIN_DATASETNAME_SUFFIX="_grounding")
    assert resolve(cfg, "fish", "test").images == data / "b"
    entry = resolve(cfg, "fish", "train")
    assert (entry.kind, entry.images) == ("coco_grounding", data / "a")


def test_an_unknown_name_lists_the_closest_and_how_to_register(tmp_path: Path) -> None:
    cfg = config(tmp_path, TEST=["coco_2017_vel"])
    with pytest.raises(DataError) as error:
        resolve(cfg, "coco_2017_vel", "test")
    for words in (
        "DATASETS.TEST",
        "task.yaml",
        "'coco_2017_vel'",
        "'coco_2017_val'",
        "DATASETS.REGISTER.coco_2017_vel",
    ):
        assert words in str(error.value)


def test_what_is_for_training_alone_is_refused_for_evaluation(tmp_path: Path) -> None:
    for name in ("mixed_train", "object365_dt_train", "coco_grounding_train", "imagenet_lvis_v1", "imagenet_lvis-21k"):
        with pytest.raises(DataError, match=r"this version cannot evaluate on data of kind '\w+', only coco"):
            resolve(config(tmp_path), name, "test")


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        (
            "lvis_v1_minival",
            "coco",
            [f"{place}/lvis_v1_minival_inserted_image_name.json" for place in ("lvis", "metadata", "lvis_mini")],
        ),
        ("lvis_v1_train_22k", "coco", ["lvis/lvis_v1_train_lvis-21k.json", "lvis/lvis_v1_train_lvis-22k.json"]),
        (
            "imagenet_lvis-21k",
            "imagenet",
            [f"imagenet/annotations/imagenet-{n}k_image_info_lvis-{n}k.json" for n in (21, 22)],
        ),
        (
            "objects365_v2_train",
            "objects365/train",
            [f"objects365/annotations/zhiyuan_objv2_train_fixname{end}.json" for end in ("", "_fixmiss")],
        ),
        (
            "oid_train",
            "oid/images",
            [f"oid/annotations/oid_challenge_2019_train{end}.json" for end in ("", "_bbox")],
        ),
    ],
)
def test_files_that_have_several_names(data: Path, tmp_path: Path, name: str, folder: str, files: list[str]) -> None:
    put(data, f"datasets/{folder}")
    for file in files:
        put(data, f"datasets/{file}")
        assert resolve(config(tmp_path), name, "train").annotations == data / "datasets" / file
        (data / "datasets" / file).unlink()


def test_tab_separated_data_need_no_folder_of_pictures(data: Path, tmp_path: Path) -> None:
    put(data, "Objects365/objects365_train_vgoiv6.cas2000.yaml")
    entry = resolve(config(tmp_path), "object365_dt_train", "train")
    assert (entry.kind, entry.images) == ("tsv", data / "Objects365")
    with pytest.raises(DataError, match="no ann_file; an entry needs ann_file, and has kind"):
        resolve(config(tmp_path, REGISTER={"mine": {"kind": "tsv"}}), "mine", "train")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cam3nms8xyxy", {"boxes": "train.cam3nms8xyxy.npz"}),
        ("cam7nms5xyxy", {"boxes": "train.cam7nms5xyxy.npz"}),
        ("mine", {"boxes": "train.mine.npz"}),
        ("pseudo2", {"boxes": "train.pseudo2.pth", "first_label": 1}),
        ("down", {"memory": True}),
        ("down_cam7xyxy", {"boxes": "train.cam7xyxy.npz", "memory": True}),
        ("cam7xyxy_down", {"boxes": "train.cam7xyxy.npz", "memory": True}),
        ("mypseudo_down", {"boxes": "train.mypseudo.pth", "first_label": 1, "memory": True}),
    ],
)
def test_boxes_of_imagenet_of_any_name(data: Path, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    put(data, "datasets/imagenet2012Full")
    entry = resolve(config(tmp_path), f"imagenetcls_train_{name}", "train")
    assert (entry.kind, dict(entry.options)) == ("imagenet", {"split": "train", **options})


def test_every_name_of_the_released_configs_is_known() -> None:
    known = set(names())
    assert {"mixed_train_no_coco", "refcocog_test", "lvis_evaluation_mini_val", "voc_2012_val_cocostyle"} <= known
    assert {"imagenet_lvis_v1_decola_phase1_swinb_standard_4x", "TaxImageNet22kSplit64_cam2nms8xyxy"} <= known
    assert not [name for name in known if "{" in name or "," in name]


@pytest.mark.parametrize("missing", ["img_dir", "ann_file"])
def test_missing_files_name_entry_key_and_every_folder(data: Path, tmp_path: Path, missing: str) -> None:
    put(data, "fish.json" if missing == "img_dir" else "fish")
    cfg = config(tmp_path, REGISTER={"test": {"img_dir": "fish", "ann_file": "fish.json"}})
    with pytest.raises(DataError) as error:
        resolve(cfg, "test", "test")
    message = str(error.value)
    for words in ("DATASETS.REGISTER.test", "task.yaml", missing, "not found", f"$DATASET ({data})", "DATA.md"):
        assert words in message
    assert all(f"{folder}/" in message for folder in ("DATASET", "OUTPUT", "data", "MODEL"))
    assert str(Path.cwd()) in message


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"img_dir": "fish"}, "no ann_file; an entry needs img_dir and ann_file"),
        ({"img_dir": "fish.json", "ann_file": "fish.json"}, "is not a folder"),
        ({"img_dir": "fish", "ann_file": "fish"}, "is not a file"),
        ({"img_dir": "fish", "ann_file": "fish.json", "kind": "tsf"}, "kind 'tsf'"),
    ],
)
def test_entries_that_are_wrong(data: Path, tmp_path: Path, row: dict[str, str], words: str) -> None:
    put(data, "fish", "fish.json")
    with pytest.raises(DataError, match=r"DATASETS\.REGISTER\.test") as error:
        resolve(config(tmp_path, REGISTER={"test": row}), "test", "test")
    assert words in str(error.value)


def test_the_first_folder_that_has_a_path_counts(data: Path) -> None:
    order = (Path("."), data, Path("DATASET"), Path("OUTPUT"), Path("data"), Path("MODEL"))
    for folder in reversed(order):
        put(folder, "x/a.json")
        assert find_path("x/a.json") == folder / "x/a.json"
    assert find_path(["y", "x"]) == Path("x")
    assert find_path(str(data / "x")) == data / "x"
