"""The central types: what they hold, what they refuse."""

from __future__ import annotations

import pytest
import torch

from maskrcnn_benchmark.structures import Detections, ImageBatch, ImageMeta, Prompt, Target, TextBatch
from maskrcnn_benchmark.structures.boxes import giou, giou_of_pairs

META = ImageMeta(image_id=7, size=(10, 20), orig_size=(20, 40))


def detections(scores: list[float], meta: ImageMeta = META, **more: object) -> Detections:
    boxes = torch.arange(len(scores) * 4, dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor(scores), torch.arange(1, len(scores) + 1), meta, **more)


def test_batch_is_padded_right_and_bottom_with_zeros_to_a_multiple() -> None:
    metas = [ImageMeta(i, size, size) for i, size in enumerate([(5, 9), (8, 3)])]
    batch = ImageBatch.pad([torch.ones(3, *meta.size) for meta in metas], metas, divisibility=4)
    assert batch.pixels.shape == (2, 3, 8, 12)
    assert batch.pixels[0, :, :5, :9].eq(1).all()
    assert batch.pixels.sum() == 3 * (5 * 9 + 8 * 3)
    assert torch.equal(batch.mask, batch.pixels[:, 0] == 0)


@pytest.mark.parametrize("step", [0, 1])
def test_without_divisibility_a_batch_is_as_large_as_its_largest(step: int) -> None:
    assert ImageBatch.pad([torch.ones(3, 5, 9)], [META], divisibility=step).pixels.shape == (1, 3, 5, 9)


def test_batch_needs_one_meta_a_picture() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, H, W\)"):
        ImageBatch(torch.zeros(2, 3, 4, 4), (META,))


def test_detections_are_sorted_best_first_and_ties_keep_their_order() -> None:
    found = detections([0.1, 0.9, 0.5, 0.9])
    assert found.labels.tolist() == [2, 4, 3, 1]
    assert found.boxes[:, 0].tolist() == [4, 12, 8, 0]
    assert found.filter(0.5).labels.tolist() == [2, 4, 3]
    assert found.top_k(1).labels.tolist() == [2]


@pytest.mark.parametrize(
    ("boxes", "scores", "labels"),
    [((2, 4), 3, 3), ((3, 5), 3, 3), ((3, 4), 3, 2)],
)
def test_detections_of_different_lengths_are_refused(boxes: tuple[int, int], scores: int, labels: int) -> None:
    with pytest.raises(ValueError, match="expected boxes"):
        Detections(torch.zeros(boxes), torch.zeros(scores), torch.zeros(labels, dtype=torch.int64), META)


def test_detections_of_several_prompts_become_one_list() -> None:
    one, two = detections([0.9, 0.2], names={1: "cup", 2: "dog"}), detections([0.5], names={1: "cup"})
    both = Detections.cat([one, two, Detections.empty(META)])
    assert both.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert [both.name(i) for i in range(3)] == ["cup", "cup", "dog"]
    with pytest.raises(ValueError, match="different pictures"):
        Detections.cat([one, detections([0.5], ImageMeta(8, (1, 1), (1, 1)))])


@pytest.mark.parametrize(("plus_one", "size"), [(False, [2.0, 2.0]), (True, [3.0, 3.0])])
def test_coco_rows_count_the_border_pixel_on_request(plus_one: bool, size: list[float]) -> None:
    row = detections([0.5, 0.25]).to_coco({1: 11, 2: 12}, plus_one=plus_one)[1]
    assert row == {"image_id": 7, "category_id": 12, "bbox": [4.0, 5.0, *size], "score": 0.25}


@pytest.mark.parametrize("spans", [(((0, 9),),), (((-1, 2),),), (((3, 2),),)])
def test_prompt_refuses_spans_outside_its_text(spans: tuple) -> None:
    with pytest.raises(ValueError, match="span"):
        Prompt("a cup", spans, (1,))


def test_prompt_names_its_entities() -> None:
    assert Prompt("a cup, a dog", (((2, 5),), ((7, 8), (9, 12))), (1, 2)).name(1) == "a dog"
    assert Prompt("mug", (((0, 3),),), (1,), names=("cup",)).name(0) == "cup"
    with pytest.raises(ValueError, match="1 span lists for 2 ids"):
        Prompt("cup", (((0, 3),),), (1, 2))


def test_one_prompt_of_a_text_batch_keeps_its_length() -> None:
    prompts = (Prompt("cup", (((0, 3),),), (1,)), Prompt("dog", (((0, 3),),), (1,)))
    tokens = tuple(torch.eye(1, 5, dtype=torch.bool) for _ in prompts)
    text = TextBatch(prompts, torch.arange(10).reshape(2, 5), torch.ones(2, 5, dtype=torch.int64), tokens)
    assert text[1].input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert text[1].prompts == prompts[1:]


def test_target_rows_belong_together() -> None:
    target = Target(torch.zeros(3, 4), torch.tensor([1, 2, 3]), META, positive_map=torch.eye(3))
    assert target[torch.tensor([True, False, True])].positive_map.tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="positive_map must have 3 rows"):
        Target(torch.zeros(3, 4), torch.tensor([1, 2, 3]), META, positive_map=torch.eye(2))


def test_giou_of_pairs_is_that_of_each_row() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 50, 2, 2, generator=generator).sort(dim=2).values.flatten(2)
    torch.testing.assert_close(giou_of_pairs(*corners), giou(*corners).diagonal())
    assert giou_of_pairs(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
