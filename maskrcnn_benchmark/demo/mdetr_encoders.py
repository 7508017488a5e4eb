"""``python -m maskrcnn_benchmark.demo.mdetr_encoders``: what the small MDETR of the drawn world starts from.

MDETR starts from a classifier of ImageNet and from RoBERTa, and then sees a million captions. Where all start from
nothing and there are few captions, the queries learn to find things long before they learn which of them is spoken of,
and that takes most of a training. So each part first learns what it can be told of the drawn world: the text encoder,
which colour and shape the phrase of each word is about; the body, which colour, shape and box is at each place; and
the joint encoder, which words speak of what is in each cell of the picture, or that none do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.drawn import Split, World, captions
from maskrcnn_benchmark.data.drawn.vocabulary import COLOURS, SHAPES
from maskrcnn_benchmark.data.drawn.words import phrases
from maskrcnn_benchmark.data.drawn.world import Picture
from maskrcnn_benchmark.demo.encoders import COLOUR, SHAPE, learn, pixels_of, places, read
from maskrcnn_benchmark.engine.rng import seed_all
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors.mdetr import Mdetr
from maskrcnn_benchmark.structures.boxes import xyxy_to_cxcywh
from maskrcnn_benchmark.structures.prompt import Span
from maskrcnn_benchmark.text.positive_map import WIDTH, entity_tokens
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer

SEED = 5  # of the pictures
POOL, MOST = 6000, 3  # pictures, things in a picture
PICTURES, PAIRS = 8, 16  # in a step: pictures alone, pictures with a text
PLACE = 8  # pixels from one place of a picture to the next
CAPTIONS = 3  # sentences about a picture; to them come its phrases
STEPS = {"text": 600, "pictures": 8000, "together": 2500}
BOX, ALIGN, TEMPERATURE = 5.0, 0.3, 0.07  # weights of losses, beside 1 for words
BACKGROUND = 0.1  # weight of a cell without a thing

Said = tuple[str, list[tuple[Span, tuple[int, ...]]]]  # a text, and of which things its phrases speak


@dataclass(frozen=True)
class Pool:
    """N pictures and what there is to know about them. Number MOST stands for the ground."""

    pixels: Tensor  # (N, 3, h, w) uint8
    owners: Tensor  # (N, h, w) uint8 number of the thing at each pixel
    colours: Tensor  # (N, MOST + 1) of the things
    shapes: Tensor  # (N, MOST + 1)
    boxes: Tensor  # (N, MOST + 1, 4) cx, cy, w, h as shares of the picture's sides
    said: list[list[Said]]

    def grid(self, chosen: Tensor, step: int) -> Tensor:
        """(B, h / step, w / step) number of the thing in the middle of each square of ``step`` pixels."""
        return self.owners[chosen, step // 2 :: step, step // 2 :: step].long()


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m maskrcnn_benchmark.demo.mdetr_encoders", description=__doc__)
    parser.add_argument("--config-file", default="configs/tiny/mdetr_drawn.yaml", help="(default %(default)s)")
    parser.add_argument(
        "--out", required=True, metavar="FILE.safetensors", help="all weights of a network to start from"
    )
    parser.add_argument("--text-steps", type=int, default=STEPS["text"], help="(default %(default)s)")
    parser.add_argument("--picture-steps", type=int, default=STEPS["pictures"], help="(default %(default)s)")
    parser.add_argument("--joint-steps", type=int, default=STEPS["together"], help="(default %(default)s)")
    args = parser.parse_args(argv)
    cfg = load_cfg(args.config_file)
    seed_all(cfg.SOLVER.SEED)
    detector = build_detector(cfg).train()
    assert isinstance(detector, Mdetr)
    tokenizer = load_tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE)
    read(detector.transformer.text_encoder, tokenizer, ("colour", "shape"), args.text_steps)
    side = cfg.INPUT.MIN_SIZE_TRAIN
    pool = make_pool(World(SEED, Split.TRAIN, (side, side), most=MOST), POOL)
    look(detector.body, cfg, pool, args.picture_steps)
    agree(detector, cfg, pool, tokenizer, args.joint_steps)
    print(save_weights(detector.state_dict(), args.out))


def make_pool(world: World, count: int) -> Pool:
    """The first pictures of a world, of MOST things at most."""
    rows, said = [], []
    for picture in world.pictures(count):
        rows.append(_known(picture))
        sentences: list[Said] = [
            (caption.text, [(phrase.span, phrase.items) for phrase in caption.phrases])
            for caption in captions(picture, CAPTIONS, picture.dice)
        ]
        for phrase in phrases(picture, picture.dice):
            sentences.append((phrase.text, [((0, len(phrase.text)), phrase.items)]))
        said.append(sentences)
    pixels, owners, colours, shapes, boxes = map(torch.stack, zip(*rows, strict=True))
    return Pool(pixels, owners, colours, shapes, boxes, said)


def _known(picture: Picture) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    height, width = picture.size
    owners = torch.full(picture.size, MOST, dtype=torch.uint8)
    colours, shapes = torch.full((MOST + 1,), len(COLOURS)), torch.full((MOST + 1,), len(SHAPES))
    boxes = torch.zeros(MOST + 1, 4)
    for number, item in enumerate(picture.items):
        owners[torch.from_numpy(item.mask)] = number
        colours[number], shapes[number] = COLOUR[item.colour], SHAPE[item.shape]
        boxes[number] = xyxy_to_cxcywh(torch.tensor(item.box) / torch.tensor([width, height, width, height]))
    return torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1), owners, colours, shapes, boxes


def at(table: Tensor, grid: Tensor) -> Tensor:
    """(B, K, ...) values of things, (B, h, w) numbers of things -> (B, h, w, ...)."""
    return table[torch.arange(len(table))[:, None, None], grid]


def look(body: nn.Module, cfg: Cfg, pool: Pool, steps: int) -> None:
    """The body learns, at several places of each cell of its last map, colour, shape and box of what is there."""
    fine = (16 if cfg.MODEL.MDETR.DILATION else 32) // PLACE  # places along a side of a cell
    pixels = pixels_of(cfg)
    channels: Sequence[int] = body.channels  # type: ignore[assignment]
    colour, shape, box = (
        nn.Conv2d(channels[-1], count * fine**2, 1) for count in (len(COLOURS) + 1, len(SHAPES) + 1, 4)
    )
    dice = torch.Generator().manual_seed(SEED)

    def loss() -> Tensor:
        chosen = torch.randperm(len(pool.pixels), generator=dice)[:PICTURES]
        features, grid = body(pixels(pool.pixels[chosen]))[-1], pool.grid(chosen, PLACE)
        found = F.pixel_shuffle(box(features), fine).permute(0, 2, 3, 1)
        thing = grid < MOST
        return (
            places(F.pixel_shuffle(colour(features), fine), at(pool.colours[chosen], grid))
            + places(F.pixel_shuffle(shape(features), fine), at(pool.shapes[chosen], grid))
            + BOX * F.l1_loss(found[thing], at(pool.boxes[chosen], grid)[thing])
        )

    learn("pictures", loss, [*body.parameters(), *box.parameters()], nn.ModuleList([colour, shape]), steps)


def agree(detector: Mdetr, cfg: Cfg, pool: Pool, tokenizer: Tokenizer, steps: int) -> None:
    """Joint encoder and heads learn at each cell the words and the box of its thing; the body rests."""
    pixels, transformer, dice = pixels_of(cfg), detector.transformer, Random(SEED)
    with torch.no_grad():
        last = torch.cat([detector.body(pixels(raw))[-1] for raw in pool.pixels.split(50)])
    padding = torch.zeros(PAIRS, *last.shape[2:], dtype=torch.bool)
    where = detector.backbone[1](padding, last.dtype)
    step = pool.pixels.shape[2] // last.shape[2]

    def loss() -> Tensor:
        numbers = dice.sample(range(len(last)), PAIRS)
        chosen, said = torch.tensor(numbers), [dice.choice(pool.said[number]) for number in numbers]
        text = tokenizer.encode([sentence for sentence, _ in said])
        features = transformer.encode_text(text.input_ids, text.attention_mask)
        memory = transformer.encode(detector.input_proj(last[chosen]), padding, where, features)
        cells = transformer.decoder.norm(memory.places[:, memory.cells])
        wanted = torch.stack(
            [
                words_of(entity_tokens(text, row, [[span] for span, _ in named], WIDTH), named)
                for row, (_, named) in enumerate(said)
            ]
        )
        grid = pool.grid(chosen, step)
        return _cell_losses(
            detector,
            cells,
            memory.text,
            at(wanted, grid).flatten(1, 2),
            at(pool.boxes[chosen], grid).flatten(1, 2),
            (grid < MOST).flatten(1),
        )

    slow = list(transformer.text_encoder.parameters())
    resting = ("backbone.", "query_embed.", "transformer.decoder.layers.", "transformer.text_encoder.")
    learnt = [value for name, value in detector.named_parameters() if not name.startswith(resting)]
    learn("together", loss, learnt, nn.ModuleList(), steps, slow)


def words_of(tokens: Tensor, named: Sequence[tuple[Span, tuple[int, ...]]]) -> Tensor:
    """(K, WIDTH) tokens of phrases -> (MOST + 1, WIDTH) shares of tokens for each thing; the last one: none."""
    rows = torch.zeros(MOST + 1, WIDTH)
    for phrase, (_, items) in zip(tokens, named, strict=True):
        rows[list(items)] += phrase
    rows = (rows > 0).float()
    rows[~rows.any(1), -1] = 1
    return rows / rows.sum(1, keepdim=True)


def _cell_losses(detector: Mdetr, cells: Tensor, text: Tensor, wanted: Tensor, boxes: Tensor, thing: Tensor) -> Tensor:
    """As for queries: (B, S, D), (B, T, D), (B, S, WIDTH), (B, S, 4), (B, S)."""
    named = wanted[..., -1] == 0
    logits, found = detector.answer(cells)
    weight = torch.where(thing, 1.0, BACKGROUND)
    words = (-(logits.log_softmax(-1) * wanted).sum(-1) * weight).sum() / weight.sum()
    total = words + BOX * F.l1_loss(found[thing], boxes[thing])
    image, language = detector.contrastive_align_projection_image, detector.contrastive_align_projection_text
    if image is None or language is None:
        return total
    near = F.normalize(image(cells), dim=-1) @ F.normalize(language(text), dim=-1).mT / TEMPERATURE
    return total - ALIGN * (near.log_softmax(-1) * wanted[..., : text.shape[1]]).sum(-1)[named].mean()


if __name__ == "__main__":
    sys.exit(cli.run(main))
