#!/usr/bin/env python3
"""Time a training step of MDETR beside one in the form of the original, and a picture; with and without masks.

    python benchmarks/mdetr.py --body R-101-MDETR --size 320x416 --batch 2
    python benchmarks/mdetr.py --answers

Random weights and noise; each picture has 6 boxes and a caption of 24 tokens. The original
(https://github.com/ashkamath/mdetr) matches and adds up losses layer by layer over all pairs of the batch, collects the
tokens of boxes one by one, and makes masks of all queries; here the matching is done per picture for all layers, and
masks are made of matched queries alone. Both give the same losses, which is checked. Each row is a process of its own;
seconds are those of the processor, the best of ``--repeats`` steps after one to warm up.

``--answers`` finds what a caption of 15 tokens names in a picture of 480 x 640, masks of as many queries as ``--kept``
says. The original makes masks of all 100: 5.74 s, and 1.89 s without masks, with ResNet-101 on one core of the machine
where that was measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Sequence

import numpy as np
import torch
from fiber import clock, gemm_gflops
from prettytable import PrettyTable
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.layers.losses import alignment_loss
from maskrcnn_benchmark.modeling.assign.hungarian import Pairs
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.criterion.set import Objects, SetCriterion, objects_of
from maskrcnn_benchmark.modeling.detectors.mdetr import Mdetr
from maskrcnn_benchmark.modeling.detectors.mdetr_segm import MdetrSegm
from maskrcnn_benchmark.modeling.heads.outputs import QueryOutputs
from maskrcnn_benchmark.modeling.heads.query_decode import object_scores
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Prompt, Target, TextBatch
from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy, giou

BOXES, TOKENS = 6, 24
PICTURE, CAPTION = (480, 640), 15  # pixels, tokens: of an answer
FORMS = ("original", "here")
PARTS = ("forward and losses", "backward")
Matched = tuple[np.ndarray, np.ndarray]  # of a picture: queries, and the objects that they have
Row = tuple[dict[str, float], dict[str, float], float]  # seconds of parts, losses, peak memory in GiB


def make_batch(count: int, height: int, width: int, masks: bool) -> Batch:
    """Noise; box ``i`` of a picture is named by three tokens."""
    metas = tuple(ImageMeta(index, (height, width), (height, width)) for index in range(count))
    targets = []
    for meta in metas:
        corners = torch.rand(BOXES, 2, 2).sort(dim=1).values * torch.tensor([width - 9.0, height - 9.0])
        boxes = torch.cat((corners[:, 0], corners[:, 1] + 8), dim=1)
        rows = torch.zeros(BOXES, 256)
        for box in range(BOXES):
            rows[box, 1 + 3 * box : 4 + 3 * box] = 1
        own = torch.zeros(BOXES, height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(own, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        labels = torch.ones(BOXES, dtype=torch.int64)
        targets.append(Target(boxes, labels, meta, positive_map=rows, masks=own if masks else None))
    ids = torch.randint(4, 1000, (count, TOKENS))
    text = TextBatch((Prompt("", (), ()),) * count, ids, torch.ones_like(ids), (torch.zeros(0, TOKENS).bool(),) * count)
    return Batch(ImageBatch(torch.randn(count, 3, height, width), metas), targets, text)


def match_layer(outputs: QueryOutputs, layer: int, objects: Objects) -> list[Matched]:
    """The pairs of one layer from the costs of all queries of the batch with all of its objects."""
    logits, found = outputs.logits[layer].detach(), outputs.boxes[layer].detach()
    batch, queries = logits.shape[:2]
    spoken = (logits.softmax(-1).flatten(0, 1)[:, None] * objects.tokens[None]).sum(-1)
    distance = torch.cdist(found.flatten(0, 1), objects.boxes, p=1)
    overlap = giou(cxcywh_to_xyxy(found.flatten(0, 1)), cxcywh_to_xyxy(objects.boxes))
    costs = (5 * distance - spoken - 2 * overlap).view(batch, queries, -1).cpu()
    return [linear_sum_assignment(cost[i].numpy()) for i, cost in enumerate(costs.split(objects.counts, -1))]


def layer_losses(
    criterion: SetCriterion, outputs: QueryOutputs, layer: int, objects: Objects, rows: Sequence[Matched]
) -> dict[str, Tensor]:
    """Sums of one layer, with a loop over pictures and objects; ``rows`` are its pairs."""
    logits, firsts = outputs.logits[layer], [sum(objects.counts[:i]) for i in range(len(rows))]
    wanted = torch.zeros_like(logits)
    wanted[..., -1] = 1
    weight = torch.full(logits.shape[:2], criterion.no_object)
    own, true = [], []
    together = None
    if outputs.queries is not None and outputs.tokens is not None:
        similar = outputs.queries[layer] @ outputs.tokens.transpose(1, 2) / criterion.temperature
        together = torch.zeros_like(similar, dtype=torch.bool)
    for i, (queries, numbers) in enumerate(rows):
        for query, number in zip(queries.tolist(), numbers.tolist(), strict=True):
            wanted[i, query] = objects.tokens[firsts[i] + number]
            weight[i, query] = 1
            own.append(outputs.boxes[layer][i, query])
            true.append(objects.boxes[firsts[i] + number])
            for token in objects.tokens[firsts[i] + number].nonzero().flatten().tolist():
                if together is not None:
                    together[i, query, token] = True
    boxes, targets_ = torch.stack(own), torch.stack(true)
    sums = {
        "loss_ce": -((logits.log_softmax(-1) * wanted).sum(-1) * weight).sum(),
        "loss_bbox": (boxes - targets_).abs().sum(),
        "loss_giou": (1 - giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets_)).diagonal()).sum(),
    }
    if together is not None:
        sums["loss_contrastive_align"] = alignment_loss(similar, together).sum()
    return sums


def original_losses(
    criterion: SetCriterion, outputs: QueryOutputs, targets: Sequence[Target], masks: Tensor | None
) -> dict[str, Tensor]:
    """All losses in the form of the original; ``masks`` (B * Q, h, w) are those of all queries, or None."""
    objects = objects_of(targets, outputs.logits.shape[-1])
    last, terms = len(outputs.logits) - 1, {}
    for layer in range(len(outputs.logits)):
        rows = match_layer(outputs, layer, objects)
        ending = "" if layer == last else f"_{layer}"
        for name, value in layer_losses(criterion, outputs, layer, objects, rows).items():
            terms[name + ending] = value / sum(objects.counts)
        if masks is not None and layer == last:
            firsts = [sum(objects.counts[:i]) for i in range(len(targets))]
            picture = torch.cat([torch.full((len(queries),), i) for i, (queries, _) in enumerate(rows)])
            query = torch.cat([torch.from_numpy(queries) for queries, _ in rows])
            target = torch.cat(
                [torch.from_numpy(numbers) + first for (_, numbers), first in zip(rows, firsts, strict=True)]
            )
            pairs = Pairs(picture, query, target)
            chosen = masks[picture * outputs.logits.shape[2] + query]
            for name, value in criterion._masks(chosen, targets, pairs):
                terms[name] = value / sum(objects.counts)
    return terms


def step(model: Mdetr | MdetrSegm, batch: Batch, form: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the parts of a step, and its losses."""
    model.zero_grad()
    start = clock()
    if form == "here":
        losses = model(batch)
        terms, total = losses.terms, losses.total()
    else:
        terms, total = original_form(model, batch)
    middle = clock()
    total.backward()
    times = dict(zip(PARTS, (middle - start, clock() - middle), strict=True))
    return times, {name: float(term.detach()) for name, term in terms.items()}


def original_form(model: Mdetr | MdetrSegm, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Losses, and their weighted sum."""
    detr = model.detr if isinstance(model, MdetrSegm) else model
    assert batch.text is not None
    image, text = model.encode_image(batch.images), model.encode_text(batch.text)
    seen = detr.look(image, text)
    outputs = detr.predict(seen, text.features)
    masks = None
    if isinstance(model, MdetrSegm):
        count, queries = outputs.logits.shape[1:3]
        everyone = torch.arange(count).repeat_interleave(queries), torch.arange(queries).repeat(count)
        masks = model.masks(image.features, seen, *everyone)
    terms = original_losses(detr.criterion, outputs, batch.targets, masks)
    weights = {name: detr.criterion.weights[name.rstrip("_0123456789")] for name in terms}
    return terms, torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def measure(
    body: str, masks: bool, form: str, batch_size: int, size: tuple[int, int], repeats: int, more: Sequence[str]
) -> Row:
    """In a process of its own."""
    torch.set_num_threads(1)
    opts = ["MODEL.META_ARCHITECTURE", "MDETR_SEGM" if masks else "MDETR", "MODEL.BACKBONE.CONV_BODY", body]
    opts += ["MODEL.MDETR.DROPOUT", "0.0", "MODEL.LANGUAGE_BACKBONE.DROPOUT", "0.0", "MODEL.DEVICE", "cpu", *more]
    torch.manual_seed(0)
    model = build_detector(load_cfg("configs/base/mdetr.yaml", opts=opts)).train()
    assert isinstance(model, (Mdetr, MdetrSegm))
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0  # both forms see the same
    batch = make_batch(batch_size, *size, masks)
    rows = [step(model, batch, form) for _ in range(repeats + 1)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return min((times for times, _ in rows[1:]), key=lambda times: sum(times.values())), rows[0][1], peak


@torch.inference_mode()
def answer(body: str, kept: int | None, repeats: int) -> dict[str, float]:
    """Seconds of the parts of an answer, in a process of its own; ``kept`` queries have masks, None: boxes alone."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    opts = ["MODEL.META_ARCHITECTURE", "MDETR" if kept is None else "MDETR_SEGM", "MODEL.BACKBONE.CONV_BODY", body]
    model = build_detector(load_cfg("configs/base/mdetr.yaml", opts=opts)).eval()
    images = ImageBatch(torch.randn(1, 3, *PICTURE), (ImageMeta(0, PICTURE, PICTURE),))
    ids = torch.randint(4, 50000, (1, CAPTION))
    text = TextBatch((Prompt("x", (), ()),), ids, torch.ones_like(ids), (torch.zeros(0, CAPTION, dtype=torch.bool),))
    if kept is not None:
        assert isinstance(model, MdetrSegm)
        logits, _ = model.detr.answer(model.detr.look(model.encode_image(images), model.encode_text(text)).states[-1])
        scores = object_scores(logits)[0].sort(descending=True).values
        model.threshold = float(scores[kept]) if kept < len(scores) else 0.0
    rows = []
    for _ in range(repeats + 1):
        times = [clock()]
        image = model.encode_image(images)
        times.append(clock())
        state = model.encode_text(text)
        times.append(clock())
        model.detect(image, state)
        times.append(clock())
        rows.append({name: times[i + 1] - times[i] for i, name in enumerate(("picture", "text", "both"))})
    return min(rows[1:], key=lambda row: sum(row.values()))


def answers(body: str, kept: Sequence[int], repeats: int) -> None:
    """Print the seconds of an answer, without masks and with them."""
    table = PrettyTable(["", "picture", "text", "both", "sum"], align="r")
    for count in (None, *kept):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            times = pool.apply(answer, (body, count, repeats))
        name = "boxes" if count is None else f"masks of {count} queries"
        table.add_row([name, *(f"{value:.2f} s" for value in (*times.values(), sum(times.values())))])
    print(table)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--body", default="R-101-MDETR", help="MODEL.BACKBONE.CONV_BODY (default %(default)s)")
    parser.add_argument("--size", default="320x416", help="height x width in pixels (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="pictures in a step (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--answers", action="store_true", help="time answers, not steps")
    parser.add_argument("--kept", type=int, nargs="*", default=[5, 100], help="queries with masks (default 5 100)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of the config")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    height, width = map(int, args.size.split("x"))
    seen = f"{PICTURE[0]}x{PICTURE[1]}" if args.answers else f"{args.batch} x {args.size}"
    print(f"{args.body}, {seen}, 1 thread, GEMM {gemm_gflops():.0f} GFLOP/s")
    if args.answers:
        return answers(args.body, args.kept, args.repeats)
    table = PrettyTable(["", "form", *PARTS, "step", "peak memory"], align="r")
    for masks in (False, True):
        found: dict[str, Row] = {}
        for form in FORMS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                given = (args.body, masks, form, args.batch, (height, width), args.repeats, args.opts)
                found[form] = pool.apply(measure, given)
            times, _, peak = found[form]
            seconds = [f"{value:.2f} s" for value in (*times.values(), sum(times.values()))]
            table.add_row(["with masks" if masks else "boxes", form, *seconds, f"{peak:.2f} GiB"])
        one, other = (found[form][1] for form in FORMS)
        far = max(abs(other[name] - value) / max(1, abs(value)) for name, value in one.items())
        print(f"{'with masks' if masks else 'boxes'}: {len(one)} losses of both forms differ by at most {far:.1e}")
    print(table)


if __name__ == "__main__":
    main()
