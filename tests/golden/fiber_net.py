"""Networks of golden cases: a detector from a case's config, weights from its seed, inputs and comparisons."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint.io import load_weights
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors.grounding import build_decode
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, TextBatch
from maskrcnn_benchmark.structures.boxes import iou
from maskrcnn_benchmark.text.positive_map import label_tokens, text_batch
from maskrcnn_benchmark.text.prompts import PromptOptions, class_prompts, grounding_prompt
from maskrcnn_benchmark.text.tokenizer import load_tokenizer
from tests.golden.common import fill, tokenizer_dir

CONFIGS = Path(__file__).parents[2] / "configs"
PADDED = 256  # text positions of every golden case
Case = dict[str, Any]

_network: dict[str, nn.Module] = {}  # the last one only: a released one takes a gigabyte


def case_config(case: Case) -> Cfg:
    """The config of a case, with the sizes of narrow text encoders."""
    opts = [str(value) for value in (*case["opts"], *case.get("extra_opts", ()))]
    small = case.get("small_language")
    if small:
        node = "MODEL.LANGUAGE_BACKBONE"
        opts += [f"{node}.NUM_LAYERS", str(small["num_hidden_layers"])]
        opts += [f"{node}.NUM_HEADS", str(small["num_attention_heads"])]
        opts += [f"{node}.INTERMEDIATE_SIZE", str(small["intermediate_size"])]
    return load_cfg(CONFIGS / case["config_file"], opts=opts)


def case_detector(case: Case, cfg: Cfg, folder: Path) -> nn.Module:
    """The detector of a case, its weights read from a checkpoint file, the way a user's are."""
    key = json.dumps([case[k] for k in ("config_file", "opts", "fill_seed")] + [case.get("small_language")])
    if key not in _network:
        _network.clear()
        gc.collect()
        detector = build_detector(cfg)
        path = folder / "weights.safetensors"
        save_file(case_weights(case, detector), path)
        load_weights(detector, path)
        path.unlink()
        _network[key] = detector
    detector = _network[key]
    detector.decode = build_decode(cfg)
    return detector


def case_weights(case: Case, detector: nn.Module) -> dict[str, Tensor]:
    """What the case's seed and overrides make of the detector's names and shapes."""
    weights = {}
    for name, tensor in detector.state_dict().items():
        value = tensor.clone()
        if tensor.is_floating_point() and "anchor_generator.cell_anchors" not in name:
            value = torch.from_numpy(fill.values(name, tuple(tensor.shape), case["fill_seed"])).reshape(tensor.shape)
        weights[name] = value
    for suffix, rule in case["overrides_after_fill (by name suffix)"].items():
        _override(weights, suffix, rule)
    return weights


def _override(weights: dict[str, Tensor], suffix: str, rule: object) -> None:
    if suffix == "rpn.head.scales.<i>.scale" and rule == "1 + 0.1*i":
        for level in range(5):
            weights[f"rpn.head.scales.{level}.scale"].fill_(1 + 0.1 * level)
        return
    for name in [name for name in weights if name.endswith(suffix.removeprefix("*"))]:
        if isinstance(rule, (int, float)):
            weights[name].fill_(rule)
        elif isinstance(rule, str) and rule.startswith("multiplied by "):
            weights[name].mul_(float(rule.removeprefix("multiplied by ")))
        else:
            raise AssertionError(f"a rule that this test does not know: {suffix}: {rule}")


def case_images(case: Case, cfg: Cfg) -> ImageBatch:
    """The drawn pictures of a case; not resized, so that what is on disk is what the network sees."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    pictures, metas = [], []
    for index, (seed, height, width) in enumerate(case["images (seed,h,w)"]):
        rgb = torch.from_numpy(fill.image(seed, height, width)).permute(2, 0, 1)
        pictures.append(((rgb.float() / 255).flip(0) * 255 - mean) / std)
        metas.append(ImageMeta(index, (height, width), (height, width)))
    return ImageBatch.pad(pictures, metas, cfg.DATALOADER.SIZE_DIVISIBILITY)


def class_text(cfg: Cfg, names: Sequence[str], labels: Sequence[int], pad_to: int | None = PADDED) -> list[TextBatch]:
    """The prompts that the config makes of class names."""
    tokenizer = load_tokenizer(tokenizer_dir(cfg.MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE))
    options = PromptOptions(separator=cfg.DATASETS.SEPARATION_TOKENS, chunk_size=cfg.TEST.CHUNKED_EVALUATION)
    prompts = class_prompts(list(zip(labels, names, strict=True)), options, tokenizer)
    return [text_batch([prompt], tokenizer, pad_to=pad_to) for prompt in prompts]


def caption_text(cfg: Cfg, caption: str, phrases: list[Any], pad_to: int | None = PADDED) -> TextBatch:
    """A caption and the characters of its phrases."""
    tokenizer = load_tokenizer(tokenizer_dir(cfg.MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE))
    return text_batch([grounding_prompt(caption, phrases)], tokenizer, pad_to=pad_to)


def text_tokens(text: TextBatch) -> dict[str, list[int]]:
    """{label: token positions} as cases write it."""
    prompt = text.prompts[0]
    return {str(label): tokens for label, tokens in label_tokens(text.entity_tokens[0], prompt.ids).items()}


def assert_statistics(
    name: str, value: Tensor, expected: Mapping[str, Any], tolerance: float, correction: int = 0
) -> None:
    """Compare shape, mean, deviation (by default of the population) and first elements with what a case recorded."""
    assert list(value.shape) == expected["shape"], f"{name}: shape"
    flat = value.detach().double().flatten()
    first = torch.tensor(expected["first32"], dtype=torch.float64)
    numbers = {
        "mean": abs(flat.mean().item() - expected["mean"]),
        "std": abs(flat.std(correction=correction).item() - expected["std"]),
        "first": (flat[: len(first)] - first).abs().max().item(),
    }
    worst = max(numbers, key=lambda key: numbers[key])
    assert numbers[worst] <= tolerance, f"{name}: {worst} is off by {numbers[worst]:.2e}, allowed {tolerance:.0e}"


def assert_detections(found: Any, expected: Mapping[str, Tensor], tolerance: float, share: float = 0.97) -> None:
    """Both ways, ``share`` of the detections have a partner: same label, IoU > 0.99, (nearly) the same score."""
    boxes, scores, labels = expected["boxes"], expected["scores"], expected["labels"]
    assert abs(len(found) - len(scores)) <= (1 - share) * len(scores), f"{len(found)} detections, not {len(scores)}"
    same = (
        (iou(found.boxes, boxes, plus_one=True) > 0.99)
        & (found.labels[:, None] == labels)
        & ((found.scores[:, None] - scores).abs() <= tolerance)
    )
    for side, what in ((same.any(0), "expected"), (same.any(1), "found")):
        assert side.float().mean() >= share, f"only {side.float().mean():.3f} of the {what} detections have a partner"
