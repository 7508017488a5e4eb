"""The networks of DECOLA and of its Deformable DETR baselines against what the original computed, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from maskrcnn_benchmark.layers.ops import available_backends, ms_deform_attn, use_backend
from maskrcnn_benchmark.layers.position import SinePosition
from maskrcnn_benchmark.modeling.detectors.decola import Decola, groups
from maskrcnn_benchmark.modeling.detectors.deformable_detr import QueryDetector
from maskrcnn_benchmark.modeling.heads.zero_shot import (
    ColumnClassifier,
    PromptClassifier,
    RegionClassifier,
    ZeroShotClassifier,
)
from maskrcnn_benchmark.modeling.interface import ImageState
from maskrcnn_benchmark.modeling.transformer.deformable import (
    DecoderLayer,
    DeformableAttention,
    Memory,
    Queries,
    box_waves,
    encoder_references,
    first_boxes,
    valid_ratios,
)
from maskrcnn_benchmark.structures import Detections, TextBatch
from tests.golden.common import fill, golden_cases, load_case
from tests.golden.decola_net import Case, Taps, case_detector, pictures

LOOSE = 2e-3  # of the statistics of a stage
FAR = 1e8  # infinite boxes are noted as 1e9


def filled(module: nn.Module, seed: int) -> nn.Module:
    """A part alone, by the names that it has alone."""
    fill.fill_(module, seed)
    return module.eval()


def shapes_of(case: Case) -> tuple[tuple[int, int], ...]:
    return tuple((height, width) for height, width in case["spatial_shapes_HW"])


@pytest.mark.parametrize("path", golden_cases("decola", "msda_core*"))
def test_deformable_attention(path: Path) -> None:
    """By every backend there is."""
    case, tensors = load_case(path)
    shapes = torch.tensor(case["spatial_shapes_HW"])
    cells = shapes.prod(1)
    names = ("value", "sampling_locations", "attention_weights")
    for name in available_backends("ms_deform_attn"):
        value, locations, weights = (tensors[key].clone().requires_grad_() for key in names)
        with use_backend(name):
            out = ms_deform_attn(value, shapes, cells.cumsum(0) - cells, locations, weights)
            out.backward(tensors["grad_output"])
        assert_close(out, tensors["output"], rtol=0, atol=case["tolerance"])
        for key, given in zip(names, (value, locations, weights), strict=True):
            assert_close(given.grad, tensors[f"grad_{key}"], rtol=0, atol=case["tolerance"])


@torch.no_grad()
@pytest.mark.parametrize("path", golden_cases("decola", "msda_module*"))
def test_deformable_attention_module(path: Path) -> None:
    case, tensors = load_case(path)
    shapes, width = shapes_of(case), tensors["query"].shape[-1]
    module = DeformableAttention(width, heads=8, levels=len(shapes))
    assert sorted(module.state_dict()) == sorted(case["param_names"])
    filled(module, case["seed"])
    padding = tensors["padding_mask"].bool()
    values = module.values(tensors["input"], padding)
    read = module(tensors["query"], tensors["ref_points_2"], values, shapes)
    assert_close(read, tensors["out_ref2_masked"], rtol=0, atol=case["tolerance"])
    values = module.values(tensors["input"], torch.zeros_like(padding))
    read = module(tensors["query"], tensors["ref_points_4"], values, shapes)
    assert_close(read, tensors["out_ref4"], rtol=0, atol=case["tolerance"])


@torch.no_grad()
@pytest.mark.parametrize("path", golden_cases("decola", "positional_and_proposals*"))
def test_positions_and_first_boxes(path: Path) -> None:
    case, tensors = load_case(path)
    bound: dict[str, Any] = {"rtol": 0, "atol": case["tolerance"]}
    paddings = [value.bool() for name, value in tensors.items() if name.startswith("mask_")]
    paddings.sort(key=lambda x: -x[0].numel())
    shapes = tuple((x.shape[1], x.shape[2]) for x in paddings)
    cells = tensors["memory"]
    padding = torch.cat([x.flatten(1) for x in paddings], dim=1)
    memory = Memory(cells, padding, valid_ratios(paddings, cells.dtype), shapes)
    place = SinePosition(tensors["pos_embed"].shape[1], back=0.5)(paddings[0])
    inside = ~paddings[0][:, None].expand_as(place)
    assert_close(place[inside], tensors["pos_embed"][inside], **bound)
    waves = box_waves(tensors["proposal_unact"].sigmoid(), tensors["proposal_pos_embed"].shape[-1] // 4)
    assert_close(waves, tensors["proposal_pos_embed"], **bound)
    assert_close(memory.valid, tensors["valid_ratios_xy"], **bound)
    assert_close(encoder_references(memory), tensors["encoder_reference_points"], **bound)
    boxes, usable = first_boxes(memory)
    assert_close(boxes.clamp(max=1e9), tensors["output_proposals_unact"], **bound)
    features = nn.functional.layer_norm(cells.masked_fill(~usable[..., None], 0.0), cells.shape[-1:])
    assert_close(features, tensors["output_memory_norm_identity"], **bound)


@torch.no_grad()
@pytest.mark.parametrize("path", golden_cases("decola", "zero_shot_classifiers*"))
def test_zero_shot_classifiers(path: Path) -> None:
    case, tensors = load_case(path)
    seed, x, bound = case["seed"], tensors["x"], {"rtol": 0.0, "atol": case["tolerance"]}
    classes = tensors["second_stage_multi"].shape[-1]
    rows, last = (
        torch.from_numpy(fill.values(f"zs_{name}", (n, 512), seed)) for name, n in (("table", classes), ("object", 1))
    )

    def make(kind: type[ZeroShotClassifier], table: Tensor, **options: Any) -> Any:
        classifier = kind(table, x.shape[-1], **options)
        for name, value in classifier.named_parameters():
            value.copy_(torch.from_numpy(fill.values(name, tuple(value.shape), seed)))
        return classifier

    ours = make(PromptClassifier, torch.cat((rows, last)), bias=0.0)
    asked = tensors["first_stage_conditioned_inds"][0]
    assert asked.tolist() == sorted({label for labels in case["labels_per_image"] for label in labels})
    assert_close(ours(x, ours.rows[asked]), tensors["first_stage_conditioned"], **bound)
    assert_close(ours(x, ours.object_row), tensors["first_stage_object"], **bound)
    assert_close(ours(x, ours.object_row), tensors["first_stage_no_gt_fallback"], **bound)
    assert_close(ours(x), tensors["second_stage_multi"], **bound)
    for picture, owner, expected in zip(
        x, tensors["second_stage_query_class"], tensors["second_stage_single"], strict=True
    ):
        assert_close(ours.own(picture[None], ours.rows[owner])[0], expected, **bound)
    baseline = make(ColumnClassifier, rows, bias=0.0, axis="queries")
    assert_close(baseline(x), tensors["detic_detr_logits"], **bound)
    regions = make(RegionClassifier, rows)
    assert_close(regions(x[0]), tensors["detic_c2_logits"], **bound)
    kinds = {"decola": ours, "detic_detr": baseline, "detic_c2": regions}
    for name, classifier in kinds.items():
        assert set(case["state_names"][name]) - set(classifier.state_dict()) <= {"fed_loss_weight"}


@torch.no_grad()
@pytest.mark.parametrize("path", golden_cases("decola", "grouped_self_attention*"))
def test_grouped_self_attention(path: Path) -> None:
    case, tensors = load_case(path)
    ranks, prompts, shapes = case["N_per_prompt"], case["K_prompts"], shapes_of(case)
    width = tensors["tgt"].shape[-1]
    layer = DecoderLayer(width, 8, case["d_ffn"], 0.0, len(shapes))
    assert sorted(layer.state_dict()) == sorted(case["param_names"])
    filled(layer, case["seed"])
    values = layer.cross_attn.values(tensors["src"], torch.zeros(tensors["src"].shape[:2], dtype=torch.bool))
    released = groups(ranks, prompts, "released")
    papers = groups(ranks, prompts, "per_prompt")
    assert all(len({f % ranks for f in group}) == 1 for group in released.tolist())
    assert all(len({f % prompts for f in group}) == 1 for group in papers.tolist())
    assert released.shape == (ranks, prompts)
    assert papers.shape == (prompts, ranks)
    for order, name in ((released, "released"), (papers, "paper")):
        back = order.flatten().argsort()
        content, positions = tensors["tgt"][:, order], tensors["query_pos"][:, order]
        attended = layer.self_attn(content, positions).flatten(1, 2)[:, back]
        assert_close(attended, tensors[f"self_attn_only_{name}_grouping"], rtol=0, atol=case["tolerance"])
    everyone = torch.arange(ranks * prompts)[None]
    for order, name in ((released, "grouped"), (everyone, "full_attention")):
        back, queries = order.flatten().argsort(), Queries(*(tensors[x][:, order] for x in ("tgt", "query_pos", "tgt")))
        out = layer(queries, tensors["reference_points"][:, order.flatten()], values, shapes).flatten(1, 2)[:, back]
        assert_close(out, tensors[f"out_layer_{name}"], rtol=0, atol=case["tolerance"])


SMALL = golden_cases("decola", "p1_small*", "p2_small*", "boxsup_small*")
FULL = golden_cases("decola", "p1_full*", "p2_full*", "boxsup_full*")


@torch.no_grad()
@pytest.mark.parametrize("path", SMALL)
def test_narrow_detector(path: Path) -> None:
    check_detector(*load_case(path))


@torch.no_grad()
@pytest.mark.full
@pytest.mark.parametrize("path", FULL)
def test_released_detector(path: Path) -> None:
    check_detector(*load_case(path))


def check_detector(case: Case, tensors: Mapping[str, Tensor]) -> None:
    """Stage after stage, so that a failure names the first one that differs."""
    detector, images = case_detector(case), pictures(case["images"])
    asked = sorted({label for image in case["images"] for label in image["classes"]})
    conditioned = isinstance(detector, Decola) and detector.conditioned
    oracle = conditioned or "ORACLE" in str(case["overrides"])
    ids = asked if oracle else range(len(detector.classifiers[0].rows))
    taps = encoder_taps(detector)
    image = detector.encode_image(images)
    values = taps.close() | {"enc_coord_unact": image.features.boxes}
    maps = values.pop("trunk")
    values |= {f"backbone.{name}{number}": x for number, x in enumerate(maps[-3:], 3) for name in ("layer",)}
    values |= {f"backbone.swin{number}": x for number, x in enumerate(maps[-3:], 1)}
    check_stages(case, values)
    text = detector.encode_text(TextBatch.of_classes({label + 1: f"class {label}" for label in ids}))
    if check_first_stage(case, tensors, detector, image, text.features[0]):
        check_decoder(case, tensors, detector, image, text.features[0])
        if conditioned:
            check_training_path(case, tensors, detector, torch.tensor(asked))
    check_detections(case, tensors, detector.detect(image, text))


def encoder_taps(detector: QueryDetector) -> Taps:
    detr = detector.detr
    named: dict[str, nn.Module] = {"enc_output_norm": detr.transformer.enc_output_norm}
    named["trunk"] = detr.backbone[0].backbone  # type: ignore[assignment]
    named |= {f"input_proj.{i}": module for i, module in enumerate(detr.input_proj)}
    named |= {f"encoder.layer{i}": module for i, module in enumerate(detr.transformer.encoder.layers)}
    return Taps(**named)


def check_stages(case: Case, values: Mapping[str, Tensor]) -> None:
    stages = [name for name in case["stats"] if name in values]
    assert len(stages) >= 3
    for name in stages:
        expected, value = case["stats"][name], values[name].double()
        assert list(value.shape) == expected["shape"], name
        begin = torch.tensor(expected["first32"], dtype=torch.float64)
        near = begin.abs() < FAR
        differs = (value.flatten()[: len(begin)][near] - begin[near]).abs().amax().item()
        assert differs <= LOOSE, name
        if value.isfinite().all():
            assert value.mean().item() == pytest.approx(expected["mean"], abs=LOOSE), name
            assert value.std().item() == pytest.approx(expected["std"], rel=LOOSE, abs=LOOSE), name


def check_first_stage(
    case: Case, tensors: Mapping[str, Tensor], detector: QueryDetector, image: ImageState, rows: Tensor
) -> bool:
    """Whether candidates have the original's order; where scores are all but equal they may not."""
    features = image.features.features
    tolerance = case["tolerance"].get("first_stage_logits", case["tolerance"].get("logits"))
    if isinstance(detector, Decola):
        scores = detector.first_stage(features, rows if detector.conditioned else detector.first_stage.object_row)
        expected, wanted = tensors["first_stage_logits"], tensors["topk_rank_inds"]
    else:
        scores = detector.detr.class_embed[-1](features)[..., :1]
        expected, wanted = tensors["first_stage_logit0"], tensors["topk_tokens"][..., None]
    assert_close(scores, expected, rtol=0, atol=tolerance)
    ours = scores.topk(wanted.shape[1], dim=1).indices
    assert_close(scores.gather(1, ours), scores.gather(1, wanted), rtol=0, atol=2 * tolerance)
    return torch.equal(ours, wanted)


def check_decoder(
    case: Case, tensors: Mapping[str, Tensor], detector: QueryDetector, image: ImageState, rows: Tensor
) -> None:
    transformer = detector.detr.transformer
    named: dict[str, nn.Module] = {f"decoder.layer{i}": x for i, x in enumerate(transformer.decoder.layers)}
    taps = Taps(**named, pos_trans_norm=transformer.pos_trans_norm)
    logits, boxes, owner = detector.find(image.features, rows)
    values = taps.close()
    order = torch.arange(boxes.shape[1])[None]
    if owner is not None:
        order = groups(boxes.shape[1] // len(rows), len(rows), "released")
    back = order.flatten().argsort()
    check_stages(case, {name: value.flatten(1, 2)[:, back] for name, value in values.items()})
    tolerance = case["tolerance"]
    assert_close(boxes, tensors["raw_boxes_cxcywh"], rtol=0, atol=tolerance.get("raw_boxes", tolerance.get("boxes")))
    most = tolerance.get("raw_logits", tolerance.get("logits"))
    if "raw_logits" in tensors:
        assert_close(logits, tensors["raw_logits"], rtol=0, atol=most)
    elif len(rows) == len(detector.classifiers[0].rows):
        best = logits.gather(2, tensors["raw_logits_top64_classes_ind"])
        assert_close(best, tensors["raw_logits_top64_classes"], rtol=0, atol=most)


def check_training_path(case: Case, tensors: Mapping[str, Tensor], detector: QueryDetector, classes: Tensor) -> None:
    """What losses get is what detection uses."""
    outputs = detector.ask(pictures(case["images"]), classes)
    assert outputs.query_class is not None
    assert outputs.query_class.tolist() == tensors["query_class"][0].tolist()
    last, tolerance = outputs.layers[-1], case["tolerance"]
    assert_close(last.logits, tensors["raw_logits"], rtol=0, atol=tolerance["raw_logits"])
    assert_close(last.boxes, tensors["raw_boxes_cxcywh"], rtol=0, atol=tolerance["raw_boxes"])
    ranked = tensors["first_stage_logits"].sort(dim=1, descending=True).values.flatten(1)[..., None]
    assert_close(outputs.first_stage.logits, ranked, rtol=0, atol=tolerance["first_stage_logits"])


def check_detections(case: Case, tensors: Mapping[str, Tensor], found: list[Detections]) -> None:
    """Those of the original are all there, whatever the order of equally good ones."""
    for number, ours in enumerate(found):
        prefix = f"det{number}_" if f"det{number}_boxes" in tensors else "det_"
        boxes, scores, labels = (tensors[f"{prefix}{name}"] for name in ("boxes", "scores", "classes"))
        assert len(ours) >= len(scores)
        near = (ours.scores[None] - scores[:, None]).abs() <= case["tolerance"]["scores"]
        near &= ours.labels[None] - 1 == labels[:, None]
        near &= (ours.boxes[None] - boxes[:, None]).abs().amax(-1) <= case["tolerance"]["boxes_px"]
        assert near.any(1).all()
        assert np.allclose(ours.scores[: len(scores)], scores, atol=case["tolerance"]["scores"])
