"""Losses of FIBER and GLIP, term by term, and the gradients of every parameter: golden cases *_loss*, op_losses*.

Which losses a case has, and whether words are hidden in it, is read from its config; the rest from its content.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.layers.losses import class_focal_loss, sigmoid_focal_loss, softmax_focal_loss
from maskrcnn_benchmark.modeling.heads.outputs import TrainingOutputs
from maskrcnn_benchmark.modeling.interface import Batch, Losses
from maskrcnn_benchmark.structures import ImageBatch, Prompt, Target, TextBatch
from maskrcnn_benchmark.text.masking import hide_words
from maskrcnn_benchmark.text.positive_map import entity_tokens, greenlight_map, od_label_map
from maskrcnn_benchmark.text.tokenizer import TokenizedText, Tokenizer, load_tokenizer
from tests.golden.common import golden_cases, load_case, tokenizer_dir
from tests.golden.fiber_net import PADDED, Case, assert_statistics, case_config, case_detector, case_images

Tensors = dict[str, Tensor]
REFERENCE = ["MODEL.DYHEAD.FUSE_CONFIG.SHALLOW_ANCHORS", "reference"]  # what the recorded numbers were made with


@pytest.mark.parametrize("path", golden_cases("fiber", "*_loss", "*_loss_*", but=("op_*",)))
def test_losses(path: Path, tmp_path: Path) -> None:
    case, tensors = load_case(path)
    case["extra_opts"] = [*case.get("extra_opts", ()), *REFERENCE]
    cfg = case_config(case)
    detector = case_detector(case, cfg, tmp_path)
    batch = case_batch(case, cfg, tensors)
    check_assignment(case, detector, batch, tensors)
    outputs: list[TrainingOutputs] = []
    hook = detector.rpn.loss_evaluator.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0]))
    try:
        detector.zero_grad()
        losses = detector(batch)
        losses.total().backward()
    finally:
        hook.remove()
    compare_losses(case, losses, tensors)
    compare_head(case, cfg, detector, outputs[0], batch)
    compare_gradients(case, detector)


def part(case: Case, name: str) -> list:
    """An entry whose name may go on with a remark in parentheses."""
    return next(value for key, value in case.items() if key == name or key.startswith(f"{name} ("))


def case_batch(case: Case, cfg: Cfg, tensors: Tensors) -> Batch:
    images = case_images(case, cfg)
    tokenizer = load_tokenizer(tokenizer_dir(cfg.MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE))
    fuse = cfg.MODEL.DYHEAD.FUSE_CONFIG
    text = tokenizer.encode(case["captions"], pad_to=PADDED if fuse.USE_DOT_PRODUCT_TOKEN_LOSS else None)
    spans = [[[(b, e) for b, e in box] for box in boxes] for boxes in part(case, "tokens_positive")]
    maps = [entity_tokens(text, row, boxes, PADDED).float() for row, boxes in enumerate(spans)]
    assert torch.equal(torch.cat(maps), tensors["positive_map"])
    prompts = tuple(
        Prompt(caption, tuple(map(tuple, boxes)), tuple(range(1, len(boxes) + 1)))
        for caption, boxes in zip(case["captions"], spans, strict=True)
    )
    rows = tuple(entity_tokens(text, row, boxes) for row, boxes in enumerate(spans))
    batch = Batch(
        images, case_targets(case, images, maps), TextBatch(prompts, text.input_ids, text.attention_mask, rows)
    )
    seed = case.get("python_random_seed_just_before_forward")
    batch.rng = None if seed is None else Random(seed)
    if "label_to_positions" in case:
        batch.token_labels = torch.stack(
            [
                od_label_map(text, row, {int(label): tuple(span) for label, span in labels.items()})
                for row, labels in enumerate(case["label_to_positions"])
            ]
        )
    if fuse.MLM_LOSS:
        only_positives = fuse.MLM_LOSS_FOR_ONLY_POSITIVES
        hide(batch, case_maskable(text, spans, tensors) if only_positives else None, tokenizer)
    if "input_ids" in tensors:
        assert torch.equal(batch.text.input_ids, tensors["input_ids"])
    return batch


def case_targets(case: Case, images: ImageBatch, maps: list[Tensor]) -> list[Target]:
    od_labels = case.get("original_od_label")
    return [
        Target(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            meta,
            positive_map=positive_map,
            token_labels=None if od_labels is None else torch.tensor(od_labels[i], dtype=torch.int64),
        )
        for i, (boxes, labels, meta, positive_map) in enumerate(
            zip(part(case, "boxes"), case["labels"], images.metas, maps, strict=True)
        )
    ]


def case_maskable(text: TokenizedText, spans: list, tensors: Tensors) -> Tensor:
    maskable = torch.stack(
        [greenlight_map(text, row, [span for box in boxes for span in box]) for row, boxes in enumerate(spans)]
    )
    assert torch.equal(maskable, tensors["greenlight_map"])
    return maskable


def hide(batch: Batch, maskable: Tensor | None, tokenizer: Tokenizer) -> None:
    text = batch.text
    ids, batch.word_labels = hide_words(
        text.input_ids, batch.rng, tokenizer.mask_id, tokenizer.pad_id, tokenizer.vocab_size, maskable
    )
    batch.text = TextBatch(text.prompts, ids, text.attention_mask, text.entity_tokens)


def check_assignment(case: Case, detector: nn.Module, batch: Batch, tensors: Tensors) -> None:
    """Which anchors learn which object, and what of it."""
    size = batch.images.pixels.shape[-2:]
    strides = detector.rpn.anchor_generator.strides
    anchors = detector.rpn.anchor_generator([(-(-size[0] // s), -(-size[1] // s)) for s in strides])
    criterion = detector.rpn.loss_evaluator
    match = criterion.match(anchors, batch.targets)
    assert (match >= 0).sum(1).tolist() == case["num_positive_anchors"]
    for i, (row, target) in enumerate(zip(match, batch.targets, strict=True)):
        where = row >= 0
        labels = torch.cat((target.labels, torch.zeros(1, dtype=torch.int64)))[row]
        assert torch.equal(labels, tensors[f"target{i}.cls_labels"].long())
        if where.any():
            deltas = criterion.coder.encode(target.boxes[row[where]], torch.cat(anchors)[where])
            torch.testing.assert_close(deltas, tensors[f"target{i}.pos_reg_targets"], atol=1e-4, rtol=0)
        if f"target{i}.pos_index" in tensors:
            assert torch.equal(where.nonzero().flatten(), tensors[f"target{i}.pos_index"])
        if f"target{i}.pos_token_labels" in tensors:
            assert torch.equal(target.positive_map[row[where]], tensors[f"target{i}.pos_token_labels"])


def compare_losses(case: Case, losses: Losses, tensors: Tensors) -> None:
    expected = {name: tensors.get(f"loss.{name}", torch.tensor(value)) for name, value in case["losses"].items()}
    assert set(losses.terms) <= set(expected)
    for name, value in expected.items():
        if name not in losses.terms:
            assert value.item() == 0, f"{name} is {value.item()} in the case, and is not computed here"
            continue
        ours = losses.weights[name] * losses.terms[name]
        torch.testing.assert_close(ours, value.reshape(()), rtol=1e-4, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def compare_head(case: Case, cfg: Cfg, detector: nn.Module, outputs: TrainingOutputs, batch: Batch) -> None:
    head = detector.rpn.head
    tolerance = 5e-4 if cfg.MODEL.DYHEAD.FUSE_CONFIG.EARLY_FUSE_ON else 2e-4
    with torch.inference_mode():
        levels, text = head.run_tower(*tower_inputs(detector, batch))
        found = {
            "cls_logits": head.class_logits(levels),
            "bbox_reg": outputs.box_deltas,
            "centerness": outputs.centerness,
            "contrastive_logits": outputs.align_logits,
        }
        if outputs.place_logits is not None:
            shapes = [x.shape[-2:] for x in levels]
            found["token_logits"] = [
                x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(outputs.place_logits, shapes, strict=True)
            ]
        if head.dot_product_projection_text is not None:
            found |= {"dot_product_logits": outputs.token_logits, "proj_tokens": F.normalize(text, dim=-1)}
        else:
            words = head.contrastive_align_projection_text(detector.rpn.resizer(text))
            found["proj_tokens"] = F.normalize(words, dim=-1)
        if head.mlm_head is not None:
            found["mlm_logits"] = head.mlm_head(text)
        for key, expected in case["head_stats"].items():
            name, _, level = key.removeprefix("head.").partition(".p")
            assert name in found, f"{key} is something that this test does not know"
            assert_statistics(key, found[name][int(level) - 3] if level else found[name], expected, tolerance)


def tower_inputs(detector: nn.Module, batch: Batch) -> tuple:
    return detector.fuse(detector.encode_image(batch.images), detector.encode_text(batch.text))


def compare_gradients(case: Case, detector: nn.Module) -> None:
    """Norms, of every parameter that the case names; those of attention's key biases are rounding noise around 0."""
    expected = case.get("grad_norms", {})
    ours = {n: 0.0 if p.grad is None else p.grad.double().norm().item() for n, p in detector.named_parameters()}
    wrong = [
        f"{name}: {ours.get(name)} instead of {norm}"
        for name, norm in expected.items()
        if name not in ours or abs(ours[name] - norm) > 2e-3 * norm + 1e-6
    ]
    assert not wrong, f"{len(wrong)} of {len(expected)} gradients differ, such as {'; '.join(wrong[:5])}"
    if expected:
        trained = {name for name, p in detector.named_parameters() if p.requires_grad}
        odd = trained ^ set(expected)  # the fixed classifier: frozen, or trained towards nothing, by other rules there
        assert all(name.startswith("rpn.head.cls_logits.") for name in odd), sorted(odd)


@pytest.mark.parametrize("path", golden_cases("fiber", "op_losses*"))
def test_loss_functions(path: Path) -> None:
    case, expected = load_case(path)

    def draw(seed: int, *shape: int) -> Tensor:
        return torch.from_numpy(np.random.RandomState(seed + case["S"]).standard_normal(shape)).float()

    logits, targets = draw(110, 2, 30, 256) * 2 - 2, expected["token_targets"].float()
    mask = torch.zeros(2, 256)
    mask[0, :12] = mask[1, :40] = 1
    found = {
        "token_focal.binary": sigmoid_focal_loss(logits, targets) * mask[:, None],
        "token_focal.binaryv2": sigmoid_focal_loss(logits, targets),
        "token_focal.softmax": softmax_focal_loss(logits, targets, mask),
        "sigmoid_focal": class_focal_loss(draw(112, 60, 80) * 2 - 3, expected["sigmoid_focal_labels"]),
    }
    for name in expected.keys() - {"token_targets", "sigmoid_focal_labels"}:
        torch.testing.assert_close(found[name].sum(), expected[name].squeeze(), rtol=1e-5, atol=0, msg=name)
