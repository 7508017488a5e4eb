"""Pooling of regions in torch alone, region by region. Imported by ``backends`` only."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_benchmark.layers.backends import register

Pair = tuple[int, int]


def check_pictures(rois: Tensor, pictures: int) -> None:
    """Each region must name a picture of the batch."""
    if len(rois) and not bool(((rois[:, 0] >= 0) & (rois[:, 0] < pictures)).all()):
        first, last = int(rois[:, 0].min()), int(rois[:, 0].max())
        raise ValueError(f"rois name picture {first if first < 0 else last} of a batch of {pictures}")


def _round(values: Tensor) -> Tensor:
    """Half away from zero."""
    whole = values.trunc()
    return whole + values.sign() * ((values - whole).abs() >= 0.5)


@register("roi_pool", "torch", 20)
def roi_pool(input: Tensor, rois: Tensor, output_size: Pair, spatial_scale: float) -> Tensor:
    """The cells of each bin are compared in raster order; the gradient goes to the first of the largest ones."""
    check_pictures(rois, len(input))
    channels, height, width = input.shape[1:]
    plane = torch.arange(channels, device=input.device)[:, None, None] * (height * width)
    found = [torch.zeros(0, channels, *output_size, dtype=torch.int64, device=input.device)]
    valid = [torch.zeros(0, 1, *output_size, dtype=torch.bool, device=input.device)]
    for picture, region in zip(rois[:, 0].long().tolist(), _round(rois[:, 1:] * spatial_scale), strict=True):
        rows, in_rows = _cells(region[1], region[3], output_size[0], height)
        columns, in_columns = _cells(region[0], region[2], output_size[1], width)
        inside = (in_rows[:, None, :, None] & in_columns[None, :, None, :]).flatten(2)
        cells = (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2)
        values = input.detach()[picture].flatten(1)[:, cells].masked_fill(~inside, -torch.inf)
        best = cells.expand_as(values).gather(3, values.max(dim=3, keepdim=True).indices)[..., 0]
        found.append((best + plane + picture * channels * height * width)[None])
        valid.append(inside.any(2)[None, None])
    return input.flatten()[torch.cat(found)].masked_fill(~torch.cat(valid), 0)


def _cells(low: Tensor, high: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """Along one axis: indices of the cells of each bin, (bins, longest), and which of them count."""
    step = (high - low + 1).clamp(min=1) / bins
    number = torch.arange(bins + 1, device=low.device)
    first = ((number[:-1] * step).floor() + low).clamp(0, size).long()
    last = ((number[1:] * step).ceil() + low).clamp(0, size).long()
    longest = max(int((last - first).max()), 1)
    cells = first[:, None] + torch.arange(longest, device=low.device)
    return cells.clamp(max=size - 1), cells < last[:, None]


@register("deform_psroi", "torch", 20)
def deform_psroi(
    input: Tensor,
    rois: Tensor,
    trans: Tensor | None,
    spatial_scale: float,
    out_channels: int,
    group_size: int,
    out_size: int,
    part_size: int,
    samples: int,
    trans_std: float,
) -> Tensor:
    check_pictures(rois, len(input))
    (height, width), count = input.shape[2:], len(rois)
    corners = _round(rois[:, 1:])
    start = corners[:, :2] * spatial_scale - 0.5
    side = ((corners[:, 2:] + 1) * spatial_scale - 0.5 - start).clamp(min=0.1)
    shift = _shift(trans, count, out_channels, out_size, part_size, start) * trans_std
    number = torch.arange(out_size, device=input.device)
    step = torch.arange(samples, device=input.device)
    axes = []
    for axis in (0, 1):  # positions (R, D, Ph, Pw, samples)
        cell = side[:, axis] / out_size
        base = number * cell[:, None] + start[:, axis, None]
        base = base[:, None, None, :] if axis == 0 else base[:, None, :, None]
        moved = base + shift[:, :, axis] * side[:, axis, None, None, None]
        axes.append(moved[..., None] + step * (cell / samples)[:, None, None, None, None])
    x, y = axes
    inside = _inside(y, height)[..., :, None] & _inside(x, width)[..., None, :]
    group = (number * group_size).div(out_size, rounding_mode="floor").clamp(max=group_size - 1)
    channel = torch.arange(out_channels, device=input.device)[:, None, None] * group_size + group[:, None]
    channel = channel * group_size + group
    picture = rois[:, 0].long().view(-1, 1, 1, 1)
    plane = ((picture * input.shape[1] + channel) * height)[..., None, None]
    values = _bilinear(input, plane, y[..., :, None], x[..., None, :])
    return (values * inside).sum((4, 5)) / inside.sum((4, 5)).clamp(min=1)


def _shift(trans: Tensor | None, count: int, channels: int, bins: int, parts: int, like: Tensor) -> Tensor:
    """x and y shift of each bin: (R, D, 2, P, P)."""
    if trans is None:
        return like.new_zeros(1, 1, 2, 1, 1)
    part = (torch.arange(bins, device=like.device).to(like.dtype) / bins * parts).floor().long()
    kinds = trans.shape[1] // 2
    by_kind = trans.view(count, kinds, 2, parts, parts)[:, :, :, part[:, None], part]
    return by_kind.repeat_interleave(channels // kinds, dim=1)


def _inside(position: Tensor, size: int) -> Tensor:
    return (position >= -0.5) & (position <= size - 0.5)


def _bilinear(input: Tensor, plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Samples of the maps whose first rows are ``plane``; positions outside move to the border and have no slope."""
    (height, width), flat = input.shape[2:], input.flatten()
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    total = torch.zeros((), dtype=input.dtype, device=input.device)
    for row, row_weight in ((top, 1 - down), (y.detach().ceil(), down)):
        for column, column_weight in ((left, 1 - right), (x.detach().ceil(), right)):
            index = (plane + row.long()) * width + column.long()
            total = total + flat[index] * (row_weight * column_weight)
    return total
