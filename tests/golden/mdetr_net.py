"""MDETR of golden cases: the detector of a case's flags, weights from its seed, inputs, what stages compute."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors.mdetr import Mdetr
from maskrcnn_benchmark.modeling.detectors.mdetr_segm import MdetrSegm
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Prompt, Target
from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy
from maskrcnn_benchmark.text.positive_map import positive_map, text_batch
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer
from tests.golden.common import fill, tokenizer_dir

Case = dict[str, Any]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VALUES = {  # flags with a value -> keys
    "--hidden_dim": "MODEL.MDETR.HIDDEN_DIM",
    "--nheads": "MODEL.MDETR.NHEADS",
    "--dim_feedforward": "MODEL.MDETR.FFN_DIM",
    "--enc_layers": "MODEL.MDETR.ENC_LAYERS",
    "--dec_layers": "MODEL.MDETR.DEC_LAYERS",
    "--num_queries": "MODEL.MDETR.NUM_QUERIES",
    "--dropout": "MODEL.MDETR.DROPOUT",
    "--position_embedding": "MODEL.MDETR.POS_EMBED",
    "--contrastive_loss_hdim": "MODEL.MDETR.PROJ_DIM",
    "--temperature_NCE": "MODEL.MDETR.TEMPERATURE",
    "--set_cost_class": "MODEL.MDETR.COST_CLASS",
    "--set_cost_bbox": "MODEL.MDETR.COST_BBOX",
    "--set_cost_giou": "MODEL.MDETR.COST_GIOU",
    "--ce_loss_coef": "MODEL.MDETR.CE_LOSS_COEF",
    "--bbox_loss_coef": "MODEL.MDETR.BBOX_LOSS_COEF",
    "--giou_loss_coef": "MODEL.MDETR.GIOU_LOSS_COEF",
    "--mask_loss_coef": "MODEL.MDETR.MASK_LOSS_COEF",
    "--dice_loss_coef": "MODEL.MDETR.DICE_LOSS_COEF",
    "--contrastive_loss_coef": "MODEL.MDETR.CONTRASTIVE_LOSS_COEF",
    "--contrastive_align_loss_coef": "MODEL.MDETR.CONTRASTIVE_ALIGN_LOSS_COEF",
    "--eos_coef": "MODEL.MDETR.EOS_COEF",
    "--frozen_weights": "MODEL.MDETR.FROZEN_WEIGHTS",
    "--text_encoder_type": "MODEL.LANGUAGE_BACKBONE.MODEL_TYPE",
}
SWITCHES = {
    "--no_aux_loss": ("MODEL.MDETR.AUX_LOSS", False),
    "--no_contrastive_align_loss": ("MODEL.MDETR.CONTRASTIVE_ALIGN", False),
    "--contrastive_loss": ("MODEL.MDETR.CONTRASTIVE", True),
    "--dilation": ("MODEL.MDETR.DILATION", True),
}
TEXT = {
    "hidden_size": "LANG_DIM",
    "num_hidden_layers": "NUM_LAYERS",
    "num_attention_heads": "NUM_HEADS",
    "intermediate_size": "INTERMEDIATE_SIZE",
    "vocab_size": "VOCAB_SIZE",
}
OF_THE_SOLVER = ("--lr", "--lr_backbone", "--text_encoder_lr", "--weight_decay", "--epochs", "--lr_drop")


def options(flags: Sequence[str], text: Mapping[str, object] | None = None) -> list[str]:
    """KEY VALUE words for MDETR's flags and for changes to its text encoder."""
    keys: dict[str, object] = {
        "MODEL.META_ARCHITECTURE": "MDETR",
        "MODEL.BACKBONE.CONV_BODY": "R-101-MDETR",
        "MODEL.LANGUAGE_BACKBONE.MODEL_TYPE": "roberta-base",
        "MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE": "roberta-base",
    }
    words = iter(flags)
    for word in words:
        if word in SWITCHES:
            key, value = SWITCHES[word]
            keys[key] = value
        elif word == "--mask_model":
            keys["MODEL.META_ARCHITECTURE"] = {"smallconv": "MDETR_SEGM", "none": "MDETR"}[next(words)]
        elif word == "--backbone":
            keys["MODEL.BACKBONE.CONV_BODY"] = re.sub(r"^resnet(\d+)$", r"R-\1-MDETR", next(words))
        elif word in OF_THE_SOLVER:
            next(words)
        else:
            keys[VALUES[word]] = next(words)
    keys |= {f"MODEL.LANGUAGE_BACKBONE.{TEXT[name]}": value for name, value in (text or {}).items()}
    return [str(part) for pair in keys.items() for part in pair]


def case_config(case: Case) -> Cfg:
    return load_cfg(opts=options(case["command_line_flags"], case["text_config_overrides"]))


def case_detector(case: Case) -> Mdetr | MdetrSegm:
    """The detector of a case with its weights, in evaluation mode."""
    detector = build_detector(case_config(case))
    fill.fill_(detector, case["seed"])
    with torch.no_grad():
        for kind, pattern, *values in case["gains"]:
            for name, value in detector.state_dict().items():
                if re.search(pattern, name) and kind == "mul":
                    value.mul_(values[0])
                elif re.search(pattern, name):
                    assert kind == "add_at"
                    value[values[0]] += values[1]
    assert isinstance(detector, (Mdetr, MdetrSegm))
    return detector


@cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(tokenizer_dir("roberta-base"))


def pictures(drawn: Sequence[tuple[int, int, int]]) -> ImageBatch:
    """Drawn pictures: seed, height, width of each."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    pixels = [(torch.from_numpy(fill.image(*one)).permute(2, 0, 1).float() / 255 - mean) / std for one in drawn]
    metas = [ImageMeta(i, one[1:], one[1:]) for i, one in enumerate(drawn)]
    return ImageBatch.pad(pixels, metas, 0)


def training_batch(
    seed: int, sizes: Sequence[Sequence[int]], captions: Sequence[str], spans: Sequence[Any], masks: bool
) -> Batch:
    """A batch of a training case: its boxes, and its masks (filled boxes), follow from its seed."""
    images = pictures([(seed + i, height, width) for i, (height, width) in enumerate(sizes)])
    state = RandomState(seed)
    targets = []
    for meta, caption, own in zip(images.metas, captions, spans, strict=True):
        count = len(own)
        relative = torch.from_numpy(
            np.concatenate([state.uniform(0.25, 0.75, (count, 2)), state.uniform(0.1, 0.45, (count, 2))], axis=1)
        ).float()
        height, width = meta.size
        boxes = cxcywh_to_xyxy(relative) * torch.tensor([width, height, width, height])
        targets.append(target(meta, caption, own, boxes, _filled(boxes, meta.size) if masks else None))
    text = text_batch([Prompt(caption, (), ()) for caption in captions], tokenizer())
    return Batch(images, targets, text)


def target(meta: ImageMeta, caption: str, spans: Sequence[Any], boxes: Tensor, masks: Tensor | None = None) -> Target:
    """Objects of a picture, each with the characters of the caption that it owns."""
    rows = positive_map(tokenizer().encode([caption]), 0, [[(b, e) for b, e in one] for one in spans])
    return Target(boxes, torch.ones(len(boxes), dtype=torch.int64), meta, positive_map=rows, masks=masks)


def _filled(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        x0, y0, x1, y1 = map(round, box)
        mask[y0:y1, x0:x1] = True
    return masks


class Taps:
    """What named modules of a detector give during one forward pass, sequences first as the reference has them."""

    def __init__(self, detector: nn.Module, names: Sequence[str]) -> None:
        self.values: dict[str, Tensor] = {}
        modules = dict(detector.named_modules())
        self.hooks = []
        for name in names:
            module = modules.get(_our_name(name))
            if module is not None:
                self.hooks.append(module.register_forward_hook(self._keep(name)))

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: Any) -> None:
            value = output[-1] if isinstance(output, list) else output
            inside = re.search(r"transformer\.(resizer|encoder|decoder)", name)
            self.values[name] = value.transpose(-2, -3) if inside else value

        return hook

    def close(self) -> dict[str, Tensor]:
        for hook in self.hooks:
            hook.remove()
        return self.values


def _our_name(name: str) -> str:
    """``backbone.1''`` is the position encoding of a level; where there are several, ours encodes the last alone."""
    return name.rstrip("'").replace("body.act1", "body.bn1")
