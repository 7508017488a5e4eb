"""What MDETR is asked about captions, and the two protocols that score its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.catalog import Entry
from maskrcnn_benchmark.data.datasets.captions import CaptionSet
from maskrcnn_benchmark.data.datasets.modulated_captions import ModulatedCaptions
from maskrcnn_benchmark.engine.tasks import plan_tasks
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.evaluation.build import Protocols, make_evaluator
from maskrcnn_benchmark.evaluation.caption_table import caption_columns, caption_table
from maskrcnn_benchmark.evaluation.coco_variants import CaptionBoxesEvaluator
from maskrcnn_benchmark.modeling.detectors.mdetr import find
from maskrcnn_benchmark.modeling.heads.query_decode import find_objects, find_phrases
from maskrcnn_benchmark.structures import Detections, ImageMeta, Prompt
from tests.unit.coco_files import SIZE, write
from tests.unit.tiny_tokenizers import write_bpe
from tests.unit.training_files import CAPTION, mdetr

DOG, STREET = (0, 5), (9, 19)


def flickr(folder: Path) -> Path:
    """Three captions; the last one has no phrase."""
    data = mdetr()
    for row, phrases in zip(data["images"], ([[DOG], [STREET]], [[STREET]], []), strict=True):
        row |= {"tokens_positive_eval": phrases, "sentence_id": 0, "original_img_id": row["id"]}
    data["annotations"] = data["annotations"][:4]
    return write(folder, data)


def test_flickr_is_asked_for_anything_and_for_each_phrase(tmp_path: Path) -> None:
    path = flickr(tmp_path)
    asked = ModulatedCaptions(tmp_path, path)
    assert asked.num_entries == 3
    whole = ((0, len(CAPTION)),)
    assert asked.prompts(0) == (Prompt(CAPTION, (whole, (DOG,), (STREET,)), (0, 1, 2)),)
    assert asked.prompts(2) == (Prompt(CAPTION, (whole,), (0,)),)
    assert CaptionSet(tmp_path, path).num_entries == 2


@pytest.mark.parametrize("kind", ["gqa", "phrasecut"])
def test_others_are_asked_for_what_their_caption_names(tmp_path: Path, kind: str) -> None:
    data = mdetr()
    for row in data["images"]:
        row["task_id"] = f"{row['id']}__1"
    path = write(tmp_path, data)
    assert ModulatedCaptions(tmp_path, path, kind=kind).prompts(1) == (Prompt(CAPTION, (), ()),)
    whole = Prompt(CAPTION, (((0, len(CAPTION)),),), (1,))
    assert CaptionSet(tmp_path, path, kind=kind).prompts(1) == (whole,)


def test_a_phrase_without_its_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images \(id 1\): no task_id, which says what phrase of PhraseCut it is"):
        ModulatedCaptions(tmp_path, write(tmp_path, mdetr()), kind="phrasecut")


def test_an_expression_still_has_exactly_one_box(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 annotations; a referring expression has exactly one"):
        ModulatedCaptions(tmp_path, write(tmp_path, mdetr()), kind="refexp")


# scoring


def found(image: int, *rows: tuple[int, float, list[float]], **extra: Any) -> Detections:
    """(label, score, box) rows."""
    return Detections(
        torch.tensor([box for *_, box in rows]).reshape(-1, 4),
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([label for label, *_ in rows], dtype=torch.int64),
        ImageMeta(image, SIZE, SIZE, extra=extra),
    )


FIRST, SECOND, WRONG = [4.0, 5, 14, 13], [0.0, 12, 32, 24], [20.0, 0, 31, 9]


def test_boxes_of_anything_count_and_those_of_phrases_do_not(tmp_path: Path) -> None:
    path = write(tmp_path, mdetr(2))
    evaluator = CaptionBoxesEvaluator(path)
    evaluator.update([found(1, (0, 0.9, FIRST), (0, 0.8, SECOND), (1, 0.95, WRONG), (2, 0.99, WRONG))])
    evaluator.update([found(2, (3, 0.9, FIRST), (1, 0.8, SECOND))])  # no box of anything: all count
    assert evaluator.summary()["AP50"] == pytest.approx(1)
    assert evaluator.main == "AP50"
    assert evaluator.card()["annotations"]["file"] == str(path)
    assert evaluator.card()["counts"]["detections_with_unknown_labels"] == 0
    with pytest.raises(DataError, match=r"picture 7 \(\) was scored but is not in .*instances\.json"):
        evaluator.update([found(7)])


def test_expressions_and_all_boxes_together(tmp_path: Path) -> None:
    data = mdetr(2)
    data["annotations"] = data["annotations"][::2]
    entry = Entry("ref", "refexp", tmp_path, write(tmp_path, data), "refexp")
    evaluator = make_evaluator(entry, None, Protocols(boxes=True))
    evaluator.update([found(1, (1, 0.9, FIRST)), found(2, (1, 0.9, WRONG), (1, 0.3, FIRST))])
    numbers = evaluator.summary()
    assert (evaluator.main, numbers["P@1"], numbers["P@5"]) == ("P@1", 0.5, 1.0)
    assert 0.5 < numbers["boxes/AP50"] < 1
    evaluator.write(tmp_path / "out", {"dataset": "ref"})
    assert json.loads((tmp_path / "out/results.json").read_text())["metrics"] == numbers
    assert (tmp_path / "out/boxes/results.json").exists()
    assert "AP50" in evaluator.table()
    alone = make_evaluator(entry, None, Protocols())
    alone.update([found(1, (1, 0.9, FIRST)), found(2, (1, 0.9, FIRST))])
    assert "boxes/AP50" not in alone.summary()


def test_the_table_of_several_sets() -> None:
    results = {
        "gqa_val": {"AP50": 0.589, "AP": 0.4},
        "flickr30k_val": {"Recall@1_all": 0.825, "boxes/AP50": 0.756},
        "refexp_all_val": {"P@1": 0.6, "refcoco/P@1": 0.721, "refcoco+/P@1": 0.58, "boxes/AP50": 0.603},
    }
    assert caption_columns(results) == {
        "gqa_val AP": 0.589,
        "flickr30k_val AP": 0.756,
        "flickr30k_val R@1": 0.825,
        "refexp_all_val AP": 0.603,
        "refcoco R@1": 0.721,
        "refcoco+ R@1": 0.58,
    }
    assert "58.9" in caption_table("R101", results)
    assert caption_table("R101", {"coco_2017_val": {"AP": 0.5, "AP50": 0.6}}) == ""


# planning


def planned(folder: Path, path: Path, kind: str, evaluator: str, *opts: str) -> Cfg:
    row = {"kind": kind, "evaluator": evaluator, "img_dir": str(path.parent), "ann_file": str(path)}
    (folder / "task.yaml").write_text(yaml.safe_dump({"DATASETS": {"REGISTER": {"mine": row}, "TEST": ["mine"]}}))
    words = write_bpe(folder / "words")
    given = ["MODEL.META_ARCHITECTURE", "MDETR", "MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE", str(words), *opts]
    return load_cfg("configs/demo/fiber_narrow.yaml", folder / "task.yaml", given)


def test_a_plan_for_mdetr(tmp_path: Path) -> None:
    cfg = planned(tmp_path, write(tmp_path / "data", mdetr()), "gqa", "caption_boxes")
    (task,) = plan_tasks(cfg, tmp_path / "out")
    assert isinstance(task.dataset, ModulatedCaptions)
    evaluator = task.evaluator()
    evaluator.update([found(image, (1, 0.9, FIRST), (1, 0.8, SECOND)) for image in (1, 2, 3)])
    assert evaluator.summary()["AP50"] == pytest.approx(1)


def test_a_caption_that_is_too_long_is_found_before_the_first_picture(tmp_path: Path) -> None:
    data = mdetr()
    data["images"][1]["caption"] = "dog " * 300 + CAPTION
    cfg = planned(tmp_path, write(tmp_path / "data", data), "gqa", "caption_boxes")
    with pytest.raises(DataError, match=r"images \(id 2\): the caption 'dog dog .* tokens, more than .* 256: shorten"):
        plan_tasks(cfg, tmp_path / "out")


# answering


def test_mdetr_answers_for_anything_and_for_phrases_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(5, 256, generator=generator), torch.rand(5, 4, generator=generator)
    meta = ImageMeta(1, SIZE, SIZE)
    tokens = torch.zeros(3, 8, dtype=torch.bool)
    tokens[0], tokens[1, 1:3], tokens[2, 5] = True, True, True
    prompt = Prompt(CAPTION, (((0, 19),), (DOG,), (STREET,)), (0, 1, 2))
    both = find(logits, boxes, meta, prompt, tokens)
    objects, phrases = find_objects(logits, boxes, meta), find_phrases(logits, boxes, meta, tokens[1:], (1, 2))
    assert both.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert torch.equal(both.scores, torch.cat((objects.scores, phrases.scores)))
    assert torch.equal(both.boxes, torch.cat((objects.boxes, phrases.boxes)))
    alone = find(logits, boxes, meta, Prompt(CAPTION, (((0, 19),),), (0,)), tokens[:1])
    assert torch.equal(alone.scores, objects.scores)
    assert alone.labels.tolist() == [0] * 5
