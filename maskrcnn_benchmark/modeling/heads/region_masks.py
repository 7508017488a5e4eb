"""The mask of what is in a box (He et al., ICCV 2017), as detectron2 computes it and under its names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.modeling.heads.rpn import Size
from maskrcnn_benchmark.structures.polygons import Polygons, draw_in_box


class RegionMaskHead(nn.Module):
    """From what is pooled to a mask of twice its resolution; names as under ``roi_heads.mask_head.``.

    Args:
        channels: Of the pyramid.
        convs: 3x3 convolutions in front.
        width: Of them.
        num_masks: 1: the same for any class; otherwise one mask per class, without the background.
    """

    def __init__(self, channels: int, convs: int = 4, width: int = 256, num_masks: int = 1) -> None:
        super().__init__()
        self.num_masks = num_masks
        self.convs = [f"mask_fcn{number}" for number in range(1, convs + 1)]
        for name in self.convs:
            self.add_module(name, _spread(nn.Conv2d(channels, width, 3, padding=1)))
            channels = width
        self.deconv = _spread(nn.ConvTranspose2d(channels, width, 2, stride=2))
        self.predictor = nn.Conv2d(width, num_masks, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """(R, C, S, S) of boxes with (R,) labels from 1 -> (R, 2 S, 2 S) logits."""
        x = pooled
        for name in self.convs:
            x = F.relu(self.get_submodule(name)(x))
        masks = self.predictor(F.relu(self.deconv(x)))
        return masks[:, 0] if masks.shape[1] == 1 else masks[torch.arange(len(labels), device=x.device), labels - 1]


def mask_loss(logits: Tensor, boxes: Sequence[Tensor], owners: Sequence[Tensor], shapes: Sequence[Polygons]) -> Tensor:
    """Mean binary cross-entropy; 0 without boxes.

    Args:
        logits: (R, S, S) of the boxes of all pictures.
        boxes: Per picture (R_i, 4), xyxy.
        owners: Per picture (R_i,), the numbers of their objects.
        shapes: Per picture, of its objects.
    """
    if not len(logits):
        return logits.sum() * 0
    side = logits.shape[-1]
    wanted = [
        draw_in_box(outlines[number], box, side)
        for part, numbers, outlines in zip(boxes, owners, shapes, strict=True)
        for box, number in zip(part.double().cpu().numpy(), numbers.tolist(), strict=True)
    ]
    target = torch.from_numpy(np.stack(wanted)).to(logits.device, torch.float32)
    return F.binary_cross_entropy_with_logits(logits.float(), target)


def paste(masks: Tensor, boxes: Tensor, size: Size, threshold: float = 0.5) -> Tensor:
    """Masks of boxes as masks of a picture: what each of its pixels sees at its centre.

    Args:
        masks: (K, S, S) probabilities.
        boxes: (K, 4) xyxy in pixels of the picture.
        size: (h, w) of the picture.
        threshold: From here on a pixel is inside.

    Returns:
        (K, h, w) bool on the CPU.
    """
    height, width = size
    out = torch.zeros(len(masks), height, width, dtype=torch.bool)
    low = (boxes[:, :2].floor() - 1).clamp(min=0).long().tolist()
    high = (boxes[:, 2:].ceil() + 1).long().tolist()
    for i, (mask, box) in enumerate(zip(masks.cpu().float(), boxes.cpu().float(), strict=True)):
        (left, top), (right, bottom) = low[i], (min(high[i][0], width), min(high[i][1], height))
        x, y = (
            (torch.arange(first, last) + 0.5 - box[axis]) / (box[axis + 2] - box[axis]) * 2 - 1
            for axis, (first, last) in enumerate(((left, right), (top, bottom)))
        )
        grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), dim=2)
        seen = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        out[i, top:bottom, left:right] = seen >= threshold
    return out


def _spread(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Conv2d | nn.ConvTranspose2d:
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
