"""The data sets of MDETR's JSON configs, as entries of ``DATASETS.REGISTER``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskrcnn_benchmark.data.catalog import find_path
from maskrcnn_benchmark.errors import ConfigError, DataError

Row = dict[str, str]
Options = Mapping[str, Any]

ANNOTATIONS = "mdetr_annotations"
TRAIN, VAL, TEST = "train", "val", "test"


def entry(options: Options, name: str, split: str) -> tuple[str, Row]:
    """Name and entry of one of ``combine_datasets``; where a path is not given, it is that of DATA.md.

    Args:
        options: Of the command line and the JSON file.
        name: flickr, mixed, gqa, refexp or phrasecut.
        split: "train", "val" or "test"; GQA, and referring expressions of all three sets together, have no "test" and
            give "val".

    Raises:
        ConfigError: there is no such data set, or it has no such split.
    """
    if name not in MAKERS:
        raise ConfigError(
            f"{'combine_datasets' if split == TRAIN else 'combine_datasets_val'}: this version does not read MDETR's "
            f"data set {name!r}, only {', '.join(MAKERS)}"
        )
    return MAKERS[name](options, split)


def _flickr(options: Options, split: str) -> tuple[str, Row]:
    kind = options.get("GT_type", "separate")
    images = _path(options, "flickr_img_path", "flickr30k/flickr30k_images")
    folders = [f"{images}/{split}", *([f"{images}/{VAL}"] if split == TEST else []), images]
    row = {
        "kind": "flickr",
        "evaluator": "flickr",
        "img_dir": _first(folders),
        "ann_file": f"{_path(options, 'flickr_ann_path', ANNOTATIONS)}/final_flickr_{kind}GT_{split}.json",
        "entities": _path(options, "flickr_dataset_path", "flickr30k/flickr30k"),
        "split": split,
    }
    return f"flickr30k_{'merged_' if kind == 'merged' else ''}{split}", row


def _mixed(options: Options, split: str) -> tuple[str, Row]:
    if split != TRAIN:
        raise ConfigError("combine_datasets_val: 'mixed' is for training alone: take it out")
    row = {
        "kind": "mixed",
        "evaluator": "",
        "img_dir": _coco(options),
        "vg_img_dir": _path(options, "vg_img_path", "gqa/images"),
        "ann_file": f"{_path(options, 'gqa_ann_path', ANNOTATIONS)}/final_mixed_train.json",
    }
    return "mixed_train", row


def _gqa(options: Options, split: str) -> tuple[str, Row]:
    split = VAL if split == TEST else split
    row = {
        "kind": "gqa",
        "evaluator": "caption_boxes",
        "img_dir": _path(options, "vg_img_path", "gqa/images"),
        "ann_file": f"{_path(options, 'gqa_ann_path', ANNOTATIONS)}/final_gqa_{split}.json",
    }
    return f"gqa_{split}", row


def _refexp(options: Options, split: str) -> tuple[str, Row]:
    name = options.get("refexp_dataset_name") or "all"
    folder = _path(options, "refexp_ann_path", ANNOTATIONS)
    if name == "all":
        name, split = "refexp_all", VAL if split == TEST else split
        file = f"{folder}/final_refexp_{split}.json"
    else:
        split = options.get("test_type", TEST) if split == TEST else split
        file = f"{folder}/finetune_{name}_{split}.json"
    return f"{name}_{split}", {"kind": "refexp", "evaluator": "refexp", "img_dir": _coco(options), "ann_file": file}


def _phrasecut(options: Options, split: str) -> tuple[str, Row]:
    split = "miniv" if split == VAL else split
    row = {
        "kind": "phrasecut",
        "evaluator": "phrasecut",
        "img_dir": _path(options, "vg_img_path", "gqa/images"),
        "ann_file": f"{_path(options, 'phrasecut_ann_path', ANNOTATIONS)}/finetune_phrasecut_{split}.json",
        "original": _path(options, "phrasecut_orig_ann_path", "VGPhraseCut_v0"),
        "split": split,
    }
    return f"phrasecut_{split}", row


MAKERS = {"flickr": _flickr, "mixed": _mixed, "gqa": _gqa, "refexp": _refexp, "phrasecut": _phrasecut}


def _coco(options: Options) -> str:
    """The pictures of COCO, in the folder that is given or in ``train2014`` below it."""
    given = _path(options, "coco_path", "")
    return _first([f"{given}/train2014", given] if given else ["coco/train2014", "refcoco/train2014"])


def _path(options: Options, name: str, default: str) -> str:
    return str(options.get(name) or default).rstrip("/")


def _first(places: list[str]) -> str:
    """The first that is there; else the first, for the message that it is not."""
    for place in places:
        try:
            find_path(place)
        except DataError:
            continue
        return place
    return places[0]
