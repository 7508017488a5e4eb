"""``python -m maskrcnn_benchmark.demo.encoders``: what the small FIBER of the drawn world starts from.

FIBER starts from RoBERTa and from a Swin that knows ImageNet. Where both start from nothing, the losses for boxes make
the picture's features forget colours before the words can ask for them, and that lasts. So each encoder first learns
alone what it can be told of the drawn world: the text, which colour and shape the phrase of each word is about; Swin
and its pyramid, which colour and shape is at each place.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.drawn import Split, World, captions, expressions
from maskrcnn_benchmark.data.drawn.vocabulary import COLOURS, SHAPES, allowed
from maskrcnn_benchmark.data.drawn.words import PLURALS
from maskrcnn_benchmark.data.drawn.world import Picture
from maskrcnn_benchmark.data.transforms import Normalise
from maskrcnn_benchmark.engine.rng import seed_all
from maskrcnn_benchmark.modeling.backbone.fused import SwinFpn
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta
from maskrcnn_benchmark.structures.prompt import Span
from maskrcnn_benchmark.text.encoder import TextEncoder
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer

WORLD = {"text": 7, "pictures": 4}  # seeds
SIZE = (160, 160)  # of the pictures
SCENES = 600  # that the sentences are about
TEXTS, PICTURES = 32, 8  # in a step
STEPS = {"text": 300, "pictures": 2000}
RATE, WARMUP, LAST_RATE, DECAY = 1e-3, 100, 0.02, 0.01  # LAST_RATE: part of RATE that the last step has
SLOW = 0.1  # part of RATE for what is to change little
FEWEST, MOST = 8, 20  # names in a prompt
BACKGROUND = 0.1  # weight of a place without a thing
IGNORED = -100
STRIDES = (8, 16, 32)
PARTS = ("language_backbone.body.model", "backbone")

COLOUR = {name: number for number, name in enumerate(COLOURS)}
SHAPE = {name: number for number, name in enumerate(SHAPES)}
SHAPE_WORDS = {PLURALS.get(name, f"{name}s"): number for name, number in SHAPE.items()} | SHAPE

Told = tuple[str, list[Span]]  # a text, and where its phrases are


@dataclass(frozen=True)
class Heads:
    """What reads colour and shape from features; thrown away in the end. One class more stands for neither."""

    colour: nn.Module
    shape: nn.Module

    def parameters(self) -> list[nn.Parameter]:
        return [*self.colour.parameters(), *self.shape.parameters()]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m maskrcnn_benchmark.demo.encoders", description=__doc__)
    parser.add_argument("--config-file", default="configs/tiny/fiber_tiny.yaml", help="(default %(default)s)")
    parser.add_argument(
        "--out", required=True, metavar="FILE.safetensors", help="all weights of a network to start from"
    )
    parser.add_argument("--text-steps", type=int, default=STEPS["text"], help="(default %(default)s)")
    parser.add_argument("--picture-steps", type=int, default=STEPS["pictures"], help="(default %(default)s)")
    args = parser.parse_args(argv)
    cfg = load_cfg(args.config_file)
    seed_all(cfg.SOLVER.SEED)
    detector = build_detector(cfg).train()
    tokenizer = load_tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE)
    text, pictures = (detector.get_submodule(f"fusion_backbone.{part}") for part in PARTS)
    read(cast(TextEncoder, text), tokenizer, args.text_steps)
    look(cast(SwinFpn, pictures), pixels_of(cfg), cfg.MODEL.BACKBONE.OUT_CHANNELS, args.picture_steps)
    print(save_weights(detector.state_dict(), args.out))


def read(encoder: TextEncoder, tokenizer: Tokenizer, steps: int) -> None:
    """The text encoder learns colour and shape of the phrase that each word belongs to; layers for pictures rest."""
    width, limit = encoder.config.hidden, encoder.config.max_tokens
    heads = Heads(nn.Linear(width, len(COLOUR) + 1), nn.Linear(width, len(SHAPE) + 1))
    parameters = [value for name, value in encoder.named_parameters() if "t2i" not in name]
    told = texts(Random(WORLD["text"]))

    def loss() -> Tensor:
        rows = [tagged(tokenizer, *next(told), limit) for _ in range(TEXTS)]
        ids, colour, shape = (
            nn.utils.rnn.pad_sequence(list(column), True, padding)
            for column, padding in zip(zip(*rows, strict=True), (tokenizer.pad_id, IGNORED, IGNORED), strict=True)
        )
        present = (ids != tokenizer.pad_id).long()
        hidden = encoder.run(encoder.embed(ids, present), present, 0, len(encoder.layers))
        return F.cross_entropy(heads.colour(hidden).mT, colour) + F.cross_entropy(heads.shape(hidden).mT, shape)

    learn("text", loss, parameters, [heads], steps)


def texts(rng: Random) -> Iterator[Told]:
    """Prompts of class names, and sentences about drawn scenes, without end."""
    pairs, sentences = allowed(Split.TRAIN), []
    for picture in World(WORLD["text"], Split.TRAIN, size=(96, 96)).pictures(SCENES):
        found = captions(picture, 3, picture.dice)
        sentences += [(caption.text, [phrase.span for phrase in caption.phrases]) for caption in found]
        sentences += [(said.text, [said.root]) for said in expressions(picture, picture.dice)]
    while True:
        yield rng.choice(sentences) if rng.random() < 0.4 else _prompt(rng.sample(pairs, rng.randint(FEWEST, MOST)))


def _prompt(names: Sequence[str]) -> Told:
    begins = [sum(len(name) + 2 for name in names[:place]) for place in range(len(names))]
    return ". ".join(names), [(begin, begin + len(name)) for begin, name in zip(begins, names, strict=True)]


def tagged(tokenizer: Tokenizer, text: str, phrases: Sequence[Span], limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """(L,) ids of a text, and for each of its tokens the colour and the shape that its phrase speaks of."""
    encoded = tokenizer.encode([text], max_length=limit)
    colour, shape = (
        torch.full_like(encoded.input_ids[0], len(COLOUR)),
        torch.full_like(encoded.input_ids[0], len(SHAPE)),
    )
    offsets = encoded.offsets(0)
    for begin, end in phrases:
        words = [word.strip(".,") for word in text[begin:end].lower().split()]
        inside = [place for place, (first, last) in enumerate(offsets) if begin <= first < last <= end]
        colour[inside] = next((COLOUR[word] for word in words if word in COLOUR), len(COLOUR))
        shape[inside] = next((SHAPE_WORDS[word] for word in words if word in SHAPE_WORDS), len(SHAPE))
    return encoded.input_ids[0], colour, shape


def look(backbone: SwinFpn, pixels: Callable[[Tensor], Tensor], width: int, steps: int) -> None:
    """Swin and its pyramid (of ``width``) learn colour and shape at each place of three maps; layers for text rest."""
    world = World(WORLD["pictures"], Split.TRAIN, SIZE)
    heads = [Heads(nn.Conv2d(width, len(COLOUR) + 1, 1), nn.Conv2d(width, len(SHAPE) + 1, 1)) for _ in STRIDES]
    parameters = [value for name, value in backbone.named_parameters() if "i2t" not in name]
    numbers = count(1)

    def loss() -> Tensor:
        scenes = [world[next(numbers)] for _ in range(PICTURES)]
        colour, shape = (torch.stack(column) for column in zip(*map(painted, scenes), strict=True))
        raw = torch.stack([torch.from_numpy(scene.pixels.copy()).permute(2, 0, 1) for scene in scenes])
        total = raw.new_zeros((), dtype=torch.float32)
        for head, features, stride in zip(heads, backbone(pixels(raw)), STRIDES, strict=False):
            centres = (slice(None), slice(stride // 2, None, stride), slice(stride // 2, None, stride))
            total = total + places(head.colour(features), colour[centres])
            total = total + places(head.shape(features), shape[centres])
        return total

    learn("pictures", loss, parameters, heads, steps)


def painted(scene: Picture) -> tuple[Tensor, Tensor]:
    """(h, w) number of the colour and of the shape at each pixel."""
    colour, shape = torch.full(scene.size, len(COLOUR)), torch.full(scene.size, len(SHAPE))
    for item in scene.items:
        mask = torch.from_numpy(item.mask)
        colour[mask], shape[mask] = COLOUR[item.colour], SHAPE[item.shape]
    return colour, shape


def places(scores: Tensor, truth: Tensor) -> Tensor:
    weight = scores.new_ones(scores.shape[1])
    weight[-1] = BACKGROUND
    return F.cross_entropy(scores, truth, weight)


def pixels_of(cfg: Cfg) -> Callable[[Tensor], Tensor]:
    """From (B, 3, h, w) red, green, blue to what the network of a config gets."""
    normalise = Normalise(tuple(cfg.INPUT.PIXEL_MEAN), tuple(cfg.INPUT.PIXEL_STD), cfg.INPUT.TO_BGR255)

    def run(raw: Tensor) -> Tensor:
        metas = tuple(
            ImageMeta(number, (raw.shape[2], raw.shape[3]), (raw.shape[2], raw.shape[3])) for number in range(len(raw))
        )
        return normalise(ImageBatch(raw, metas)).pixels

    return run


def learn(
    what: str,
    loss: Callable[[], Tensor],
    parameters: list[nn.Parameter],
    heads: Sequence[Heads],
    steps: int,
    slow: Sequence[nn.Parameter] = (),
) -> None:
    """Training of ``parameters`` and heads; those that are ``slow`` have a tenth of the rate."""
    every = [*parameters, *(value for head in heads for value in head.parameters())]
    groups = [{"params": every, "share": 1.0}, {"params": list(slow), "share": SLOW}]
    optimizer = torch.optim.AdamW(groups, RATE, weight_decay=DECAY)
    with tqdm(range(steps), desc=what, unit="step") as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * RATE * min(1, (step + 1) / WARMUP) * max(LAST_RATE, 1 - step / steps)
            value = loss()
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_([*parameters, *slow], 1.0)
            optimizer.step()
            bar.set_postfix(loss=f"{value.item():.3f}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
