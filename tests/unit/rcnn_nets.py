"""Narrow Faster R-CNNs and RetinaNets: a second each, with weights whose scores do not saturate."""

from __future__ import annotations

import torch
from torch import nn

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target

OPTIONS: dict[str, object] = {
    "MODEL.BACKBONE.CONV_BODY": "R-50-FPN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 16,
    "MODEL.RPN.ANCHOR_STRIDE": (4, 8, 16, 32, 64),
    "MODEL.RPN.PRE_NMS_TOP_N_TRAIN": 200,
    "MODEL.RPN.PRE_NMS_TOP_N_TEST": 200,
    "MODEL.RPN.POST_NMS_TOP_N_TEST": 100,
    "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST": 200,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.POOLER_SCALES": (0.25, 0.125, 0.0625, 0.03125),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM": 32,
    "MODEL.ROI_BOX_HEAD.NUM_CLASSES": 6,
    "MODEL.RETINANET.NUM_CLASSES": 6,
}


def config(**changes: object) -> Cfg:
    """A config; a dot of a key is written as two underscores, and MODEL is left out."""
    keys = {f"MODEL.{key.replace('__', '.')}": value for key, value in changes.items()}
    return load_cfg(opts=[str(word) for pair in {**OPTIONS, **keys}.items() for word in pair])


def detector(**changes: object) -> nn.Module:
    """A network that finds things in noise."""
    torch.manual_seed(0)
    net = build_detector(config(**changes))
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith((".cls_logits.weight", ".bbox_pred.weight", ".cls_score.weight")):
                value.normal_(std=0.1)
    return net


def retinanet(**changes: object) -> nn.Module:
    """The same in one stage."""
    return detector(RETINANET_ON=True, BACKBONE__CONV_BODY="R-50-FPN-RETINANET", **changes)


def batch(
    sizes: tuple[tuple[int, int], ...] = ((128, 160), (120, 150)), counts: tuple[int, ...] = (2, 1), seed: int = 0
) -> Batch:
    """Pictures of noise with objects of labels 1 to 5, on disk twice as large."""
    generator = torch.Generator().manual_seed(seed)
    pictures, targets, metas = [], [], []
    for index, ((height, width), count) in enumerate(zip(sizes, counts, strict=True)):
        meta = ImageMeta(index, (height, width), (2 * height, 2 * width))
        low = torch.rand(count, 2, generator=generator) * 40
        side = 20 + torch.rand(count, 2, generator=generator) * 50
        labels = torch.randint(1, 6, (count,), generator=generator)
        pictures.append(20 * torch.randn(3, height, width, generator=generator))
        targets.append(Target(torch.cat((low, low + side), 1), labels, meta))
        metas.append(meta)
    return Batch(ImageBatch.pad(pictures, metas), targets)
