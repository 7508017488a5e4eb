"""MDETR with narrow transformers: what it finds, its losses on odd batches, what its parts refuse."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
import torch
from torch import Tensor

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.layers.position import LearnedPosition, SinePosition
from maskrcnn_benchmark.modeling.assign.hungarian import HungarianMatcher
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.criterion.set import SetCriterion
from maskrcnn_benchmark.modeling.detectors.mdetr import Mdetr, detections, find
from maskrcnn_benchmark.modeling.detectors.mdetr_segm import MdetrSegm
from maskrcnn_benchmark.modeling.heads.query_decode import find_phrases, masks_on_disk
from maskrcnn_benchmark.modeling.interface import Batch, Peers
from maskrcnn_benchmark.structures import Detections, ImageBatch, ImageMeta, Prompt, Target, TextBatch
from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy, giou
from maskrcnn_benchmark.structures.prompt import OWN_WORDS

NARROW = {
    "MODEL.META_ARCHITECTURE": "MDETR",
    "MODEL.BACKBONE.CONV_BODY": "R-18-MDETR",
    "MODEL.LANGUAGE_BACKBONE.MODEL_TYPE": "roberta-base",
    "MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE": "roberta-base",
    "MODEL.LANGUAGE_BACKBONE.LANG_DIM": 16,
    "MODEL.LANGUAGE_BACKBONE.NUM_LAYERS": 1,
    "MODEL.LANGUAGE_BACKBONE.NUM_HEADS": 2,
    "MODEL.LANGUAGE_BACKBONE.INTERMEDIATE_SIZE": 16,
    "MODEL.LANGUAGE_BACKBONE.VOCAB_SIZE": 40,
    "MODEL.MDETR.HIDDEN_DIM": 128,
    "MODEL.MDETR.FFN_DIM": 32,
    "MODEL.MDETR.ENC_LAYERS": 1,
    "MODEL.MDETR.DEC_LAYERS": 2,
    "MODEL.MDETR.NUM_QUERIES": 7,
}
CAPTION = "a red dog and a cat"
SIZES = ((64, 96), (32, 64))


def build(**keys: object) -> Mdetr | MdetrSegm:
    """A narrow detector with fixed weights; keyword ``A__B`` is the key ``MODEL.A.B``."""
    changed = {f"MODEL.{key.replace('__', '.')}": value for key, value in keys.items()}
    torch.manual_seed(0)
    detector = build_detector(load_cfg(opts=[str(x) for pair in {**NARROW, **changed}.items() for x in pair]))
    assert isinstance(detector, (Mdetr, MdetrSegm))
    return detector


def pictures(sizes: Sequence[tuple[int, int]] = SIZES) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    metas = [ImageMeta(i, size, (2 * size[0], 3 * size[1]), f"{i}.jpg") for i, size in enumerate(sizes)]
    return ImageBatch.pad([torch.randn(3, *size, generator=generator) for size in sizes], metas, 0)


def text(count: int, length: int = 6, phrases: int = 0) -> TextBatch:
    """Prompts that differ in their first word; phrase ``i`` is token ``i``."""
    ids = torch.tensor([[0, 5 + i, 8, 9, 2] for i in range(count)])
    ids = torch.nn.functional.pad(ids, (0, length - 5), value=1)
    prompt = Prompt(CAPTION, (((2, 5),), ((6, 9),))[:phrases], (1, 2)[:phrases])
    tokens = torch.zeros(phrases, length, dtype=torch.bool)
    tokens[range(phrases), range(1, phrases + 1)] = True
    return TextBatch((prompt,) * count, ids, (ids != 1).long(), (tokens,) * count)


def targets(images: ImageBatch, counts: Sequence[int] = (2, 1), masks: bool = False) -> list[Target]:
    out = []
    for meta, count in zip(images.metas, counts, strict=True):
        boxes = torch.tensor([[8.0, 8.0, 40.0, 30.0], [20.0, 4.0, 60.0, 44.0]])[:count]
        rows = torch.zeros(count, 256)
        rows[range(count), range(1, count + 1)] = 0.99
        own = torch.zeros(count, *meta.size, dtype=torch.bool)
        own[:, 8:30, 8:40] = True
        labels = torch.ones(count, dtype=torch.int64)
        out.append(Target(boxes, labels, meta, positive_map=rows, masks=own if masks else None))
    return out


@torch.no_grad()
def detect(detector: Mdetr | MdetrSegm, images: ImageBatch, words: TextBatch) -> list[Detections]:
    return detector.detect(detector.encode_image(images), detector.encode_text(words))


def assert_same(found: Sequence[Detections], expected: Sequence[Detections], atol: float = 1e-4) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=atol)
        assert torch.equal(ours.labels, theirs.labels)


def test_a_caption_gives_a_box_per_query() -> None:
    found = detect(build(), pictures(), text(2))
    assert [len(one) for one in found] == [7, 7]
    assert found[0].labels.tolist() == [1] * 7
    assert found[0].name(0) == CAPTION
    assert found[0].boxes[:, 2].max() > 96  # pixels of the picture on disk, three times as wide


def test_phrases_give_a_box_per_phrase_and_query() -> None:
    found = detect(build(), pictures(), text(2, phrases=2))[0]
    assert sorted(found.labels.tolist()) == [1] * 7 + [2] * 7
    assert found.names == {1: "red", 2: "dog"}


def test_phrase_scores() -> None:
    logits = torch.full((2, 256), -20.0)
    logits[0, 3], logits[1, 4], logits[1, 5] = 5.0, 4.0, 4.0
    tokens = torch.zeros(3, 8, dtype=torch.bool)
    tokens[0, 3] = tokens[1, 4] = tokens[1, 5] = True  # the last phrase has no token
    found = find_phrases(logits, torch.full((2, 4), 0.5), ImageMeta(0, (4, 4), (10, 20)), tokens, (1, 2, 3))
    torch.testing.assert_close(found.scores.view(3, 2), torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]]))
    assert found.query.tolist() == [0, 1] * 3
    torch.testing.assert_close(found.boxes[0], torch.tensor([5.0, 2.5, 15.0, 7.5]))


def test_a_bare_caption_calls_boxes_by_their_words() -> None:
    words = ("a", "red", "dog", "and", "a", "cat")
    begins = [CAPTION.index(word, place) for word, place in zip(words, (0, 0, 0, 0, 11, 0), strict=True)]
    spans = [(begin, begin + len(word)) for begin, word in zip(begins, words, strict=True)]
    prompt = Prompt(CAPTION, (((0, len(CAPTION)),), *((span,) for span in spans)), (OWN_WORDS, *range(1, 7)))
    tokens = torch.eye(8, dtype=torch.bool)[1:7]
    logits = torch.full((4, 256), -9.0)
    logits[0, 5], logits[0, 6], logits[0, 255] = 4.0, 4.0, 3.0  # a cat
    logits[1, 1], logits[1, 2], logits[1, 3] = 8.0, 7.0, 8.0  # a red dog
    logits[2, 3], logits[2, 6], logits[2, 255] = 1.0, 0.5, 4.0
    logits[3, 1], logits[3, 2], logits[3, 3], logits[3, 255] = 5.0, 5.0, 4.8, 5.0
    meta = ImageMeta(0, (4, 4), (10, 20))
    found = detections(
        find(logits, torch.full((4, 4), 0.5), meta, prompt, torch.cat([tokens.any(0)[None], tokens])), meta, prompt
    )
    assert [found.name(row) for row in range(4)] == ["a red dog", "a cat", "a red dog", "dog … cat"]
    assert found.labels.tolist() == [1, 2, 1, 3]
    torch.testing.assert_close(found.scores[-1], 1 - logits[2].softmax(0)[-1])


@pytest.mark.parametrize("keys", [{}, {"META_ARCHITECTURE": "MDETR_SEGM", "MDETR__MASK_THRESH": 0.0}])
def test_one_prompt_serves_all_pictures(keys: dict[str, object]) -> None:
    detector = build(**keys)
    one, images = text(1, phrases=1), pictures()
    assert_same(detect(detector, images, one), detect(detector, images, one.select([0, 0])))
    with pytest.raises(ValueError, match="3 prompts for 2 pictures"):
        detect(detector, images, text(3))


def test_prompts_do_not_mix() -> None:
    detector, images, words = build(), pictures(), text(2)
    together = detect(detector, images, words)
    with torch.no_grad():
        state = detector.encode_image(images)
        for i in (0, 1):
            alone = detector.detect(state.select([i]), detector.encode_text(words.select([i])))
            assert_same(alone, together[i : i + 1])
    swapped = detect(detector, images, words.select([1, 0]))
    assert not torch.allclose(swapped[0].scores, together[0].scores, atol=1e-6)


def test_padding_of_text_changes_nothing() -> None:
    detector, images = build(), pictures()
    assert_same(detect(detector, images, text(2, length=12)), detect(detector, images, text(2, length=5)))


@torch.no_grad()
def test_padding_of_pictures_is_not_looked_at() -> None:
    detector = build(META_ARCHITECTURE="MDETR_SEGM", MDETR__MASK_THRESH=0.0)
    image, words = detector.encode_image(pictures()), detector.encode_text(text(2))
    before = detector.detect(image, words)
    padded = image.features.padding[:, None].expand_as(image.features.cells)
    assert padded.any()
    image.features.cells[padded] = 100.0
    assert_same(detector.detect(image, words), before)


@torch.no_grad()
def test_masks_of_kept_queries_are_those_of_all() -> None:
    detector = build(META_ARCHITECTURE="MDETR_SEGM", MDETR__MASK_THRESH=0.0, MDETR__NUM_QUERIES=40)
    assert isinstance(detector, MdetrSegm)
    detector.detr.class_embed.bias[-1] = 5.0
    images, words = pictures(), text(2)
    every = detect(detector, images, words)
    detector.threshold = float(every[0].scores.median())
    kept = detect(detector, images, words)
    for some, all_of_them, meta in zip(kept, every, images.metas, strict=True):
        expected = all_of_them[all_of_them.scores > detector.threshold]
        assert some.masks is not None
        assert expected.masks is not None
        assert 0 < len(some) == len(expected) < 40 or meta.image_id == 1
        assert some.masks.shape[1:] == meta.orig_size
        assert (some.masks != expected.masks).float().mean() < 1e-3
    detector.threshold = 1.0
    nothing = detect(detector, images, words)[0]
    assert nothing.masks is not None
    assert nothing.masks.shape == (0, 128, 288)


def test_masks_are_cut_from_the_padded_batch() -> None:
    logits = torch.full((1, 8, 8), -4.0)
    logits[:, :4, :4] = 4.0  # the upper left quarter of the batch: this whole picture
    meta = ImageMeta(0, (16, 16), (20, 10))
    assert masks_on_disk(logits, (32, 32), meta)[0, 3:15, 1:7].all()
    assert masks_on_disk(logits[:0], (32, 32), meta).shape == (0, 20, 10)


@pytest.mark.parametrize("counts", [(2, 1), (0, 2), (0, 0)])
@pytest.mark.parametrize("masks", [False, True])
def test_training(counts: tuple[int, int], masks: bool) -> None:
    """Losses are finite, and there is a gradient wherever something learns, also without any object."""
    detector = build(**({"META_ARCHITECTURE": "MDETR_SEGM"} if masks else {"MDETR__CONTRASTIVE": True})).train()
    images = pictures()
    losses = detector(Batch(images, targets(images, counts, masks), text(2)))
    wanted = {"loss_ce", "loss_bbox", "loss_giou"} | (
        {"loss_mask", "loss_dice"} if masks else {"loss_contrastive_align", "contrastive_loss"}
    )
    assert {name for name in losses.terms if not name.endswith("_0")} == wanted
    assert "loss_ce_0" in losses.terms
    assert "loss_mask_0" not in losses.terms
    assert all(value.isfinite() for value in losses.terms.values())
    if not any(counts):
        assert losses.terms["loss_bbox"] == losses.terms["loss_giou"] == 0
    losses.total().backward()
    without = {name for name, value in detector.named_parameters() if value.requires_grad and value.grad is None}
    pooler = {f"detr.transformer.text_encoder.pooler.dense.{part}" for part in ("weight", "bias")}
    assert without == (pooler if masks else set())
    assert all(value.grad.isfinite().all() for value in detector.parameters() if value.grad is not None)


def test_objects_are_counted_over_processes() -> None:
    detector, images = build(MDETR__AUX_LOSS=False), pictures()
    batch = Batch(images, targets(images), text(2))
    alone = detector(batch).terms
    shared = detector(batch, Peers(mean=lambda count: count * 2)).terms
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value / 2)


def test_under_autocast() -> None:
    detector, images = build(**{"META_ARCHITECTURE": "MDETR_SEGM"}), pictures()
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(Batch(images, targets(images, masks=True), text(2)))
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.terms.values())


def test_what_training_needs() -> None:
    images = pictures()
    detector = build(**{"META_ARCHITECTURE": "MDETR_SEGM"})
    with pytest.raises(ValueError, match="no text for 2 pictures"):
        detector(Batch(images, targets(images, masks=True)))
    with pytest.raises(DataError, match=r"0\.jpg: no masks for a picture of \(64, 96\)"):
        detector(Batch(images, targets(images), text(2)))
    wrong = targets(images, masks=True)
    wrong[1].masks = torch.zeros(1, 10, 10, dtype=torch.bool)
    with pytest.raises(DataError, match=r"1\.jpg: masks of \(10, 10\) pixels"):
        detector(Batch(images, wrong, text(2)))
    wrong[0].positive_map = None
    with pytest.raises(ValueError, match="picture 0 has no positive_map"):
        detector(Batch(images, wrong, text(2)))
    with pytest.raises(ValueError, match="no losses called loss_other"):
        SetCriterion({"loss_other": 1.0}, HungarianMatcher())


@pytest.mark.parametrize("dropout", [True, False])
def test_a_frozen_detector(dropout: bool) -> None:
    keys = {"META_ARCHITECTURE": "MDETR_SEGM", "MDETR__FROZEN_WEIGHTS": "x.pth", "MDETR__FROZEN_DROPOUT": dropout}
    detector = build(**keys).train()
    assert isinstance(detector, MdetrSegm)
    learns = {name.split(".")[0] for name, value in detector.named_parameters() if value.requires_grad}
    assert learns == {"bbox_attention", "mask_head"}
    assert detector.mask_head.training
    assert detector.detr.transformer.training is dropout


def brute_force(cost: Tensor) -> float:
    queries, objects = cost.shape
    return min(sum(float(cost[q, t]) for t, q in enumerate(order)) for order in permutations(range(queries), objects))


def test_matching_is_the_cheapest() -> None:
    torch.manual_seed(3)
    logits, boxes = torch.randn(2, 2, 5, 9), torch.rand(2, 2, 5, 4) * 0.4 + 0.3
    tokens, true, counts = (torch.rand(5, 9) > 0.6).float(), torch.rand(5, 4) * 0.4 + 0.3, [2, 3]
    for layer, pairs in enumerate(HungarianMatcher(1.0, 5.0, 2.0)(logits, boxes, tokens, true, counts)):
        assert sorted(pairs.target.tolist()) == [0, 1, 2, 3, 4]
        for i, objects in enumerate(torch.arange(5).split(counts)):
            cost = (
                5 * (boxes[layer, i][:, None] - true[objects]).abs().sum(-1)
                - logits[layer, i].softmax(-1) @ tokens[objects].t()
                - 2 * giou(cxcywh_to_xyxy(boxes[layer, i]), cxcywh_to_xyxy(true[objects]))
            )
            mine = pairs.picture == i
            found = cost[pairs.query[mine], pairs.target[mine] - objects[0]].sum().item()
            assert found == pytest.approx(brute_force(cost), abs=1e-5)


def test_matching_of_odd_batches() -> None:
    matcher, logits, boxes = HungarianMatcher(), torch.zeros(1, 1, 3, 9), torch.full((1, 1, 3, 4), 0.5)
    true = torch.full((5, 4), 0.5)
    (pairs,) = matcher(logits, boxes, torch.ones(5, 9), true, [5])
    assert len(pairs) == 3  # more objects than queries
    (pairs,) = matcher(logits, boxes, torch.ones(0, 9), true[:0], [0])
    assert len(pairs) == 0
    (pairs,) = matcher(logits * torch.nan, boxes, torch.ones(2, 9), true[:2], [2])
    assert len(pairs) == 2  # that the network has diverged is for the loss to tell
    true[0, 2:] = 0
    (pairs,) = matcher(logits, boxes * 0, torch.ones(2, 9), true[:2] * 0, [2])
    assert len(pairs) == 2


def test_sine_positions() -> None:
    """By the formula, place by place."""
    mask = torch.ones(1, 3, 4, dtype=torch.bool)
    mask[:, :2, :3] = False  # a picture of 2 x 3 cells
    found = SinePosition(8)(mask)[0]
    for channel in range(8):
        number, axis = channel % 4, channel // 4
        for y in range(2):
            for x in range(3):
                share = (y + 1) / (2 + 1e-6) if axis == 0 else (x + 1) / (3 + 1e-6)
                angle = torch.tensor(share * 2 * torch.pi / 10000 ** (2 * (number // 2) / 4))
                expected = angle.cos() if number % 2 else angle.sin()
                assert found[channel, y, x].item() == pytest.approx(expected.item(), abs=1e-5)


def test_learned_positions() -> None:
    position = LearnedPosition(8, places=5)
    found = position(torch.zeros(2, 3, 4, dtype=torch.bool))
    assert found.shape == (2, 8, 3, 4)
    assert torch.equal(found[1, :4, 2, 3], position.col_embed.weight[3])
    assert torch.equal(found[1, 4:, 2, 3], position.row_embed.weight[2])
    with pytest.raises(ConfigError, match="6 x 4 cells, but learnt positions end at 5"):
        position(torch.zeros(1, 6, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MDETR__NHEADS": 3}, r"MODEL.MDETR.HIDDEN_DIM 128 .* must be a multiple of 4 and of MODEL.MDETR.NHEADS 3"),
        ({"META_ARCHITECTURE": "MDETR_SEGM", "MDETR__NHEADS": 4}, "a mask head needs multiples of 128 and of 8"),
        ({"MDETR__POS_EMBED": "other"}, "MODEL.MDETR.POS_EMBED 'other' .* is not one of 'sine', 'learned'"),
        ({"BACKBONE__CONV_BODY": "R-50-FPN"}, "MDETR has R-18-MDETR, .* and timm_ with a name of timm's"),
        ({"MDETR__DILATION": True}, "MODEL.MDETR.DILATION True .*: R-18-MDETR has no blocks for it"),
    ],
)
def test_wrong_configs(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**keys)
