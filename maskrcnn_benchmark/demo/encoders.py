"""``python -m maskrcnn_benchmark.demo.encoders``: what the small FIBER of the drawn world starts from.

FIBER starts from RoBERTa and from a Swin that knows ImageNet. Where both start from nothing, the losses for boxes make
the picture's features forget colours before the words can ask for them, and that lasts. So each encoder first learns
alone what it can be told of the drawn world: the text, which colour, shape, texture and size the phrase of each word is
about, and which side of the picture a sentence asks for; Swin and its pyramid, the same of what is at each place, and
where in the picture that place is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import count
from random import Random
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import read_state_dict, save_weights
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.drawn import Caption, Split, World, captions, expressions
from maskrcnn_benchmark.data.drawn.captions import lists
from maskrcnn_benchmark.data.drawn.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES, allowed
from maskrcnn_benchmark.data.drawn.words import ORDINALS, PLURALS, Description, matching
from maskrcnn_benchmark.data.drawn.world import Picture
from maskrcnn_benchmark.data.transforms import Normalise
from maskrcnn_benchmark.engine.rng import seed_all
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.modeling.backbone.fused import SwinFpn
from maskrcnn_benchmark.modeling.backbone.language import LanguageFeatures
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors.grounding import FiberDetector
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta
from maskrcnn_benchmark.structures.prompt import Span
from maskrcnn_benchmark.text.encoder import TextEncoder
from maskrcnn_benchmark.text.positive_map import entity_tokens
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer

WORLD = {"text": 7, "pictures": 4, "together": 8}  # seeds
SIZE = (160, 160)  # of the pictures
SCENES = 600  # that the sentences are about
TEXTS, PICTURES = 32, 8  # in a step
STEPS = {"text": 800, "pictures": 3000, "together": 800}
LOOSE = 500  # steps before the words of names are drawn to sums
IMPOSSIBLE = -1e4
BESIDE = {"colour": "shape", "shape": "colour"}
RATE, WARMUP, LAST_RATE, DECAY = 1e-3, 100, 0.02, 0.01  # LAST_RATE: part of RATE that the last step has
SLOW = 0.1  # part of RATE for what is to change little
FEWEST, MOST = 8, 20  # names in a prompt
SENTENCES = 8  # about a picture
NAMED = (("shape", "colour"), ("shape", "colour"), ("shape",), ("colour",))
"""What a name of a thing says, as often as it is here."""
BACKGROUND = 0.1  # weight of a place without a thing
IGNORED = -100
STRIDES = (8, 16, 32)
HALVES = tuple(stride // 2 for stride in STRIDES)

COLOUR = {name: number for number, name in enumerate(COLOURS)}
SHAPE = {name: number for number, name in enumerate(SHAPES)}
FACTS: dict[str, dict[str, int]] = {
    "colour": COLOUR,
    "shape": {PLURALS.get(name, f"{name}s"): number for name, number in SHAPE.items()} | SHAPE,
    "texture": {name: number for number, name in enumerate(TEXTURES[1:])},
    "size": {name: number for number, name in enumerate(filter(None, SIZES))},
}
"""Attribute of a thing -> word for a value of it -> number. The number after the last one stands for none of them."""
SIDES = ({"left", "leftmost"}, {"right", "rightmost"}, {"top", "above"}, {"bottom", "below"})
"""Words that ask for a side of the picture."""
PARTS = {"text": "fusion_backbone.language_backbone.", "pictures": "fusion_backbone.backbone."}
"""Lesson -> names of the weights that it changes."""
PLACE = "place"  # beside the facts: which side a sentence asks for, the how manieth from there; where a place is
NOWHERE = len(SIDES)
EVERYTHING = (*FACTS, PLACE)
WEIGHT = {"texture": 0.25, "size": 0.25, PLACE: 0.5}
"""Of what is seen of a picture; that of others is 1: names of things are colours and shapes."""

Told = tuple[str, list[tuple[Span, str]]]
"""A text, where its phrases are, and the expression that each of them belongs to, or ""."""


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    cfg = load_cfg(args.config_file, opts=args.opts)
    seed_all(cfg.SOLVER.SEED)
    detector = build_detector(cfg).train()
    tokenizer = load_tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE)
    if not isinstance(detector, FiberDetector):
        raise ConfigError(f"{args.config_file} is not of FIBER: give the config of a small FIBER")
    start(detector, args.weights)
    parts, pixels, apart = detector.fusion_backbone, pixels_of(cfg), not args.plain
    if "text" in args.lessons:
        read(parts.language_backbone.body.model, tokenizer, args.facts, args.text_steps, apart=apart)
    if "pictures" in args.lessons:
        look(parts.backbone, pixels, cfg.MODEL.BACKBONE.OUT_CHANNELS, args.facts, args.picture_steps, apart=apart)
    if "together" in args.lessons:
        agree(detector, pixels, tokenizer, args.joint_steps)
    kept = detector.state_dict()
    if len(args.lessons) == 1 and (part := PARTS.get(args.lessons[0])):
        kept = {name: value for name, value in kept.items() if name.startswith(part)}
    print(save_weights(kept, args.out))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m maskrcnn_benchmark.demo.encoders", description=__doc__)
    add = parser.add_argument
    add("--config-file", default="configs/tiny/fiber_tiny.yaml", help="(default %(default)s)")
    add("--out", required=True, metavar="FILE.safetensors", help="weights to start from; of one lesson, its encoder's")
    add("--lessons", nargs="+", choices=STEPS, default=list(STEPS), help="(default: all)")
    add("--weights", nargs="+", default=(), metavar="FILE", help="what other lessons wrote")
    add("--text-steps", type=int, default=STEPS["text"], help="(default %(default)s)")
    add("--picture-steps", type=int, default=STEPS["pictures"], help="(default %(default)s)")
    add("--joint-steps", type=int, default=STEPS["together"], help="(default %(default)s)")
    add("--facts", nargs="+", choices=EVERYTHING, default=EVERYTHING, help="to learn (default: all)")
    add("--plain", action="store_true", help="pairs of facts that no picture shows count against each of the two")
    add("--opts", nargs="*", default=(), metavar="KEY VALUE", help=cli.OPTS_HELP)
    return parser.parse_args(argv)


def start(detector: FiberDetector, files: Sequence[str]) -> None:
    """Load what earlier lessons wrote.

    Raises:
        WeightsError: a file has a weight that the network of the config lacks, or of another shape.
    """
    own = detector.state_dict()
    for file in files:
        for name, value in read_state_dict(file).items():
            if name not in own or own[name].shape != value.shape:
                raise WeightsError(
                    f"--weights {file!r}: {name} {tuple(value.shape)} is not of the network of the config"
                )
            own[name] = value
    detector.load_state_dict(own)


def read(encoder: TextEncoder, tokenizer: Tokenizer, facts: Sequence[str], steps: int, *, apart: bool = False) -> None:
    """The text encoder learns facts about the phrase that each word belongs to; layers for pictures rest.

    Args:
        encoder: Of text.
        tokenizer: Of its words.
        facts: Of :data:`EVERYTHING`.
        steps: Of training.
        apart: What is said of one fact shall not depend on another one, see :func:`possible` and :class:`Sums`.
    """
    width, limit = encoder.config.hidden, encoder.config.max_tokens
    counts = [count for fact in facts for count in ((NOWHERE, len(ORDINALS)) if fact == PLACE else (values(fact),))]
    heads = nn.ModuleList(nn.Linear(width, count + 1) for count in counts)
    parameters = [value for name, value in encoder.named_parameters() if "t2i" not in name]
    told = texts(Random(WORLD["text"]), PLACE in facts)
    sums = Sums(facts, width) if apart else None
    numbers = count(1)

    def loss() -> Tensor:
        rows = [tagged(tokenizer, next(told), facts, limit) for _ in range(TEXTS)]
        ids, *truths = (
            nn.utils.rnn.pad_sequence(list(column), True, padding)
            for column, padding in zip(
                zip(*rows, strict=True), (tokenizer.pad_id, *[IGNORED] * len(counts)), strict=True
            )
        )
        present = (ids != tokenizer.pad_id).long()
        hidden = encoder.run(encoder.embed(ids, present), present, 0, len(encoder.layers))
        truth = dict(zip(facts, truths, strict=False))
        terms = []
        for fact, head, row in zip([*facts, PLACE], heads, truths, strict=False):
            if (row != IGNORED).any():
                scores = possible(head(hidden), fact, truth, -1) if apart else head(hidden)
                terms.append(F.cross_entropy(scores.mT, row))
        if sums is not None:
            terms.append(sums(hidden if next(numbers) > LOOSE else hidden.detach(), truths))
        return sum_of(terms)

    learn("text", loss, parameters, nn.ModuleList([heads, sums] if sums else [heads]), steps)


class Sums(nn.Module):
    """How far the words of names are from sums of one vector for each fact, which say nothing of facts together.

    So what is learned of the words for pairs that were seen holds for pairs that never were.
    """

    def __init__(self, facts: Sequence[str], width: int) -> None:
        super().__init__()
        self.facts = [fact for fact in facts if fact != PLACE]
        self.parts = nn.ModuleList(nn.Embedding(values(fact) + 1, width) for fact in self.facts)

    def forward(self, hidden: Tensor, truths: Sequence[Tensor]) -> Tensor:
        """Mean squared difference.

        Args:
            hidden: (B, L, D) of tokens.
            truths: (B, L) numbers of each fact, then those of the place.
        """
        shape = truths[self.facts.index("shape")]
        named = (shape != values("shape")) & (shape != IGNORED)
        if len(truths) > len(self.facts):
            named = named & (truths[-1] == IGNORED)  # an expression says more than its facts
        vectors = [part(row[named]) for part, row in zip(self.parts, truths, strict=False)]
        return F.mse_loss(hidden[named], reduce(torch.add, vectors))


def possible(scores: Tensor, fact: str, truth: Mapping[str, Tensor], values_at: int) -> Tensor:
    """Scores of a colour without those that no picture shows with the shape that is there, and the other way round.

    A pair that is only never drawn would count against its parts otherwise: white things are no crosses.
    """
    if fact not in BESIDE:
        return scores
    impossible = never_drawn(fact)[truth[BESIDE[fact]].clamp(min=0)]
    return scores.masked_fill(impossible.movedim(-1, values_at), IMPOSSIBLE)


def never_drawn(fact: str) -> Tensor:
    """(values of the other fact, values of the fact): whether they are together in no picture of the training."""
    pairs = set(allowed(Split.TRAIN))
    never = torch.zeros(values("colour") + 1, values("shape") + 1, dtype=torch.bool)
    for colour, row in COLOUR.items():
        for shape, column in SHAPE.items():
            never[row, column] = f"{colour} {shape}" not in pairs
    return never if fact == "shape" else never.T


def texts(rng: Random, listing: bool) -> Iterator[Told]:
    """Prompts of class names, and sentences about drawn scenes, without end; also such that list expressions."""
    pairs = allowed(Split.TRAIN)
    sentences: list[Told] = []
    for picture in World(WORLD["text"], Split.TRAIN, size=(96, 96)).pictures(SCENES):
        found = captions(picture, 3, picture.dice)
        sentences += [(caption.text, [(phrase.span, "") for phrase in caption.phrases]) for caption in found]
        sentences += [(said.text, [(said.root, said.text)]) for said in expressions(picture, picture.dice)]
        if listing:
            sentences += [(row.text, list(_parts(row))) for row in lists(picture, picture.dice)]
    while True:
        yield rng.choice(sentences) if rng.random() < 0.4 else _prompt(rng.sample(pairs, rng.randint(FEWEST, MOST)))


def _parts(row: Caption) -> Iterator[tuple[Span, str]]:
    """The phrases of a list of expressions, each with its expression."""
    ends = [phrase.span[0] for phrase in row.phrases[1:]] + [len(row.text)]
    for phrase, end in zip(row.phrases, ends, strict=True):
        yield phrase.span, row.text[phrase.span[0] : end]


def _prompt(names: Sequence[str]) -> Told:
    begins = [sum(len(name) + 2 for name in names[:place]) for place in range(len(names))]
    return ". ".join(names), [((begin, begin + len(name)), "") for begin, name in zip(begins, names, strict=True)]


def tagged(tokenizer: Tokenizer, told: Told, facts: Sequence[str], limit: int) -> list[Tensor]:
    """(L,) ids of a text, and for each fact (L,) what the phrase of each token says of it; two rows for the place.

    Most tokens are in names and captions, which ask for no place: they do not count for it.
    """
    text, phrases = told
    encoded = tokenizer.encode([text], max_length=limit)
    ids = encoded.input_ids[0]
    rows = [torch.full_like(ids, values(fact)) for fact in facts if fact != PLACE]
    if PLACE in facts:
        rows += [torch.full_like(ids, IGNORED) for _ in range(2)]
    offsets = encoded.offsets(0)
    for (begin, end), expression in phrases:
        words = [word.strip(".,") for word in text[begin:end].lower().split()]
        said = [_first(words, FACTS[fact]) for fact in facts if fact != PLACE]
        if PLACE in facts:
            said += asked_place(expression) if expression else (IGNORED, IGNORED)
        inside = [place for place, (first, last) in enumerate(offsets) if begin <= first < last <= end]
        for row, number in zip(rows, said, strict=True):
            row[inside] = number
    return [ids, *rows]


def _first(words: Sequence[str], numbers: Mapping[str, int]) -> int:
    """Number of the first word that has one; else the number that stands for none."""
    return next((numbers[word] for word in words if word in numbers), max(numbers.values()) + 1)


def asked_place(text: str) -> tuple[int, int]:
    """Which side of the picture an expression asks for, and the how manieth from there, from 0."""
    words = text.lower().split()
    side = next((number for number, names in enumerate(SIDES) if names & set(words)), NOWHERE)
    order = next((number for number, name in enumerate(ORDINALS) if name in words), 0)
    return side, order if side != NOWHERE else len(ORDINALS)


def values(fact: str) -> int:
    """How many values a fact has; that number itself stands for none of them."""
    return max(FACTS[fact].values()) + 1


def look(
    backbone: SwinFpn,
    pixels: Callable[[Tensor], Tensor],
    width: int,
    facts: Sequence[str],
    steps: int,
    *,
    apart: bool = False,
) -> None:
    """Swin and its pyramid (of ``width``) learn facts about each place of three maps; layers for text rest.

    Args:
        backbone: Swin and its pyramid.
        pixels: Of :func:`pixels_of`.
        width: Channels of the pyramid.
        facts: Of :data:`EVERYTHING`.
        steps: Of training.
        apart: As in :func:`read`.
    """
    world = World(WORLD["pictures"], Split.TRAIN, SIZE)
    heads = nn.ModuleList(
        nn.ModuleList(nn.Conv2d(width, 2 if fact == PLACE else values(fact) + 1, 1) for fact in facts) for _ in STRIDES
    )
    parameters = [value for name, value in backbone.named_parameters() if "i2t" not in name]
    numbers = count(1)

    def loss() -> Tensor:
        scenes = [world[next(numbers)] for _ in range(PICTURES)]
        shown = {fact: torch.stack([painted(scene, fact) for scene in scenes]) for fact in facts}
        terms = []
        for level, features, stride in zip(heads, backbone(pixels(pixels_in(scenes))), STRIDES, strict=False):
            truth = {fact: at[..., stride // 2 :: stride, stride // 2 :: stride] for fact, at in shown.items()}
            for fact, head in zip(facts, cast(nn.ModuleList, level), strict=True):
                scores = possible(head(features), fact, truth, 1) if apart else head(features)
                value = F.l1_loss(scores, truth[fact]) if fact == PLACE else places(scores, truth[fact])
                terms.append(WEIGHT.get(fact, 1.0) * value)
        return sum_of(terms)

    learn("pictures", loss, parameters, heads, steps)


def painted(scene: Picture, fact: str) -> Tensor:
    """(h, w) number of the value at each pixel; of the place (2, h, w): x and y, from -1 to 1."""
    if fact == PLACE:
        y, x = (torch.linspace(-1, 1, side) for side in scene.size)
        return torch.stack([x.expand(scene.size), y[:, None].expand(scene.size)])
    numbers, none = FACTS[fact], values(fact)
    found = torch.full(scene.size, none)
    for item in scene.items:
        found[torch.from_numpy(item.mask)] = numbers.get(getattr(item, fact), none)
    return found


def agree(detector: FiberDetector, pixels: Callable[[Tensor], Tensor], tokenizer: Tokenizer, steps: int) -> None:
    """The head learns to point: a sentence scores highest at the places of what it is about.

    The encoder of pictures changes little. That of text rests: it would forget how to say the parts of a pair alone.
    Nothing looks from one encoder to the other yet, so a picture is seen once for all sentences about it.
    """
    parts, head = detector.fusion_backbone, detector.rpn.head
    backbone, encoder = parts.backbone, parts.language_backbone.body.model
    world, numbers = World(WORLD["together"], Split.TRAIN, SIZE), count(1)

    def loss() -> Tensor:
        scenes = [world[next(numbers)] for _ in range(PICTURES)]
        said = [(row, *sentence) for row, scene in enumerate(scenes) for sentence in sentences_about(scene)]
        text = tokenizer.encode([sentence for _, sentence, _, _ in said], max_length=encoder.config.max_tokens)
        ids, mask = text.input_ids, text.attention_mask
        hidden = encoder.run(encoder.embed(ids, mask), mask, 0, len(encoder.layers)).detach()
        words = torch.cat([entity_tokens(text, place, [[span]]) for place, (_, _, span, _) in enumerate(said)])
        levels, _ = head.run_tower(backbone(pixels(pixels_in(scenes))), LanguageFeatures(hidden, hidden, mask))
        rows = torch.tensor([row for row, *_ in said])
        shown = torch.stack([_shown(scenes[row], things) for row, _, _, things in said])
        scores = head.word_logits([level[rows] for level in levels], hidden)
        assert scores is not None
        return sum_of(
            pointing((at * words[:, None]).sum(2) / words.sum(1, keepdim=True), shown[:, half::stride, half::stride])
            for at, stride, half in zip(scores, STRIDES, HALVES, strict=False)
        )

    slow = [value for name, value in backbone.named_parameters() if "i2t" not in name]
    learn("together", loss, list(head.parameters()), nn.ModuleList(), steps, slow)


def sentences_about(scene: Picture) -> list[tuple[str, Span, tuple[int, ...]]]:
    """Names and expressions, each with the words that name the thing itself, and the things that they are true of."""
    found = []
    for item in scene.items:
        name = Description(**{"shape": "", **{fact: getattr(item, fact) for fact in scene.dice.pick(NAMED)}})
        text = name.text().strip()
        found.append((text, (0, len(text)), matching(scene.items, name)))
    found += [(said.text, said.root, (said.item,)) for said in expressions(scene, scene.dice)]
    return scene.dice.shuffled(found)[:SENTENCES]


def _shown(scene: Picture, things: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.any([scene.items[number].mask for number in things], axis=0))


def pointing(scores: Tensor, shown: Tensor) -> Tensor:
    """Cross-entropy of the places (S, h * w) of S sentences; those that are ``shown`` (S, h, w) have equal shares.

    Sentences whose things are too small for the map do not count.
    """
    there = shown.flatten(1).float()
    big = there.any(1)
    return F.cross_entropy(scores[big], there[big] / there[big].sum(1, keepdim=True))


def places(scores: Tensor, truth: Tensor) -> Tensor:
    weight = scores.new_ones(scores.shape[1])
    weight[-1] = BACKGROUND
    return F.cross_entropy(scores, truth, weight)


def pixels_in(scenes: Sequence[Picture]) -> Tensor:
    """(B, 3, h, w) uint8."""
    return torch.stack([torch.from_numpy(scene.pixels.copy()).permute(2, 0, 1) for scene in scenes])


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(tuple(terms)).sum()


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
    heads: nn.Module,
    steps: int,
    slow: Sequence[nn.Parameter] = (),
) -> None:
    """Training of ``parameters`` and of heads, which nobody keeps; those that are ``slow`` have a tenth of the rate."""
    groups = [{"params": [*parameters, *heads.parameters()], "share": 1.0}, {"params": list(slow), "share": SLOW}]
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
