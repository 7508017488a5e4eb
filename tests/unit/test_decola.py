"""DECOLA and its baseline on a very small scale: who sees whom, parts of queries, small pictures, empty questions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from maskrcnn_benchmark.errors import ConfigError, PromptError
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors import decola
from maskrcnn_benchmark.modeling.detectors.decola import Decola
from maskrcnn_benchmark.modeling.detectors.deformable_detr import QueryDetector
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, TextBatch
from tests.narrow_decola import CONFIGS, drawn_batch, narrow_cfg

NAMES = {label: f"class {label}" for label in (1, 3, 4)}


def make(kind: str, folder: Path, **keys: object) -> QueryDetector:
    torch.manual_seed(0)
    detector = build_detector(narrow_cfg(kind, folder, **keys))
    assert isinstance(detector, QueryDetector)
    with torch.no_grad():  # boxes differ between queries from the first step on
        for head in detector.detr.bbox_embed:
            head.layers[-1].weight.normal_(std=0.3)  # type: ignore[union-attr,index]
    return detector


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_step_trains_every_weight(kind: str, tmp_path: Path) -> None:
    detector = make(kind, tmp_path).train()
    losses = detector(drawn_batch())
    losses.total().backward()
    assert losses.total().isfinite()
    idle = [name for name, value in detector.named_parameters() if value.grad is None]
    assert not idle


@torch.no_grad()
@pytest.mark.parametrize("grouping", ["released", "per_prompt"])
def test_parts_of_the_queries_give_what_all_of_them_give(
    grouping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = make("phase 1", tmp_path, MODEL__DECOLA__SELF_ATTN_GROUPING=grouping)
    image, text = detector.encode_image(drawn_batch().images), detector.encode_text(TextBatch.of_classes(NAMES))
    logits, boxes, owner = detector.find(image.features, text.features[0])
    monkeypatch.setattr(decola, "ROWS", 7)
    parts = detector.find(image.features, text.features[0])
    assert_close(parts[0], logits, rtol=0, atol=1e-4)
    assert_close(parts[1], boxes, rtol=0, atol=1e-5)
    assert owner is not None
    assert owner.tolist() == [0, 1, 2] * 20


@torch.no_grad()
def test_a_class_is_alone_only_in_the_papers_grouping(tmp_path: Path) -> None:
    """In the released one what is found of a class depends on the other classes that are asked for."""
    alike = {}
    for grouping in ("released", "per_prompt"):
        detector = make("phase 1", tmp_path, MODEL__DECOLA__SELF_ATTN_GROUPING=grouping)
        image = detector.encode_image(drawn_batch(1).images)
        both = detector.detect(image, detector.encode_text(TextBatch.of_classes(NAMES)))[0]
        alone = detector.detect(image, detector.encode_text(TextBatch.of_classes({3: "class 3"})))[0]
        scores = both.scores[both.labels == 3]
        alike[grouping] = torch.allclose(scores, alone.scores[: len(scores)], atol=1e-5)
    assert alike == {"released": False, "per_prompt": True}


@torch.no_grad()
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_prompt_for_each_picture_is_as_each_picture_alone(kind: str, tmp_path: Path) -> None:
    detector, batch = make(kind, tmp_path), drawn_batch()
    image = detector.encode_image(batch.images)
    lists = ({2: "class 2"}, NAMES)
    together = detector.detect(image, detector.encode_text(TextBatch.of_classes(*lists)))
    for row, names in enumerate(lists):
        alone = detector.detect(image.select([row]), detector.encode_text(TextBatch.of_classes(names)))[0]
        assert set(alone.labels.tolist()) <= set(names)
        assert_close(together[row].boxes, alone.boxes, rtol=0, atol=1e-2)
        assert_close(together[row].scores, alone.scores, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_picture_with_fewer_cells_than_queries(kind: str, tmp_path: Path) -> None:
    """There are as many queries as cells."""
    detector = make(kind, tmp_path)
    meta = ImageMeta(0, (24, 32), (48, 64))
    image = detector.encode_image(ImageBatch(torch.randn(1, 3, 24, 32), (meta,)))
    cells = image.features.count
    found = detector.detect(image, detector.encode_text(TextBatch.of_classes({1: "class 1"})))[0]
    assert cells < 20
    assert len(found) == cells
    assert found.name(0) == "class 1"


@torch.no_grad()
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_questions_about_nothing_and_unknown_classes(kind: str, tmp_path: Path) -> None:
    detector = make(kind, tmp_path)
    image = detector.encode_image(drawn_batch().images)
    found = detector.detect(image, detector.encode_text(TextBatch.of_classes({}, NAMES)))
    assert len(found[0]) == 0
    assert len(found[1]) > 0
    with pytest.raises(PromptError, match="class 99 of the prompt"):
        detector.encode_text(TextBatch.of_classes({99: "unknown"}))
    strict = make(kind, tmp_path, TEST__SCORE_THRESH=2.0)
    assert [len(one) for one in strict.detect(image, detector.encode_text(TextBatch.of_classes(NAMES)))] == [0, 0]


@torch.no_grad()
def test_embeddings_of_other_classes(tmp_path: Path) -> None:
    """Asking with the rows of a table is asking for the classes that it was built with."""
    detector = make("phase 1", tmp_path)
    image, text = detector.encode_image(drawn_batch(1).images), TextBatch.of_classes(NAMES)
    table = 3 * detector.classifiers[0].rows  # of any length
    own, other = (
        detector.detect(image, detector.encode_text(text)),
        detector.detect(image, detector.encode_embeddings(text, table)),
    )
    assert_close(own[0].scores, other[0].scores, rtol=0, atol=1e-5)


def test_without_embeddings_nothing_is_asked(tmp_path: Path) -> None:
    detector = make("phase 2", tmp_path, MODEL__ZEROSHOT_CLS__WEIGHT_PATH=tmp_path / "missing.npy")
    with pytest.raises(PromptError, match="no embeddings"):
        detector.encode_text(TextBatch.of_classes(NAMES))


def test_networks_that_are_not_offered(tmp_path: Path) -> None:
    for key, value, part in (
        ("TWO_STAGE", False, "only True is offered"),
        ("HIDDEN_DIM", 48, "must be a multiple of 32"),
    ):
        with pytest.raises(ConfigError, match=part):
            make("baseline", tmp_path, **{f"MODEL__DEFORMABLE_DETR__{key}": value})
    with pytest.raises(ConfigError, match=r"MODEL\.SWINT\.SIZE 'XXL'"):
        make("baseline", tmp_path, MODEL__SWINT__SIZE="XXL")


def test_stages_that_take_embeddings_differently_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"NORM_SECOND_STAGE True \(.*NORM_FIRST_STAGE is False: give both the same"):
        build_detector(narrow_cfg("phase 1", tmp_path, MODEL__DECOLA__NORM_FIRST_STAGE=False))


@torch.no_grad()
def test_more_queries_for_more_classes(tmp_path: Path) -> None:
    """The baseline may have so many queries per class."""
    keys = {"TEST__CONDITIONED__ADAPTIVE_QUERIES": True, "TEST__CONDITIONED__QUERIES_PER_CLASS": 5}
    detector = make("baseline", tmp_path, **keys)
    image = detector.encode_image(drawn_batch(1).images)
    logits, _, _ = detector.find(image.features, detector.encode_text(TextBatch.of_classes(NAMES)).features[0])
    assert logits.shape == (1, 15, 3)
    assert not isinstance(detector, Decola)
