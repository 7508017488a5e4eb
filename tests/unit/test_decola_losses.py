"""What DECOLA and its baselines are trained on: assignment by class, classes that count, labels without boxes."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.engine.self_label import Choice, choose
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.modeling.assign.per_class import FocalMatcher, Objects
from maskrcnn_benchmark.modeling.criterion.decola import BaselineCriterion, DecolaCriterion, StageCriterion
from maskrcnn_benchmark.modeling.criterion.federated import FederatedClasses, draw_classes
from maskrcnn_benchmark.modeling.criterion.lessons import BaselineLesson, DecolaLesson, image_labels
from maskrcnn_benchmark.modeling.criterion.weak import SELECT, image_label_loss
from maskrcnn_benchmark.modeling.heads.query_outputs import DeformableOutputs, QueryOutputs
from maskrcnn_benchmark.modeling.interface import ALONE, Batch
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target


def target(labels: list[int], boxes: list[list[float]] | None = None, image: list[int] | None = None) -> Target:
    """In a picture of 100 x 100 pixels called a.jpg."""
    where = torch.tensor(boxes or [[10.0, 10.0, 50.0, 60.0]] * len(labels)).reshape(-1, 4)
    known = None if image is None else torch.tensor(image, dtype=torch.int64)
    meta = ImageMeta(1, (100, 100), (100, 100), file="a.jpg")
    return Target(where, torch.tensor(labels, dtype=torch.int64), meta, image_labels=known)


def outputs(pictures: int, classes: int, query_class: Tensor | None = None, layers: int = 2) -> DeformableOutputs:
    """Of 6 queries and 8 candidates, by chance; a column for each class, or one where queries belong to classes."""
    generator = torch.Generator().manual_seed(0)

    def some(count: int, columns: int) -> QueryOutputs:
        logits = torch.randn(pictures, count, columns, generator=generator).requires_grad_()
        boxes = (torch.rand(pictures, count, 4, generator=generator) * 0.4 + 0.2).requires_grad_()
        return QueryOutputs(logits, boxes)

    columns = 1 if query_class is not None else classes
    owner = None if query_class is None else query_class.repeat(2)[:8]
    return DeformableOutputs(tuple(some(6, columns) for _ in range(layers)), some(8, 1), query_class, owner)


def batch(*targets: Target) -> Batch:
    return Batch(ImageBatch(torch.zeros(len(targets), 3, 100, 100), tuple(t.meta for t in targets)), list(targets))


def test_only_queries_of_an_objects_class_may_have_it() -> None:
    owner = torch.tensor([4, 7, 4, 7, 4, 7])
    answer = outputs(1, 0, owner).layers[0]
    pairs = FocalMatcher()(answer, Objects.of([target([8, 5, 8, 3])]), owner)
    assert owner[pairs.query].tolist() == [4, 7, 7]  # class by class; class 2 (label 3) has no queries
    assert pairs.target.tolist()[0] == 1
    assert sorted(pairs.target.tolist()) == [0, 1, 2]


def test_more_objects_than_queries_leaves_objects_without() -> None:
    owner = torch.tensor([0, 1, 1, 1, 1, 1])
    pairs = FocalMatcher()(outputs(1, 0, owner).layers[0], Objects.of([target([1, 1, 1])]), owner)
    assert pairs.query.tolist() == [0]


def test_a_box_that_is_no_number_does_not_stop_the_assignment() -> None:
    answer = outputs(1, 3).layers[0]
    broken = QueryOutputs(answer.logits, answer.boxes.detach().index_fill(1, torch.tensor([2]), torch.nan))
    pairs = FocalMatcher()(broken, Objects.of([target([1, 2])]))
    assert len(pairs) == 2
    assert 2 not in pairs.query.tolist()


def test_losses_of_both_kinds_of_boxes_have_their_names_in_every_batch() -> None:
    criterion = DecolaCriterion()
    owner = torch.tensor([0, 1, 0, 1, 0, 1])
    by_hand = criterion(outputs(2, 0, owner), [target([1]), target([2, 2])])
    by_teacher = criterion(outputs(2, 0, owner), [target([1]), target([2, 2])], weak=True)
    assert by_hand.terms.keys() == by_teacher.terms.keys()
    names = {f"{name}{layer}" for name in ("loss_ce", "loss_bbox", "loss_giou") for layer in ("", "_0", "_enc")}
    assert by_hand.terms.keys() == names | {f"{name}_weak_data" for name in names}
    for name in names:
        assert by_hand.terms[name] == by_teacher.terms[f"{name}_weak_data"] > 0
        assert by_hand.terms[f"{name}_weak_data"] == by_teacher.terms[name] == 0
    torch.testing.assert_close(by_hand.total(), by_teacher.total())


def test_boxes_of_a_teacher_may_be_left_out() -> None:
    losses = DecolaCriterion(weak_boxes=False)(outputs(1, 5), [target([1])], weak=True)
    counted = sum(2 * losses.terms[f"loss_ce{layer}_weak_data"] for layer in ("", "_0", "_enc"))
    torch.testing.assert_close(losses.total(), torch.as_tensor(counted))


def test_a_picture_without_objects_has_no_box_losses_but_all_gradients() -> None:
    answer = outputs(1, 0, torch.tensor([3] * 6))
    losses = DecolaCriterion()(answer, [target([])])
    assert all(value == 0 for name, value in losses.terms.items() if "bbox" in name or "giou" in name)
    losses.total().backward()
    assert all(part.boxes.grad is not None and part.logits.grad is not None for part in answer.layers)


def test_classes_that_do_not_count_cost_nothing() -> None:
    answer = outputs(1, 5)
    some = DecolaCriterion()(answer, [target([2])], classes=torch.tensor([1, 4]))
    every = DecolaCriterion()(answer, [target([2])], classes=torch.arange(5))
    whole = DecolaCriterion()(answer, [target([2])])
    torch.testing.assert_close(every.terms["loss_ce"], whole.terms["loss_ce"])
    assert some.terms["loss_ce"] < whole.terms["loss_ce"]
    assert some.terms["loss_ce_enc"] == whole.terms["loss_ce_enc"]  # which asks for objects of any class


def test_the_error_of_classes_is_told_and_not_learnt() -> None:
    losses = DecolaCriterion()(outputs(1, 5), [target([])])
    assert losses.metrics["class_error"] == 100
    assert not any("error" in name for name in losses.terms)


def test_queries_for_classes_of_other_pictures_count_only_where_wanted() -> None:
    owner = torch.tensor([0, 1, 0, 1, 0, 1])
    targets = [target([1]), target([2])]
    whole = DecolaCriterion(StageCriterion())(outputs(2, 0, owner), targets)
    within = DecolaCriterion(StageCriterion(within_picture=True))(outputs(2, 0, owner), targets)
    assert 0 < within.terms["loss_ce"] < whole.terms["loss_ce"]
    assert within.terms["loss_bbox"] == whole.terms["loss_bbox"]


def test_drawn_classes_are_those_that_are_there_and_common_ones() -> None:
    weights = torch.tensor([4.0, 0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    seen: Counter[int] = Counter()
    for seed in range(400):
        drawn = draw_classes(torch.tensor([5, 1, 5]), weights, 3, Random(seed)).tolist()
        assert drawn[:2] == [1, 5]
        assert len(set(drawn)) == 3
        seen[drawn[2]] += 1
    assert seen.keys() == {0, 2, 3, 4}
    assert 180 < seen[0] < 280  # 4 / 7 of 400
    assert draw_classes(torch.tensor([1]), weights, 50, Random(0)).sort().values.tolist() == [0, 1, 2, 3, 4, 5]
    assert draw_classes(torch.tensor([1, 2, 3]), weights, 2, Random(0)).tolist() == [1, 2, 3]


def test_the_draw_of_a_step_follows_from_its_batch() -> None:
    federated = FederatedClasses(count=4)
    federated.chance = torch.ones(40, dtype=torch.float64)
    same = [federated(torch.tensor([3]), 40, Random(7)).tolist() for _ in range(2)]
    assert same[0] == same[1] != federated(torch.tensor([3]), 40, Random(8)).tolist()
    with pytest.raises(ValueError, match="41 classes"):
        federated(torch.tensor([3]), 41, Random(7))


def test_decola_draws_once_and_the_baseline_for_every_loss() -> None:
    asked: list[list[int]] = []

    class Counting(FederatedClasses):
        def __call__(self, present: Tensor, num_classes: int, rng: Random) -> Tensor:
            asked.append(present.tolist())
            return torch.arange(num_classes)

    step = batch(target([2]))
    DecolaLesson(5, federated=Counting(), general=1.0)(lambda images, classes=None: outputs(1, 5), step, ALONE)
    assert asked == [[1]]
    asked.clear()
    answer = outputs(1, 5)
    wide = DeformableOutputs(answer.layers, QueryOutputs(answer.layers[0].logits, answer.layers[0].boxes))
    BaselineLesson(5, BaselineCriterion(), Counting())(lambda images, classes=None: wide, step, ALONE)
    assert asked == [[1], [1], [0]]


def test_phase_1_asks_for_the_classes_of_the_batch() -> None:
    asked: list[list[int]] = []

    def ask(images: ImageBatch, classes: Tensor | None = None) -> DeformableOutputs:
        assert classes is not None
        asked.append(classes.tolist())
        return outputs(len(images), 0, classes.repeat(6)[:6])

    lesson = DecolaLesson(9)
    lesson(ask, batch(target([7, 2]), target([2])), ALONE)
    lesson(ask, batch(target([]), target([])), ALONE)
    assert asked[0] == [1, 6]
    assert len(asked[1]) == 1
    assert 0 <= asked[1][0] < 9


@pytest.mark.parametrize(
    ("name", "rows"), [("max_size", [1, 1]), ("max_score", [2, 0]), ("first", [0, 0]), ("image", [2, 2])]
)
def test_which_query_learns_an_image_label(name: str, rows: list[int]) -> None:
    logits = torch.tensor([[0.0, 3.0, -1.0], [1.0, 0.0, 0.0], [2.0, 1.0, 5.0]])
    areas, columns = torch.tensor([0.1, 0.9, 0.3]), torch.tensor([0, 1])
    assert SELECT[name](logits, areas, columns).tolist() == rows
    each = torch.stack([image_label_loss(logits[[row]], areas[[row]], columns[[i]]) for i, row in enumerate(rows)])
    torch.testing.assert_close(image_label_loss(logits, areas, columns, SELECT[name]), each.mean())


def test_the_cheapest_query_learns_an_image_label() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    columns, areas = torch.tensor([2]), torch.zeros(5)
    losses = [float(image_label_loss(logits[[row]], areas[[row]], columns)) for row in range(5)]
    assert float(image_label_loss(logits, areas, columns, SELECT["min_loss"])) == pytest.approx(min(losses))


def test_pictures_with_labels_only_are_learnt_by_their_largest_query() -> None:
    criterion = BaselineCriterion(image_labels=True)
    lesson = BaselineLesson(5, criterion)

    def ask(images: ImageBatch, classes: Tensor | None = None) -> DeformableOutputs:
        answer = outputs(len(images), 5)
        return DeformableOutputs(answer.layers, answer.layers[0])

    labelled = lesson(ask, batch(target([], image=[2, 4])), ALONE)
    boxed = lesson(ask, batch(target([2])), ALONE)
    assert labelled.terms.keys() == boxed.terms.keys()
    assert labelled.terms["loss_image"] > 0
    assert boxed.terms["loss_image"] == 0
    assert labelled.weights["loss_image"] == 0.1
    assert labelled.terms["loss_ce"] > 0  # that there is nothing, as in the original


def test_labels_that_the_network_does_not_know_are_refused_with_their_picture() -> None:
    with pytest.raises(DataError, match=r"a\.jpg: label 6 of the picture, but the detector knows classes 1 to 5"):
        image_labels([target([], image=[2, 6])], 5)
    with pytest.raises(DataError, match=r"a\.jpg: label 9 of an object"):
        image_labels([target([1]), target([9])], 5)
    with pytest.raises(DataError, match="multi_dataset"):
        image_labels([target([1]), target([], image=[2])], 5)
    assert image_labels([target([1])], 5) is None


def test_a_teacher_takes_one_box_for_each_label() -> None:
    logits = torch.tensor([[[0.0], [1.0], [3.0], [2.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9], [0.4, 0.4, 0.2, 0.1], [0.5, 0.5, 0.5, 0.5]]])
    owner = torch.tensor([4, 4, 8, 8])

    def found(choice: Choice, labels: list[int]) -> list[tuple[int, int]]:
        (answer,) = choose(logits, boxes, owner, [torch.tensor(labels)], choice)
        pairs = zip(answer.labels.tolist(), answer.scores.logit().round().int().tolist(), strict=True)
        return list(pairs)

    assert found(Choice(), [8, 4, 8]) == [(4, 1), (8, 3)]
    assert found(Choice("max-size"), [4, 8]) == [(4, 1), (8, 2)]
    assert found(Choice(min_area=0.1), [4, 8]) == [(4, 1), (8, 2)]
    assert found(Choice(min_area=0.3), [4, 8]) == [(4, 1)]
    assert found(Choice(min_score=0.9), [4, 8]) == [(8, 3)]
    assert found(Choice(), []) == []
    flat = boxes.clone()
    flat[0, 2, 3] = 1e-6
    (answer,) = choose(logits, flat, owner, [torch.tensor([8])], Choice())
    assert not len(answer.labels)  # the best box has no height, as in the original
