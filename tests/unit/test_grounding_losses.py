"""Training losses of narrow FIBER and GLIP detectors: which there are, and that odd batches do no harm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint.io import load_weights, save_weights
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.criterion.grounding import GroundingCriterion
from maskrcnn_benchmark.modeling.criterion.shallow import ShallowSampling, sample_anchors
from maskrcnn_benchmark.modeling.interface import Batch, Losses, Peers
from maskrcnn_benchmark.structures import Target
from tests.unit.test_grounding import batch as pictures
from tests.unit.test_grounding import build, detect, text

FUSE = "MODEL.DYHEAD.FUSE_CONFIG"
RELEASED = {"loss_reg", "loss_centerness", "loss_dot_product_token"}
MORE = {
    "loss_cls": "USE_CLASSIFICATION_LOSS",
    "loss_token": "USE_TOKEN_LOSS",
    "mlm_loss": "MLM_LOSS",
    "loss_shallow_contrastive": "USE_SHALLOW_CONTRASTIVE_LOSS",
}
ALL = [word for key in MORE.values() for word in (f"{FUSE}.{key}", "True")]
ALIGN = [f"{FUSE}.USE_DOT_PRODUCT_TOKEN_LOSS", "False", f"{FUSE}.USE_CONTRASTIVE_ALIGN_LOSS", "True"]
TRAIN_ALL = ["MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "-1"]
BOXES = ([[4.0, 6.0, 60.0, 58.0], [30.0, 8.0, 90.0, 50.0]], [[10.0, 2.0, 80.0, 60.0]], [])


def target(boxes: Sequence[Sequence[float]], image: int, length: int = 8) -> Target:
    """Boxes that own the first entity of the prompt, the second, and so on."""
    positive_map = torch.zeros(len(boxes), length)
    for row, entity in zip(positive_map, ([1], [3, 4]), strict=False):
        row[entity] = 1.0 / len(entity)
    labels = torch.arange(len(boxes)) + 1
    meta = pictures(image).metas[0]
    return Target(torch.tensor(boxes).reshape(-1, 4), labels, meta, positive_map=positive_map, token_labels=labels)


def batch(*boxes: Sequence[Sequence[float]], length: int = 8) -> Batch:
    """A picture for each list of boxes, in which word 3 of the prompt is hidden."""
    prompts = text(*["abcd", "wxyz", "efgh"][: len(boxes)], length=length)
    word_labels = torch.full_like(prompts.input_ids, -100)
    word_labels[:, 3] = prompts.input_ids[:, 3]
    token_labels = torch.full(prompts.input_ids.shape, -1.0)
    token_labels[:, 1], token_labels[:, 3:5] = 1, 2
    targets = [target(own, image, length) for image, own in enumerate(boxes)]
    images = pictures(*range(len(boxes)))
    return Batch(images, targets, prompts, token_labels=token_labels, word_labels=word_labels)


def train(detector: nn.Module, data: Batch, **peers: Peers) -> Losses:
    detector.zero_grad()
    losses = detector(data, **peers)
    losses.total().backward()
    return losses


def idle(detector: nn.Module) -> set[str]:
    """Trainable parameters without a gradient, or with one that is not finite."""
    named = detector.named_parameters()
    return {n for n, p in named if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())}


@pytest.fixture(scope="module")
def fiber() -> nn.Module:
    return build("fiber", *ALL, *TRAIN_ALL)


@pytest.fixture(scope="module")
def glip() -> nn.Module:
    return build("glip", *ALL, f"{FUSE}.USE_SHALLOW_ZERO_PADS", "True", *TRAIN_ALL)


@pytest.fixture(scope="module")
def aligned() -> nn.Module:
    return build("glip_a", *ALIGN, f"{FUSE}.USE_TOKEN_LOSS", "True", *TRAIN_ALL)


@pytest.mark.parametrize("system", ["fiber", "glip", "glip_a"])
def test_released_losses(system: str) -> None:
    losses = build(system)(batch(*BOXES[:2]))
    assert set(losses.terms) == RELEASED
    assert losses.weights["loss_reg"] == 2
    assert all(term.isfinite() and term > 0 and term.ndim == 0 for term in losses.terms.values())
    weighted = sum(losses.weights[name] * term for name, term in losses.terms.items())
    torch.testing.assert_close(losses.total(), weighted)


@pytest.mark.parametrize(("name", "key"), list(MORE.items()))
def test_a_loss_comes_with_its_key(name: str, key: str) -> None:
    detector = build("fiber", f"{FUSE}.{key}", "True")
    losses = detector(batch(*BOXES[:2]))
    assert set(losses.terms) == RELEASED | {name}
    assert losses.terms[name] > 0


def test_weights_are_those_of_the_config() -> None:
    keys = [f"{FUSE}.DOT_PRODUCT_TOKEN_LOSS_WEIGHT", "3.0", f"{FUSE}.MLM_LOSS_COEF", "0.5", *ALL]
    weights = build("fiber", *keys, "MODEL.ATSS.REG_LOSS_WEIGHT", "7.0").rpn.loss_evaluator.weights
    assert weights == dict.fromkeys(MORE, 1.0) | {
        "loss_reg": 7.0,
        "loss_centerness": 1.0,
        "loss_dot_product_token": 3.0,
        "mlm_loss": 0.5,
    }


@pytest.mark.parametrize("detector", ["fiber", "glip", "aligned"])
@pytest.mark.parametrize("boxes", [BOXES, BOXES[2:], (BOXES[2], BOXES[0])], ids=["some", "none", "first empty"])
def test_every_parameter_gets_a_gradient(detector: str, boxes: tuple, request: pytest.FixtureRequest) -> None:
    """Also in a batch without a box: what has no gradient at all would stop distributed training."""
    model = request.getfixturevalue(detector).train()
    data = batch(*boxes)
    try:
        losses = train(model, data)
    finally:
        model.eval()
    assert losses.total().isfinite()
    assert not idle(model)


def test_no_boxes_at_all(fiber: nn.Module) -> None:
    losses = train(fiber, batch([], []))
    for name in ("loss_reg", "loss_centerness", "loss_shallow_contrastive"):
        assert losses.terms[name] == 0
    assert losses.terms["loss_dot_product_token"] > 0
    assert losses.metrics["positive_anchors"] == 0


def test_a_picture_without_boxes_adds_background_only(fiber: nn.Module) -> None:
    alone, both = fiber(batch(BOXES[0])), fiber(batch(BOXES[0], []))
    for name in ("loss_reg", "loss_centerness"):
        torch.testing.assert_close(both.terms[name], alone.terms[name])
    assert both.terms["loss_dot_product_token"] > alone.terms["loss_dot_product_token"]
    assert both.metrics["positive_anchors"] == alone.metrics["positive_anchors"] > 0


def test_nothing_hidden_costs_nothing(fiber: nn.Module) -> None:
    data = batch(*BOXES[:2])
    data.word_labels = torch.full_like(data.word_labels, -100)
    losses = train(fiber, data)
    assert losses.terms["mlm_loss"] == 0
    assert losses.total().isfinite()
    assert not idle(fiber)


def test_saturated_classifier_is_not_nan() -> None:
    detector = build("fiber", f"{FUSE}.USE_CLASSIFICATION_LOSS", "True")
    nn.init.constant_(detector.rpn.head.cls_logits.bias, 1e4)
    assert train(detector, batch(*BOXES[:2])).total().isfinite()
    assert not detector.rpn.head.cls_logits.weight.grad.isnan().any()


def test_classifier_without_a_loss_is_frozen_and_not_asked() -> None:
    detector = build("fiber")
    nn.init.constant_(detector.rpn.head.cls_logits.bias, torch.inf)
    assert train(detector, batch(*BOXES[:2])).total().isfinite()
    assert not any(p.requires_grad for p in detector.rpn.head.cls_logits.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_under_autocast(fiber: nn.Module, dtype: torch.dtype) -> None:
    data = batch(*BOXES[:2])
    exact = fiber(data)
    with torch.autocast("cpu", dtype):
        losses = fiber(data)
    assert {term.dtype for term in losses.terms.values()} == {torch.float32}
    for name, term in losses.terms.items():
        torch.testing.assert_close(term, exact.terms[name], rtol=0.1, atol=0.02)


def test_padding_of_text_changes_nothing(fiber: nn.Module) -> None:
    short, padded = fiber(batch(*BOXES[:2], length=8)), fiber(batch(*BOXES[:2], length=20))
    for name, term in short.terms.items():
        torch.testing.assert_close(padded.terms[name], term, rtol=1e-4, atol=1e-6)


def test_last_place_of_a_full_text_means_no_object() -> None:
    """As released: where a text fills all its places, the last word is what anchors without an object say yes to."""
    data = batch(*BOXES[:2], length=6)
    free, full = (build("fiber", "MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN", n)(data) for n in ("7", "6"))
    assert full.terms["loss_dot_product_token"] > 2 * free.terms["loss_dot_product_token"]


class Meeting:
    """Stands in for several processes: they run one after the other, until all have said what the others need."""

    def __init__(self, size: int) -> None:
        self.said: list[list[Tensor]] = [[] for _ in range(size)]

    def peers(self, rank: int) -> Peers:
        self.said[rank], mine = [], self.said[rank]
        heard = [list(said) for said in self.said]
        heard[rank] = mine

        def others(value: Tensor) -> list[Tensor]:
            turn = len(self.said[rank])
            self.said[rank].append(value.detach())
            return [value if r == rank else (said[turn] if turn < len(said) else value) for r, said in enumerate(heard)]

        return Peers(lambda value: torch.stack(others(value)).mean(0), others, rank)


@pytest.mark.parametrize("detector", ["glip", "aligned"])
def test_two_processes_are_one_with_both_batches(detector: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(detector)
    whole = batch(*BOXES[:2])
    whole.word_labels[0] = -100  # all that is hidden is in one of the two
    parts = [cut(whole, index) for index in range(2)]
    meeting = Meeting(2)
    for _ in range(2):
        losses = [model(part, meeting.peers(rank)) for rank, part in enumerate(parts)]
    expected = model(whole)
    for name, term in expected.terms.items():
        mean = torch.stack([part.terms[name] for part in losses]).mean()
        torch.testing.assert_close(mean, term, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def cut(whole: Batch, index: int) -> Batch:
    """One picture of a batch."""
    rows = slice(index, index + 1)
    images = replace(whole.images, pixels=whole.images.pixels[rows], metas=whole.images.metas[rows])
    labels = {name: getattr(whole, name)[rows] for name in ("token_labels", "word_labels")}
    return Batch(images, whole.targets[rows], whole.text[index], **labels)


def test_negatives_fill_up_to_the_most_of_all_processes() -> None:
    peers = Peers(gather=lambda value: [value, torch.tensor([4, 3])])  # what the other process has
    (chosen,) = sample_anchors(MATCH[1:], ShallowSampling(), Random(0), peers)
    assert len(chosen) == 4
    assert MATCH[1, chosen].tolist() == [0, 1, -1, -1]


def test_words_of_the_same_class_in_another_text_are_right(fiber: nn.Module) -> None:
    """Without classes they are wrong, and the loss is another."""
    data = batch([BOXES[0][0]], [BOXES[0][0]])
    known = fiber(data).terms["loss_shallow_contrastive"]
    data.token_labels = None
    assert not torch.isclose(fiber(data).terms["loss_shallow_contrastive"], known)
    data.targets = [replace(own, token_labels=None) for own in data.targets]
    assert fiber(data).terms["loss_shallow_contrastive"].isfinite()


MATCH = torch.tensor([[-1, 0, 0, 1, -1, 2, -1, -1], [-1, -1, 0, -1, -1, -1, -1, 1]])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (ShallowSampling(padding="none"), [[1, 2, 3, 5], [2, 7]]),
        (ShallowSampling(padding="none", anchors="reference"), [[3, 5], [7]]),
    ],
)
def test_anchors_that_take_part(sampling: ShallowSampling, expected: list[list[int]]) -> None:
    assert [chosen.tolist() for chosen in sample_anchors(MATCH, sampling, Random(0))] == expected


@pytest.mark.parametrize("seed", range(5))
def test_sampled_anchors(seed: int) -> None:
    first, second = sample_anchors(MATCH, ShallowSampling(most=3), Random(seed))
    assert len(first) == len(set(first.tolist())) == 3
    assert set(first.tolist()) <= {1, 2, 3, 5}
    assert second[:2].tolist() == [2, 7]
    assert MATCH[1, second[2]] == -1
    again = sample_anchors(MATCH, ShallowSampling(most=3), Random(seed))
    assert torch.equal(again[0], first)


def test_contrastive_alignment_works_with_roberta() -> None:
    detector = build("fiber", *ALIGN, f"{FUSE}.USE_TOKEN_LOSS", "True", *TRAIN_ALL)
    losses = train(detector, batch(*BOXES[:2]))
    assert set(losses.terms) == {"loss_reg", "loss_centerness", "loss_token", "loss_contrastive_align"}
    assert not idle(detector)
    (found,) = detect(detector, pictures(1), text("abcd"))  # words are scored by their places
    assert set(found.labels.tolist()) == {3, 7}


def test_a_head_that_scores_no_words_trains_but_does_not_detect() -> None:
    detector = build("glip_a", *ALIGN)
    assert detector(batch(*BOXES[:2])).terms["loss_contrastive_align"] > 0
    with pytest.raises(ConfigError, match=r"scores no words: train it with .*USE_TOKEN_LOSS"):
        detect(detector, pictures(1), text("abcd"))


def test_checkpoint_of_all_parts(fiber: nn.Module, tmp_path: Path) -> None:
    names = set(fiber.state_dict())
    head = {"mlm_head.bias", "mlm_head.decoder.bias", "mlm_head.transform.LayerNorm.weight", "token_logits.weight"}
    assert {f"rpn.head.{name}" for name in head} <= names
    assert {f"rpn.loss_evaluator.shallow_{name}" for name in ("log_scale", "contrastive_projection_text.bias")} <= names
    file = save_weights(fiber.state_dict(), tmp_path / "weights.safetensors")
    other = build("fiber", *ALL)
    assert load_weights(other, file).fits
    for name, value in other.state_dict().items():
        assert torch.equal(value, fiber.state_dict()[name]), name


@pytest.mark.parametrize(
    ("system", "opts", "message"),
    [
        ("fiber", ALIGN[2:], f"{FUSE}.USE_DOT_PRODUCT_TOKEN_LOSS True .*: set it to False"),
        ("fiber", ALIGN[:2], rf"{FUSE}.USE_DOT_PRODUCT_TOKEN_LOSS False \(command line\) .*: set it to True"),
        ("glip_a", [*ALIGN, f"{FUSE}.JOINT_EMB_SIZE", "64"], f"{FUSE}.JOINT_EMB_SIZE 64 .*: set it to 32"),
    ],
)
def test_losses_that_do_not_go_together(system: str, opts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(system, *opts)


CHANGES: list[tuple[Callable[[Batch], Batch], str]] = [
    (lambda data: replace(data, text=None), "no text for 2 pictures"),
    (lambda data: replace(data, text=data.text[0]), "1 prompts for 2 pictures"),
    (lambda data: replace(data, word_labels=None), "a loss needs word_labels"),
    (lambda data: replace(data, targets=[replace(t, positive_map=None) for t in data.targets]), "needs positive_map"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_batch_without_what_a_loss_needs(fiber: nn.Module, change: Callable[[Batch], Batch], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fiber(change(batch(*BOXES[:2])))


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="no losses called loss_reh; there are loss_reg"):
        GroundingCriterion({"loss_reh": 1.0})
