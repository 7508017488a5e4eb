"""MDETR against the numbers of its reference, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint.io import load_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.assign.hungarian import HungarianMatcher, Pairs
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.criterion.set import SetCriterion, contrastive_loss
from maskrcnn_benchmark.modeling.detectors.mdetr import Mdetr, detections
from maskrcnn_benchmark.modeling.detectors.mdetr_segm import MdetrSegm
from maskrcnn_benchmark.modeling.heads.outputs import QueryOutputs
from maskrcnn_benchmark.modeling.heads.query_decode import find_objects, find_phrases, masks_on_disk, object_scores
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.solver.ema import Ema
from maskrcnn_benchmark.structures import ImageMeta, Prompt
from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy, xyxy_to_xywh
from maskrcnn_benchmark.text.positive_map import positive_map, text_batch
from tests.golden.common import golden_cases, golden_root, load_case
from tests.golden.fiber_net import assert_statistics
from tests.golden.mdetr_net import Taps, case_detector, options, pictures, target, tokenizer, training_batch
from tests.golden.test_names import lists, read, shapes, without_memory

FULL_GRADIENTS, SMALL_GRADIENTS = 0.02, 1e-3  # fused attention rounds differently, and the filled nets amplify it
NOISE = "attention.self.key.bias"  # its gradient is zero in exact arithmetic


@pytest.mark.parametrize("path", golden_cases("mdetr", "*_fwd*"))
def test_forward(path: Path) -> None:
    case, expected = load_case(path)
    detector = case_detector(case)
    images = pictures([tuple(drawn["fill.image"]) for drawn in case["images"]])
    text = text_batch([Prompt(caption, (), ()) for caption in case["captions"]], tokenizer())
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(getattr(text, name), expected.get(name, getattr(text, name)))
    taps = Taps(detector, list(case["intermediates"]))
    with torch.no_grad():
        found = run(detector, images, text)
    check_stages(taps.close(), case)
    for name, value in found.items():
        if name in expected:
            kind = name.removeprefix("aux_")
            value = stored_part(name, value, expected[name])
            assert value.shape == expected[name].shape, name
            error = (value.double() - expected[name].double()).abs().max().item()
            assert error <= case["tolerances"].get(kind, 0), f"{name} is off by {error:.1e}"
    assert set(expected) <= {*found, "input_ids", "attention_mask"}


def run(detector: Mdetr | MdetrSegm, images: Any, text: Any) -> dict[str, Tensor]:
    """Outputs under the names of the cases."""
    core = detector.detr if isinstance(detector, MdetrSegm) else detector
    image, words = detector.encode_image(images), detector.encode_text(text)
    seen = core.look(image, words)
    outputs = core.predict(seen, words.features)
    found = {
        "pred_logits": outputs.logits[-1],
        "pred_boxes": outputs.boxes[-1],
        "aux_pred_logits": outputs.logits[:-1],
        "aux_pred_boxes": outputs.boxes[:-1],
        "img_memory": seen.memory.places.transpose(0, 1),
        "memory_mask": seen.memory.padding.long(),
    }
    if outputs.queries is not None and outputs.tokens is not None:
        found |= {"proj_queries": outputs.queries[-1], "proj_tokens": outputs.tokens}
    if isinstance(detector, MdetrSegm):
        batch, queries = outputs.logits.shape[1:3]
        picture = torch.arange(batch).repeat_interleave(queries)
        masks = detector.masks(image.features, seen, picture, torch.arange(queries).repeat(batch))
        found["pred_masks"] = masks.unflatten(0, (batch, queries))
    return found


def stored_part(name: str, value: Tensor, expected: Tensor) -> Tensor:
    """What a large case holds of an output: the first of the earlier layers, every so many channels of the memory."""
    if name.startswith("aux_"):
        return value[: len(expected)]
    return value[..., :: value.shape[-1] // expected.shape[-1]] if name == "img_memory" else value


def check_stages(found: dict[str, Tensor], case: dict[str, Any]) -> None:
    """Statistics of the stages; of position encodings those of the last level."""
    listed = [name for name in case["intermediates"] if name.rstrip("'").endswith("backbone.1")]
    finer = sorted(listed, key=len)[:-1]
    for name, expected in case["intermediates"].items():
        if name in finer:
            continue
        value = found[name]
        if name == "bbox_attention":
            batch, queries, heads, height, width = expected["shape"]
            value = value.reshape(batch, queries, heads, height, width)
        if name == "mask_head":
            value = value[:, None]
        spread = max(1.0, expected["std"])
        assert_statistics(name, value, expected, 1e-3 * spread)
    if missing := set(case["intermediates"]) - set(found) - set(finer):
        raise AssertionError(f"no stage called {', '.join(sorted(missing))}")


def criterion_of(case: dict[str, Any]) -> SetCriterion:
    losses = {"labels": ("loss_ce",), "boxes": ("loss_bbox", "loss_giou"), "masks": ("loss_mask", "loss_dice")}
    losses["contrastive_align"] = ("loss_contrastive_align",)
    names = [name for kind in case["losses"] for name in losses.get(kind, ())]
    return SetCriterion(
        {name: float(case["weights"][name]) for name in names},
        HungarianMatcher(*case["matcher costs (class, L1, giou)"]),
        case["eos_coef"],
        case["temperature_NCE"],
    )


def own_pairs(pairs: Pairs, counts: Sequence[int]) -> list[list[list[int]]]:
    """Queries and objects of each picture, objects numbered within it."""
    out = []
    for i in range(len(counts)):
        mine = pairs.picture == i
        out.append([pairs.query[mine].tolist(), (pairs.target[mine] - sum(counts[:i])).tolist()])
    return out


@pytest.mark.parametrize("path", golden_cases("mdetr", "criterion_*"))
def test_criterion(path: Path) -> None:
    case, t = load_case(path)
    count = len(case["captions"])
    aux = sorted({name.split(".")[0] for name in t if name.startswith("aux")}, key=lambda name: int(name[3:]))
    leaves = {name: value.requires_grad_() for name, value in t.items() if name.split(".")[-1][:4] in ("pred", "proj")}

    def stacked(name: str) -> Tensor:
        return torch.stack([leaves[f"{layer}{name}"] for layer in (*(f"{layer}." for layer in aux), "")])

    aligned = "contrastive_align" in case["losses"]
    outputs = QueryOutputs(
        stacked("pred_logits"),
        stacked("pred_boxes"),
        stacked("proj_queries") if aligned else None,
        leaves["proj_tokens"] if aligned else None,
    )
    targets = []
    for i, (caption, spans) in enumerate(zip(case["captions"], case["tokens_positive"], strict=True)):
        masks = t.get(f"target{i}.masks")
        size = (1, 1) if masks is None else (masks.shape[1], masks.shape[2])
        boxes = cxcywh_to_xyxy(t[f"target{i}.boxes"]) * torch.tensor([size[1], size[0]] * 2)
        given = None if masks is None else masks.bool()
        targets.append(target(ImageMeta(i, size, size), caption, spans, boxes, given))
    rows = torch.cat([one.positive_map for one in targets if one.positive_map is not None])
    torch.testing.assert_close(rows, t["positive_map_dataset"])
    assert torch.equal((rows > 0).float(), t["positive_map_collated"])

    criterion = criterion_of(case)
    pairs = criterion.match(outputs, targets)
    counts = [len(one) for one in targets]
    assert own_pairs(pairs[-1], counts) == [t[f"match{i}"].tolist() for i in range(count)]
    masks = leaves["pred_masks"][pairs[-1].picture, pairs[-1].query] if "masks" in case["losses"] else None
    losses = criterion(outputs, targets, pairs, masks)
    found = {**losses.terms, **losses.metrics}
    assert set(found) == set(case["loss_values"])
    for name, value in case["loss_values"].items():
        assert found[name].item() == pytest.approx(value, abs=case["tolerances"]["loss"], rel=1e-5), name
    total = losses.total()
    assert total.item() == pytest.approx(case["total"], rel=1e-5, abs=1e-4)
    total.backward()
    for name, value in t.items():
        if name.startswith("grad."):
            gradient = leaves[name.removeprefix("grad.")].grad
            assert gradient is not None, name
            step = [
                slice(None, None, -(-mine // theirs)) for mine, theirs in zip(gradient.shape, value.shape, strict=True)
            ]
            error = (gradient[tuple(step)] - value).abs().max().item()
            assert error <= case["tolerances"]["grad"], f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("path", golden_cases("mdetr", "contrastive_criterion*"))
def test_contrastive_loss(path: Path) -> None:
    case, t = load_case(path)
    assert contrastive_loss(t["image"], t["text"], 0.07).item() == pytest.approx(case["loss"], rel=1e-5)


@pytest.mark.parametrize("path", golden_cases("mdetr", "positive_map*"))
def test_positive_map(path: Path) -> None:
    for item in load_case(path)[0]["items"]:
        text = tokenizer().encode([item["caption"]])
        assert text.input_ids[0].tolist() == item["input_ids"]
        assert [text.char_to_token(0, i) for i in range(len(item["char_to_token"]))] == item["char_to_token"]
        spans = [[(begin, end) for begin, end in box] for box in item["tokens_positive"]]
        for row, expected in zip(positive_map(text, 0, spans), item["rows"], strict=True):
            assert row.nonzero().flatten().tolist() == expected["tokens"]
            assert row.amax().item() == pytest.approx(expected["value"], rel=1e-6)


@pytest.mark.parametrize("path", golden_cases("mdetr", "post_flickr*"))
def test_boxes_on_disk(path: Path) -> None:
    case, t = load_case(path)
    rows = t["positive_map_eval"].split(case["items_per_batch_element (nb_eval)"])
    for i, size in enumerate(case["orig_sizes (h,w)"]):
        meta = ImageMeta(i, (1, 1), tuple(size))
        logits, boxes = t["pred_logits"][i], t["pred_boxes"][i]
        found = find_objects(logits, boxes, meta)
        torch.testing.assert_close(found.boxes, t[f"bbox{i}.boxes"], rtol=0, atol=case["tolerances"]["boxes"])
        torch.testing.assert_close(found.scores, t[f"bbox{i}.scores"], rtol=0, atol=case["tolerances"]["scores"])
        assert torch.equal(found.labels, t[f"bbox{i}.labels"])
        if len(rows[i]):
            phrases = tuple(range(1, len(rows[i]) + 1))
            answers = find_phrases(logits, boxes, meta, rows[i] > 1e-6, phrases)
            found_boxes = detections(answers, meta, Prompt("", ((),) * len(phrases), phrases))
            for phrase in phrases:
                ranked = found_boxes.boxes[found_boxes.labels == phrase]
                torch.testing.assert_close(ranked, t[f"flickr{i}"][phrase - 1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("path", golden_cases("mdetr", "post_segm*"))
def test_masks_on_disk(path: Path) -> None:
    case, t = load_case(path)
    sizes = case.get("sizes after transforms (before padding)") or case["sizes"]
    padded = (max(size[0] for size in sizes), max(size[1] for size in sizes))
    for i, (size, orig) in enumerate(zip(sizes, case["orig_sizes"], strict=True)):
        meta = ImageMeta(i, tuple(size), tuple(orig))
        logits = t["pred_logits"][i]
        masks = masks_on_disk(t["pred_masks"][i], padded, meta)
        assert (masks != t[f"masks{i}"][:, 0].bool()).float().mean() <= 0.001
        kept = object_scores(logits) > case["score_thresh"]
        assert int(kept.sum()) == case["kept boxes per image"][i]
        union = masks[kept].any(0)
        assert (union != t[f"phrasecut{i}.mask"].bool()).float().mean() <= 0.001
        if kept.any():
            boxes = xyxy_to_xywh(find_objects(logits[kept], t["pred_boxes"][i][kept], meta).boxes)
            torch.testing.assert_close(boxes, t[f"phrasecut{i}.boxes"], rtol=0, atol=1e-3)


TRAINING = golden_cases("mdetr", "*_train_*", but=["*transform*"])


@pytest.mark.parametrize("path", TRAINING)
def test_training(path: Path) -> None:
    """Losses, matching, gradients and weights over some steps."""
    case, _ = load_case(path)
    hyper = case["hyper_parameters"]
    detector = case_detector(case)
    groups = grouped(detector)
    assert [len(group) for group in groups] == case["param_group_sizes"]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], weight_decay=hyper["weight_decay"])
    average = Ema(detector, hyper["ema_decay"])
    batches = [batch_of(one, isinstance(detector, MdetrSegm)) for one in case["batches"]]
    small = case["text_config_overrides"]
    for number, step in enumerate(case["steps"]):
        batch = batches[number % len(batches)]
        if number == 0:
            assert matched(detector, batch) == step["match"]
        losses = detector(batch)
        assert losses.weights == case["weights"]
        found = {**losses.terms, **losses.metrics}
        assert set(found) == set(step["loss_values"])
        for name, value in step["loss_values"].items():
            allowed = 1e-3 if number == 0 else 5e-3
            assert found[name].item() == pytest.approx(value, rel=allowed, abs=1e-5), f"step {number}: {name}"
        total = losses.total()
        assert total.item() == pytest.approx(step["weighted_total"], rel=1e-3 if number == 0 else 5e-3)
        for group, rate in zip(optimizer.param_groups, step["lr_used"], strict=True):
            group["lr"] = rate
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), hyper["clip_max_norm"]).item()
        allowed = SMALL_GRADIENTS if small else FULL_GRADIENTS
        if number == 0:
            assert norm == pytest.approx(step["grad_norm_before_clip"], rel=allowed)
            check_gradients(detector, case, allowed)
        optimizer.step()
        average.update()
    state = detector.state_dict()
    for name, expected in case["after"].items():
        assert state[name].double().mean().item() == pytest.approx(expected["model"]["mean"], abs=1e-5), name
        assert average.average[name].double().mean().item() == pytest.approx(expected["ema"]["mean"], abs=1e-5), name


def grouped(detector: nn.Module) -> list[list[nn.Parameter]]:
    """Trained parameters: others, backbone, text encoder."""
    groups: list[list[nn.Parameter]] = [[], [], []]
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            groups[1 if "backbone" in name else 2 if "text_encoder" in name else 0].append(parameter)
    return groups


def batch_of(drawn: dict[str, Any], masks: bool) -> Batch:
    seed = next(value for key, value in drawn.items() if key.startswith("seed"))
    return training_batch(seed, drawn["sizes"], drawn["captions"], drawn["tokens_positive"], masks)


@torch.no_grad()
def matched(detector: Mdetr | MdetrSegm, batch: Batch) -> list[list[list[int]]]:
    core = detector.detr if isinstance(detector, MdetrSegm) else detector
    assert batch.text is not None
    text = core.encode_text(batch.text)
    outputs = core.predict(core.look(core.encode_image(batch.images), text), text.features)
    return own_pairs(core.criterion.match(outputs, batch.targets)[-1], [len(one) for one in batch.targets])


def check_gradients(detector: nn.Module, case: dict[str, Any], allowed: float) -> None:
    """Norms of gradients after clipping."""
    parameters = dict(detector.named_parameters())
    for name, value in case["first_step_gradient_norms_after_clipping"].items():
        if NOISE not in name:
            gradient = parameters[name].grad
            assert gradient is not None, name
            assert gradient.norm().item() == pytest.approx(value, rel=allowed, abs=1e-7), name
    without = {name for name, value in parameters.items() if value.requires_grad and value.grad is None}
    assert without == set(case["trainable_without_gradient"])


def list_flags(stem: str) -> list[str]:
    """Flags of the model that a released name list is called after: ``mdetr_resnet101_phrasecut``."""
    backbone = stem.removeprefix("mdetr_").removesuffix("_phrasecut")
    masks = ["--mask_model", "smallconv", "--no_contrastive_align_loss"] if stem.endswith("_phrasecut") else []
    return ["--backbone", backbone, *masks]


@pytest.mark.parametrize("path", lists("mdetr"))
def test_name_lists_load(path: Path, tmp_path: Path) -> None:
    """Every released list of names and shapes is that of the network of its flags, no more and no less."""
    keys = read(path)
    with torch.device("meta"):
        detector = build_detector(load_cfg(opts=options(list_flags(path.stem))))
    torch.save({"model": without_memory(keys)}, tmp_path / "weights.pth")
    report = load_weights(detector, tmp_path / "weights.pth")
    assert len(report.loaded) == len(keys) == len(detector.state_dict())
    root = golden_root()
    assert root is not None
    counts = json.loads((root / "mdetr" / "keys" / "_counts.json").read_text()).get(path.stem)
    if counts:
        parameters = list(detector.parameters())
        assert sum(one.numel() for one in parameters) == counts["parameters"]
        assert sum(one.numel() for one in parameters if one.requires_grad) == counts["trainable"]
        assert sum(not one.requires_grad for one in parameters) == counts["frozen_tensors"]
        groups = [[len(group), sum(one.numel() for one in group)] for group in grouped(detector)]
        assert groups == list(counts["groups (tensors, elements)"].values())


ENB3, ENB5 = "mdetr_timm_tf_efficientnet_b3_ns", "mdetr_timm_tf_efficientnet_b5_ns"
CONFIGS = {
    "mdetr_resnet101": ("pretrain_r101", "phrasecut_detection_r101"),
    "mdetr_resnet101_phrasecut": ("phrasecut_masks_r101",),
    ENB3: ("pretrain_enb3", "phrasecut_detection_enb3"),
    f"{ENB3}_phrasecut": ("phrasecut_masks_enb3",),
    ENB5: ("pretrain_enb5",),
}
"""Released name list -> the configs of its network."""


@pytest.mark.parametrize("path", lists("mdetr"))
def test_configs_are_of_the_released_networks(path: Path) -> None:
    for name in CONFIGS.get(path.stem, ()):
        with torch.device("meta"):
            state = build_detector(load_cfg(f"configs/mdetr/{name}.yaml")).state_dict()
        assert {key: list(value.shape) for key, value in state.items()} == shapes(read(path)), name
