"""Which evaluator a data set's entry of the catalog names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maskrcnn_benchmark.data.catalog import Entry, find_path
from maskrcnn_benchmark.evaluation.coco import CocoEvaluator
from maskrcnn_benchmark.evaluation.coco_variants import (
    CaptionBoxesEvaluator,
    CocoAgnosticEvaluator,
    CocoZeroShotEvaluator,
)
from maskrcnn_benchmark.evaluation.flickr import FlickrEvaluator
from maskrcnn_benchmark.evaluation.interface import Evaluator
from maskrcnn_benchmark.evaluation.lvis import LvisEvaluator
from maskrcnn_benchmark.evaluation.lvis_open import OpenLvisEvaluator
from maskrcnn_benchmark.evaluation.openimages import OpenImagesEvaluator
from maskrcnn_benchmark.evaluation.phrasecut import PhraseCutEvaluator
from maskrcnn_benchmark.evaluation.proposals import ProposalEvaluator
from maskrcnn_benchmark.evaluation.refexp import RefExpEvaluator
from maskrcnn_benchmark.evaluation.together import WithBoxes
from maskrcnn_benchmark.evaluation.voc import VocEvaluator


@dataclass(frozen=True)
class Protocols:
    """How evaluators that know several ways measure."""

    engine: str = "auto"
    flickr: str = "separate"  # every box of a phrase counts | merged: one box around them
    lvis: str = "fixed"  # the best 10,000 of a class | standard: the best 300 of a picture
    voc: str = "lineage"  # see evaluation/voc.py
    plus_one: bool = True  # of COCO: boxes hold their last pixel
    iou_types: tuple[str, ...] = ("bbox",)  # of COCO and LVIS: what AP is of, bbox and segm
    open_vocabulary: bool = False  # of LVIS: novel and base classes apart
    conditioned: bool = False  # of LVIS: pictures were asked for the classes of their own objects
    per_image: int | None = None  # most detections of a picture, of LVIS (standard) and OpenImages; None: theirs
    per_image_class: int | None = None  # of a class in a picture, of LVIS
    boxes: bool = False  # of captions: AP of all boxes too; for detectors that score them whatever phrase they are of


@dataclass(frozen=True)
class Choice:
    """An evaluator that an entry can name."""

    kinds: tuple[str, ...]  # of data set
    make: Callable[[Entry, Any, Protocols], Evaluator]


def _coco(entry: Entry, dataset: Any, protocols: Protocols) -> Evaluator:
    return CocoEvaluator(
        entry.annotations,
        dataset.label_to_category,
        categories=dataset.evaluation_categories,
        engine=protocols.engine,
        plus_one=protocols.plus_one,
        iou_types=protocols.iou_types,
    )


def _coco_agnostic(entry: Entry, dataset: Any, protocols: Protocols) -> Evaluator:
    return CocoAgnosticEvaluator(entry.annotations, dataset.label_to_category, engine=protocols.engine)


def _coco_zero_shot(entry: Entry, dataset: Any, protocols: Protocols) -> Evaluator:
    return CocoZeroShotEvaluator(
        entry.annotations,
        dataset.label_to_category,
        categories=dataset.evaluation_categories,
        engine=protocols.engine,
    )


def _caption_boxes(entry: Entry, protocols: Protocols) -> CaptionBoxesEvaluator:
    return CaptionBoxesEvaluator(entry.annotations, engine=protocols.engine)


def _lvis(entry: Entry, dataset: Any, protocols: Protocols) -> Evaluator:
    options: dict[str, Any] = {
        "protocol": protocols.lvis,
        "engine": protocols.engine,
        "iou_types": protocols.iou_types,
        "per_image": protocols.per_image if protocols.lvis == "standard" else None,
        "per_image_class": protocols.per_image_class,
    }
    if protocols.open_vocabulary:
        conditioned = protocols.conditioned
        return OpenLvisEvaluator(entry.annotations, dataset.label_to_category, conditioned=conditioned, **options)
    return LvisEvaluator(entry.annotations, dataset.label_to_category, **options)


def _openimages(entry: Entry, dataset: Any, protocols: Protocols) -> Evaluator:
    most = {} if protocols.per_image is None else {"per_image": protocols.per_image}
    hierarchy = entry.options.get("hierarchy")
    tree = find_path(hierarchy, f"data set {entry.name!r}: hierarchy") if hierarchy else None
    return OpenImagesEvaluator(entry.annotations, dataset.label_to_category, hierarchy=tree, **most)


CAPTIONED = ("flickr", "gqa", "phrasecut", "refexp")
"""Kinds of data sets with captions."""

EVALUATORS: dict[str, Choice] = {
    "coco": Choice(("coco", "lvis"), _coco),
    "coco_agnostic": Choice(("coco",), _coco_agnostic),
    "coco_zeroshot": Choice(("coco",), _coco_zero_shot),
    "proposals": Choice(("coco",), lambda entry, dataset, protocols: ProposalEvaluator(entry.annotations)),
    "lvis": Choice(("lvis",), _lvis),
    "openimages": Choice(("lvis",), _openimages),
    "voc": Choice(("voc",), lambda entry, dataset, protocols: VocEvaluator.of(dataset, protocols.voc)),
    "flickr": Choice(
        ("flickr",), lambda entry, dataset, protocols: FlickrEvaluator.from_entry(entry, protocols.flickr)
    ),
    "refexp": Choice(("refexp",), lambda entry, dataset, protocols: RefExpEvaluator(entry.annotations)),
    "phrasecut": Choice(("phrasecut",), lambda entry, dataset, protocols: PhraseCutEvaluator.from_entry(entry)),
    "caption_boxes": Choice(CAPTIONED, lambda entry, dataset, protocols: _caption_boxes(entry, protocols)),
}
"""What the key ``evaluator`` of an entry can be."""


def make_evaluator(entry: Entry, dataset: Any, protocols: Protocols) -> Evaluator:
    """The evaluator of an entry, with its ground truth.

    Args:
        entry: Names it.
        dataset: The entry's pictures, for the labels that detections will have.
        protocols: How to measure.

    Raises:
        DataError: the ground truth is wrong.
        ConfigError: a protocol or engine is unknown or not installed.
    """
    evaluator = EVALUATORS[entry.evaluator].make(entry, dataset, protocols)
    if not protocols.boxes or entry.kind not in CAPTIONED or entry.evaluator == "caption_boxes":
        return evaluator
    return WithBoxes(evaluator, _caption_boxes(entry, protocols))
