"""Operators in torch alone, for every device. Imported by ``backends`` only.

The sampling operators are one primitive: each output row is a weighted sum of a few rows of a table that holds the map
in channels-last order (:func:`_gather`, an ``embedding_bag``). Reading whole rows is what makes it fast on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from maskrcnn_benchmark.layers._torch_regions import check_pictures
from maskrcnn_benchmark.layers.backends import register
from maskrcnn_benchmark.layers.losses import class_focal_loss

Pair = tuple[int, int]
BEFORE_TORCHVISION = {"cpu": 10, "": 20}
COLUMN_BYTES = 8 << 20  # sampled columns of a convolution held at a time: small enough to stay in the cache
TRAIN_COLUMN_BYTES = 64 << 20  # in training each block costs a gradient of the whole map, so blocks are larger
KEPT_COLUMN_BYTES = 1 << 20  # columns of one picture that are kept for the backward pass and not sampled again
MAX_SAMPLES = 1 << 21  # rows that one gather of roi_align reads


def _gather(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Row i of the result is the sum over j of weight[i, j] * table[index[i, j]]: (T, C), (M, J), (M, J) -> (M, C)."""
    return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")


def _rows(image: Tensor) -> Tensor:
    """(C, H, W) -> (H * W, C); a view when the memory is in channels_last order."""
    return image.permute(1, 2, 0).reshape(-1, image.shape[0]).contiguous()


def _corners(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two cells around each position along one axis, with their bilinear weights; cells outside weigh nothing.

    Returns:
        index and weight, each (2, *position.shape). The derivative is the right-sided one, as floor gives it.
    """
    position = position.clamp(-2, size + 1)
    low = position.detach().floor()
    high_weight = position - low
    cell = torch.stack((low, low + 1)).to(torch.int32)
    inside = (cell >= 0) & (cell < size) & (position > -1)
    weight = torch.stack((1 - high_weight, high_weight)) * inside
    return cell.clamp_(0, size - 1), weight


@register("deform_conv2d", "torch", BEFORE_TORCHVISION)
def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """Sample columns block by block and multiply; in training the columns are sampled again in the backward pass."""
    n, channels, *size = input.shape
    out_h, out_w = offset.shape[2:]
    taps, cells = weight.shape[2] * weight.shape[3], out_h * out_w
    inputs = (input, offset, mask, weight, bias)
    training = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    limit = TRAIN_COLUMN_BYTES if training else COLUMN_BYTES
    step = max(256, limit // (taps * channels * input.element_size()))
    origin = _origins((out_h, out_w), weight.shape[2:], stride, padding, dilation, input)
    filters = _filters(weight, channels // weight.shape[1])
    parts = []
    for i in range(n):
        table = _rows(input[i])
        shift = offset[i].reshape(-1, taps, 2, cells)
        factor = None if mask is None else mask[i].reshape(-1, taps, cells)
        for start in range(0, cells, step):
            part = slice(start, start + step)
            block = (shift[..., part], None if factor is None else factor[..., part], origin[..., part])
            args = (table, *block, (size[0], size[1]), filters, bias)
            if training and taps * channels * cells * input.element_size() > KEPT_COLUMN_BYTES:
                parts.append(checkpoint(_convolve, *args, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(_convolve(*args))
    if not parts:
        return (input.sum() + weight.sum()) * 0 + input.new_zeros(0, len(weight), out_h, out_w)
    return torch.cat(parts).view(n, out_h, out_w, -1).permute(0, 3, 1, 2)


def _origins(size: Pair, kernel: torch.Size, stride: Pair, padding: Pair, dilation: Pair, like: Tensor) -> Tensor:
    """Where each tap of each output cell looks when it is not shifted: (taps, 2, Ho * Wo) rows and columns."""
    axes = []
    for i in (0, 1):
        cells = torch.arange(size[i], device=like.device) * stride[i] - padding[i]
        taps = torch.arange(kernel[i], device=like.device) * dilation[i]
        axes.append(taps[:, None] + cells)
    y, x = axes
    shape = (kernel[0], kernel[1], size[0], size[1])
    grid = torch.stack((y[:, None, :, None].expand(shape), x[None, :, None, :].expand(shape)), dim=2)
    return grid.reshape(kernel[0] * kernel[1], 2, size[0] * size[1]).to(like.dtype)


def _filters(weight: Tensor, groups: int) -> Tensor:
    """(O, C / groups, Kh, Kw) -> (groups, O / groups, taps * C / groups); a view of a channels_last weight."""
    return weight.permute(0, 2, 3, 1).reshape(groups, weight.shape[0] // groups, -1)


def _convolve(
    table: Tensor,
    shift: Tensor,
    factor: Tensor | None,
    origin: Tensor,
    size: Pair,
    filters: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """P output cells of one picture: (H * W, C), (G, taps, 2, P), (G, taps, P), (taps, 2, P) -> (P, O)."""
    columns = _sample(table, shift, factor, origin, size)
    groups, _, depth = filters.shape
    if groups == 1:
        return F.linear(columns.flatten(1), filters[0], bias)
    parts = columns.view(*columns.shape[:2], groups, -1).permute(2, 0, 1, 3).reshape(groups, -1, depth)
    out = torch.bmm(parts, filters.transpose(1, 2)).permute(1, 0, 2).flatten(1)
    return out if bias is None else out + bias


def _sample(table: Tensor, shift: Tensor, factor: Tensor | None, origin: Tensor, size: Pair) -> Tensor:
    """Columns (P, taps, C) of a deformable convolution; see :func:`_convolve` for the arguments."""
    groups, taps, _, cells = shift.shape
    position = shift + origin
    y, y_weight = _corners(position[:, :, 0], size[0])
    x, x_weight = _corners(position[:, :, 1], size[1])
    if factor is not None:
        y_weight = y_weight * factor
    row = y[:, None] * size[1] + x[None]  # (2, 2, G, taps, P)
    if groups > 1:
        row = row * groups + torch.arange(groups, dtype=row.dtype, device=row.device)[:, None, None]
    index = row.permute(4, 3, 2, 0, 1).reshape(-1, 4)
    weight = (y_weight[:, None] * x_weight[None]).permute(4, 3, 2, 0, 1).reshape(-1, 4)
    return _gather(table.view(table.shape[0] * groups, -1), index, weight).view(cells, taps, table.shape[1])


@register("roi_align", "torch", BEFORE_TORCHVISION)
def roi_align(
    input: Tensor, rois: Tensor, output_size: Pair, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Regions with the same number of samples per cell are laid out together, then gathered in few large calls."""
    check_pictures(rois, len(input))
    table = input.permute(0, 2, 3, 1).reshape(-1, input.shape[1]).contiguous()
    half = 0.5 if aligned else 0.0
    start = rois[:, 1:3] * spatial_scale - half
    extent = rois[:, 3:5] * spatial_scale - half - start
    if not aligned:
        extent = extent.clamp(min=1)
    cell = extent / extent.new_tensor([output_size[1], output_size[0]])
    sparse = sampling_ratio > 0
    grids = torch.full_like(cell, sampling_ratio) if sparse else cell.ceil().clamp(min=0)
    (height, width), bins = input.shape[2:], output_size[0] * output_size[1]
    order, bags = [], _Bags(table)
    for across, down in torch.unique(grids, dim=0).int().tolist():
        members = (grids == grids.new_tensor([across, down])).all(1).nonzero().squeeze(1)
        for chosen in torch.split(members, max(1, MAX_SAMPLES // max(1, 4 * across * down * bins))):
            corner, side = start[chosen], cell[chosen]
            x, x_weight = _bins(corner[:, 0], side[:, 0], output_size[1], across, width, sparse)
            y, y_weight = _bins(corner[:, 1], side[:, 1], output_size[0], down, height, sparse)
            picture = rois[chosen, 0].to(torch.int32).view(-1, 1, 1, 1, 1) * (height * width)
            index = y[:, :, None, :, None] * width + x[:, None, :, None, :] + picture
            weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
            bags.add(index.flatten(3).flatten(0, 2), weight.flatten(3).flatten(0, 2))
            order.append(chosen)
    cells = bags.gather().view(len(rois), bins, -1)
    place = torch.cat(order).argsort()
    return cells[place].view(len(rois), *output_size, -1).permute(0, 3, 1, 2)


class _Bags:
    """Rows to gather, in bags of several sizes; at most about MAX_SAMPLES of them wait at a time."""

    def __init__(self, table: Tensor):
        self.table = table
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._count = 0
        self._done: list[Tensor] = []

    def add(self, index: Tensor, weight: Tensor) -> None:
        """(M, J) rows of the table and their weights: M bags."""
        self._waiting.append((index, weight))
        self._count += index.numel()
        if self._count >= MAX_SAMPLES:
            self._flush()

    def gather(self) -> Tensor:
        """(sum of M, C) in the order in which the bags came."""
        if self._waiting:
            self._flush()
        return torch.cat(self._done)

    def _flush(self) -> None:
        index, weight = (torch.cat([part.flatten() for part in parts]) for parts in zip(*self._waiting, strict=True))
        sizes = [index.new_full((len(part),), part.shape[1]) for part, _ in self._waiting]
        size = torch.cat(sizes)
        first = (size.cumsum(0) - size).to(index.dtype)
        self._done.append(F.embedding_bag(index, self.table, first, per_sample_weights=weight, mode="sum"))
        self._waiting, self._count = [], 0


def _bins(start: Tensor, cell: Tensor, bins: int, grid: int, size: int, sparse: bool) -> tuple[Tensor, Tensor]:
    """Along one axis: cells of the map that each bin of each region reads and their weights, both (R, bins, n).

    Positions more than one cell outside count as zero, other positions are moved to the border. Samples that are
    ``sparse`` have two cells each; others are at most one cell apart, so that a bin reads a run of ``grid + 1`` cells.
    """
    if grid == 0:  # a region of no size has no samples: one of weight 0
        return torch.zeros(len(start), bins, 1, dtype=torch.int32, device=start.device), start.new_zeros(
            len(start), bins, 1
        )
    number = torch.arange(bins, device=start.device)[:, None]
    step = torch.arange(grid, device=start.device) + 0.5
    position = start[:, None, None] + number * cell[:, None, None] + step * cell[:, None, None] / grid
    valid = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.floor()
    high_weight = position - low
    low = low.to(torch.int32)
    index = torch.cat((low, low + 1), dim=2)
    weight = torch.cat(((1 - high_weight) * valid, high_weight * valid), dim=2) / grid
    if not sparse:
        first = low[:, :, :1]
        run = torch.zeros(len(start), bins, grid + 1, dtype=weight.dtype, device=weight.device)
        weight = run.scatter_add_(2, (index - first).clamp_(max=grid).long(), weight)
        index = first + torch.arange(grid + 1, dtype=torch.int32, device=first.device)
    return index.clamp(max=size - 1), weight


@register("sigmoid_focal_loss", "torch", 20)
def sigmoid_focal_loss(logits: Tensor, targets: Tensor, gamma: float, alpha: float) -> Tensor:
    return class_focal_loss(logits, targets, alpha, gamma)


@register("ms_deform_attn", "torch", 20)
def ms_deform_attn(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    n, rows, heads, depth = value.shape
    shapes = [(h, w) for h, w in spatial_shapes.tolist()]
    starts: list[int] = level_start_index.tolist()
    if any(start + h * w > rows for start, (h, w) in zip(starts, shapes, strict=True)):
        raise ValueError(f"levels {shapes} starting at {starts} do not fit into {rows} rows of value")
    queries, points = locations.shape[1], locations.shape[4]
    picture = torch.arange(n, dtype=torch.int32, device=value.device).view(n, 1, 1, 1) * rows
    head = torch.arange(heads, dtype=torch.int32, device=value.device).view(1, 1, heads, 1)
    indices, factors = [], []
    for level, ((height, width), start) in enumerate(zip(shapes, starts, strict=True)):
        x, x_weight = _corners(locations[:, :, :, level, :, 0] * width - 0.5, width)
        y, y_weight = _corners(locations[:, :, :, level, :, 1] * height - 0.5, height)
        y_weight = y_weight * weights[:, :, :, level]
        row = y[:, None] * width + x[None] + start  # (2, 2, N, Q, M, P)
        indices.append((row + picture) * heads + head)
        factors.append(y_weight[:, None] * x_weight[None])
    bags = (n * queries * heads, len(shapes) * 4 * points)
    index = torch.stack(indices).permute(3, 4, 5, 0, 1, 2, 6).reshape(bags)
    factor = torch.stack(factors).permute(3, 4, 5, 0, 1, 2, 6).reshape(bags)
    out = _gather(value.reshape(-1, depth).contiguous(), index, factor)
    return out.view(n, queries, heads * depth)
