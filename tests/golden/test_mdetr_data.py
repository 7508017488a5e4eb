"""What MDETR reads (captions, boxes, masks, tokens, every transform) and its learning rates, against stored results."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image
from torch import Tensor

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.collate import collate
from maskrcnn_benchmark.data.datasets.modulated import ModulatedDataset
from maskrcnn_benchmark.data.draws import Draws, rng_for
from maskrcnn_benchmark.data.mdetr_transforms import MdetrTransform, cropped, mirrored, resized
from maskrcnn_benchmark.data.modulated_set import ModulatedSet
from maskrcnn_benchmark.data.transforms import EvalTransform, resize_size
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.solver.build import build_rates
from maskrcnn_benchmark.solver.mdetr_schedule import MdetrSchedule
from maskrcnn_benchmark.solver.param_groups import optimizer_groups, param_groups
from maskrcnn_benchmark.solver.plan import Plan
from maskrcnn_benchmark.structures import ImageMeta, Prompt, Target
from maskrcnn_benchmark.structures.boxes import xyxy_to_cxcywh
from maskrcnn_benchmark.text.positive_map import entity_tokens, positive_map
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer
from tests.golden.common import fill, golden_cases, load_case, tokenizer_dir

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = tuple(range(480, 801, 32))


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return load_tokenizer(tokenizer_dir("roberta-base"))


def picture(seed: int, height: int, width: int) -> Image.Image:
    """``fill.image`` as Pillow has it."""
    values = fill.image(seed, height, width)
    array = np.asarray(values)
    if array.shape[0] == 3 and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    return Image.fromarray(array.astype(np.uint8))


def normalised(image: Image.Image) -> Tensor:
    return EvalTransform(800, 1333, MEAN, STD, bgr=False).normalise(image)


def relative(target: Target) -> Tensor:
    """Centre, width and height as shares of the picture: the form in which MDETR keeps boxes."""
    height, width = target.meta.size
    return xyxy_to_cxcywh(target.boxes) / torch.tensor([width, height] * 2)


def same_picture(found: Tensor, want: dict[str, Any]) -> None:
    assert list(found.shape) == want["shape"]
    assert float(found.mean()) == pytest.approx(want["mean"], abs=2e-3)
    assert float(found.std()) == pytest.approx(want["std"], abs=2e-3)
    step = 1.01 / 255 / min(STD)  # one grey level
    assert found.flatten()[:32].tolist() == pytest.approx(want["first32"], abs=step)


@pytest.mark.parametrize("path", golden_cases("mdetr", "positive_map*"))
def test_tokens_of_spans(path: Path, words: Tokenizer) -> None:
    case, _ = load_case(path)
    for item in case["items"]:
        text = words.encode([item["caption"]])
        assert text.input_ids[0].tolist() == item["input_ids"]
        assert [text.char_to_token(0, i) for i in range(len(item["caption"]))] == item["char_to_token"]
        rows = positive_map(text, 0, item["tokens_positive"])
        binary = entity_tokens(text, 0, item["tokens_positive"], 256)
        for row, bits, want in zip(rows, binary, item["rows"], strict=True):
            assert row.nonzero().flatten().tolist() == bits.nonzero().flatten().tolist() == want["tokens"]
            assert row[want["tokens"]].tolist() == pytest.approx([want["value"]] * len(want["tokens"]), abs=1e-6)


@pytest.mark.parametrize("path", golden_cases("mdetr", "dataset_*"))
def test_samples_of_a_file(path: Path, words: Tokenizer, tmp_path: Path) -> None:
    case, _ = load_case(path)
    for index, (height, width) in enumerate(case["sizes_hw"]):
        picture(case["seed"] + index, height, width).save(tmp_path / f"{index}.png")
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(case["annotation_file"]))
    data = ModulatedDataset(tmp_path, file, masks=case["return_masks"])
    assert len(data) == len(case["samples"])
    for index, want in enumerate(case["samples"]):
        check_sample(data, index, want, words)
    check_batch(data, case["collated"], words)


def check_sample(data: ModulatedDataset, index: int, want: dict[str, Any], words: Tokenizer) -> None:
    sample = data[index]
    size = resize_size(sample.image.height, sample.image.width, 800, 1333)
    assert size == EvalTransform(800, 1333, MEAN, STD, bgr=False).size(*sample.meta.orig_size)
    image, target = resized(sample.image, sample.target, size)
    same_picture(normalised(image), want["image"])
    assert list(target.meta.size) == want["size"]
    assert list(target.meta.orig_size) == want["orig_size"]
    assert target.meta.image_id == want["image_id"][0]
    torch.testing.assert_close(relative(target), torch.tensor(want["boxes"]).reshape(-1, 4), atol=1e-5, rtol=0)
    assert target.labels.tolist() == want["labels"]
    assert target.prompt.text == want["caption"]
    assert [[list(span) for span in spans] for spans in target.prompt.spans] == want["tokens_positive"]
    text = words.encode([target.prompt.text])
    tokens = entity_tokens(text, 0, target.prompt.spans, 256)
    assert [row.nonzero().flatten().tolist() for row in tokens] == want["positive_map"]
    for key in ("dataset_name", "sentence_id", "original_img_id", "original_id", "task_id"):
        assert target.meta.extra.get(key) == want.get(key), key
    if "positive_map_eval" in want:
        asked = target.meta.extra["tokens_positive_eval"]
        rows = entity_tokens(text, 0, asked, 256)
        assert [row.nonzero().flatten().tolist() for row in rows] == want["positive_map_eval"]
        assert len(asked) == want["nb_eval"]
    if "masks" in want:
        assert list(target.masks.shape) == want["masks"]["shape"]
        assert target.masks.sum(dim=(1, 2)).tolist() == want["masks"]["pixels"]


def check_batch(data: ModulatedDataset, want: dict[str, Any], words: Tokenizer) -> None:
    """The val transform in place of a random one, then a batch as training makes it."""
    whole = MdetrTransform((800,), 1333, crop=0.0)
    part = ModulatedSet(data, whole, words)
    items = [part.item(index, rng_for(index)) for index in range(len(data))]
    batch = collate(items, 0)
    assert list(batch.images.pixels.shape) == want["samples"]
    assert [list(meta.size) for meta in batch.images.metas] == want["valid_hw"]
    maps = torch.cat([target.positive_map for target in batch.targets])
    assert list(maps.shape) == want["positive_map"]
    assert set(maps.unique().tolist()) <= {0.0, 1.0}
    lengths = [words.count(target.prompt.text) for target in batch.targets]
    assert batch.text.input_ids.shape == (len(items), max(lengths))
    assert batch.text.attention_mask.sum(dim=1).tolist() == lengths
    assert (batch.text.input_ids == words.pad_id).sum(dim=1).tolist() == [max(lengths) - n for n in lengths]


def ops_target(case: dict[str, Any], boxes: Tensor) -> tuple[Image.Image, Target]:
    """The picture, boxes, masks and words that every operation starts from; each box owns a letter of its number."""
    seed, height, width = case["image"]
    return with_words(picture(seed, height, width), boxes, caption_of(case), rasterised(boxes, height, width))


def rasterised(boxes: Tensor, height: int, width: int) -> Tensor:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return masks


def with_words(
    image: Image.Image, boxes: Tensor, caption: str, masks: Tensor | None = None
) -> tuple[Image.Image, Target]:
    size = (image.height, image.width)
    spans = tuple(((0, index),) for index in range(len(boxes)))
    prompt = Prompt(caption, spans, tuple(range(1, len(boxes) + 1)))
    labels = torch.arange(len(boxes))
    return image, Target(boxes, labels, ImageMeta("a", size, size), prompt=prompt, masks=masks)


def caption_of(case: dict[str, Any]) -> str:
    return next(op["caption"] for op in case["ops"] if op["op"] == "resize")


def apply(op: str, args: list[Any], image: Image.Image, target: Target) -> tuple[Image.Image, Target]:
    if op == "resize":
        size, largest = args
        if isinstance(size, list):
            return resized(image, target, (size[1], size[0]))
        return resized(image, target, resize_size(image.height, image.width, size, largest or 10**9))
    if op == "crop":
        return cropped(image, target, tuple(args))
    if op == "hflip":
        return mirrored(image, target)
    if op == "chain":
        for name, values in (("hflip", []), ("resize", args[:2]), ("crop", args[2])):
            image, target = apply(name, values, image, target)
    return image, target


@pytest.mark.parametrize("path", golden_cases("mdetr", "transforms*"))
def test_transforms(path: Path) -> None:
    case, tensors = load_case(path)
    for index, op in enumerate(case["ops"]):
        image, target = apply(op["op"], op["args"], *ops_target(case, tensors["input.boxes"]))
        relatively = op["op"] in ("normalize", "chain")
        boxes = relative(target) if relatively else target.boxes
        torch.testing.assert_close(boxes, tensors[f"op{index}.boxes"], atol=1e-4, rtol=0)
        assert torch.equal(target.masks, tensors[f"op{index}.masks"].bool()), op
        kept = tensors[f"op{index}.positive_map_rows_kept"].tolist()
        assert target.labels.tolist() == kept
        assert [spans[0] for spans in target.prompt.spans] == [(0, row) for row in kept] or op["op"] in (
            "hflip",
            "chain",
        )
        assert (list(target.meta.size), target.prompt.text, len(target)) == (op["size"], op["caption"], op["n_boxes"])
        want = tensors[f"op{index}.image"]
        if relatively:
            torch.testing.assert_close(normalised(image), want, atol=1.01 / 255 / min(STD), rtol=0)
        else:
            assert (np.asarray(image).astype(int) - want.numpy().astype(int)).__abs__().max() <= 1
    for run in next(value for name, value in case.items() if name.startswith("random_train_pipeline")):
        check_random(run, case["image"][0], caption_of(case))


def check_random(run: dict[str, Any], seed: int, caption: str) -> None:
    """The draws are those of the global generators of Python and torch, in the order of the reference."""
    height, width = run["input_hw"]
    rng = RandomState(seed)
    rows = []
    draws = [rng.uniform(0, 0.6 * width, 5), rng.uniform(0, 0.6 * height, 5)]
    draws += [rng.uniform(5, 0.4 * width, 5), rng.uniform(5, 0.4 * height, 5)]
    x, y, w, h = draws
    rows = np.stack((x, y, x + w, y + h), axis=1)
    start = next(value for name, value in run.items() if name.startswith("seed"))
    generators = Draws(Random(start), RandomState(start), torch.Generator().manual_seed(start))
    transform = MdetrTransform(SIZES, 1333, cautious=run["cautious"])
    image, boxes = picture(seed, height, width), torch.tensor(rows, dtype=torch.float32)
    pixels, target = transform(*with_words(image, boxes, caption), generators)
    assert list(target.meta.size) == run["size"]
    assert target.prompt.text == run["caption"]
    torch.testing.assert_close(relative(target), torch.tensor(run["out_boxes_cxcywh"]), atol=1e-4, rtol=0)
    same_picture(normalised(Image.fromarray(pixels.permute(1, 2, 0).numpy())), run["out_image"])


@pytest.mark.parametrize("path", golden_cases("mdetr", "lr_schedules*"))
def test_learning_rates(path: Path) -> None:
    case, _ = load_case(path)
    for run in case["cases"]:
        args, steps = run["args"], run["steps_per_epoch"]
        names = ("lr", "lr_backbone", "text_encoder_lr")
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": args[n], "text": "text" in n} for n in names]
        optimizer = torch.optim.AdamW(groups)
        plan = Plan(batches_per_epoch=steps, accumulation=1, steps=steps * args["epochs"], period=1)
        share = {"warmup": args["fraction_warmup_steps"]} if "fraction_warmup_steps" in args else {}
        schedule = MdetrSchedule(optimizer, args["schedule"], plan, args["lr_drop"], **share)
        assert [group["lr"] for group in optimizer.param_groups] == [args[name] for name in names]
        for row in run["rows"]:
            while schedule.done <= row["step"]:
                schedule.step()
            rates = [group["lr"] for group in optimizer.param_groups]
            assert rates == pytest.approx(row["lr"], rel=1e-9, abs=1e-15), (args["schedule"], row["step"])


GROUPS = {
    "R-101-MDETR": [(93, 42_172_416), (201, 18_342_276), (199, 124_645_632)],
    "timm_tf_efficientnet_b3_ns": [(181, 10_019_112), (201, 17_916_292), (199, 124_645_632)],
}
"""Backbone -> tensors and numbers of the backbone, of the rest and of the text encoder, in the released networks."""


@pytest.mark.parametrize("body", GROUPS)
def test_three_parameter_groups(body: str) -> None:
    keys = {
        "MODEL.META_ARCHITECTURE": "MDETR",
        "MODEL.BACKBONE.CONV_BODY": body,
        "MODEL.LANGUAGE_BACKBONE.MODEL_TYPE": "roberta-base",
        "MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE": "roberta-base",
        "SOLVER.BASE_LR": "1e-4",
        "SOLVER.BACKBONE_LR": "1e-5",
        "SOLVER.LANG_LR": "5e-5",
        "SOLVER.BIAS_LR_FACTOR": "1",
        "SOLVER.WEIGHT_DECAY": "1e-4",
        "SOLVER.WEIGHT_DECAY_BIAS": "1e-4",
    }
    cfg = load_cfg(None, opts=[part for pair in keys.items() for part in pair])
    with torch.device("meta"):
        model = build_detector(cfg)
    groups = optimizer_groups(param_groups(model, build_rates(cfg)))
    found = [(len(group["params"]), sum(value.numel() for _, value in group["params"])) for group in groups]
    assert found == GROUPS[body]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-5, 1e-4), (1e-4, 1e-4), (5e-5, 1e-4)]
