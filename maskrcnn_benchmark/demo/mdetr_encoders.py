"""``python -m maskrcnn_benchmark.demo.mdetr_encoders``: what the small MDETR of the drawn world starts from.

MDETR starts from a classifier of ImageNet and from RoBERTa. In their place, body and text encoder first learn alone
what they can be told of the drawn world: the body, which colour and shape is at each place; the text encoder, which
colour and shape the phrase of each word is about. ``MODEL.MDETR.BACKBONE_WEIGHT`` and ``TEXT_WEIGHT`` take the files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.data.drawn import Split, World
from maskrcnn_benchmark.data.drawn.vocabulary import COLOURS, SHAPES
from maskrcnn_benchmark.demo.encoders import Heads, learn, painted, pixels_of, places, read
from maskrcnn_benchmark.engine.rng import seed_all
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.modeling.detectors.mdetr import Mdetr
from maskrcnn_benchmark.text.tokenizer import load_tokenizer

SEED = 5  # of the pictures
POOL, BATCH, MOST = 6000, 16, 3  # pictures, pictures in a step, things in a picture
STRIDE, FINE = 32, 4  # of the last map, and into how many places a side each of its cells is divided
STEPS = {"text": 250, "pictures": 5000}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m maskrcnn_benchmark.demo.mdetr_encoders", description=__doc__)
    parser.add_argument("--config-file", default="configs/tiny/mdetr_drawn.yaml", help="(default %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for body.safetensors and text.safetensors")
    parser.add_argument("--text-steps", type=int, default=STEPS["text"], help="(default %(default)s)")
    parser.add_argument("--picture-steps", type=int, default=STEPS["pictures"], help="(default %(default)s)")
    args = parser.parse_args(argv)
    cfg = load_cfg(args.config_file)
    seed_all(cfg.SOLVER.SEED)
    detector = build_detector(cfg).train()
    assert isinstance(detector, Mdetr)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    text = detector.transformer.text_encoder
    read(text, load_tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE), args.text_steps)
    print(save_weights(text.state_dict(), out / "text.safetensors"))
    look(detector.body, cfg, args.picture_steps)
    print(save_weights(detector.body.state_dict(), out / "body.safetensors"))


def look(body: nn.Module, cfg: Cfg, steps: int) -> None:
    """The body learns colour and shape at 16 places of each cell of its last map."""
    side = cfg.INPUT.MIN_SIZE_TRAIN
    world, pixels = World(SEED, Split.TRAIN, (side, side), most=MOST), pixels_of(cfg)
    raw, colours, shapes = _pool(world, POOL)
    channels: Sequence[int] = body.channels  # type: ignore[assignment]
    heads = Heads(*(nn.Conv2d(channels[-1], (len(names) + 1) * FINE**2, 1) for names in (COLOURS, SHAPES)))
    dice = torch.Generator().manual_seed(SEED)

    def loss() -> Tensor:
        chosen = torch.randperm(POOL, generator=dice)[:BATCH]
        features = body(pixels(raw[chosen]))[-1]
        return places(F.pixel_shuffle(heads.colour(features), FINE), colours[chosen]) + places(
            F.pixel_shuffle(heads.shape(features), FINE), shapes[chosen]
        )

    learn("pictures", loss, list(body.parameters()), [heads], steps)


def _pool(world: World, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 3, h, w) pictures, and (N, h / 8, w / 8) the colour and the shape at the middle of each place."""
    step = STRIDE // FINE
    raw, colours, shapes = [], [], []
    for scene in world.pictures(count):
        raw.append(torch.from_numpy(scene.pixels.copy()).permute(2, 0, 1))
        colour, shape = (truth[step // 2 :: step, step // 2 :: step] for truth in painted(scene))
        colours.append(colour)
        shapes.append(shape)
    return torch.stack(raw), torch.stack(colours), torch.stack(shapes)


if __name__ == "__main__":
    sys.exit(cli.run(main))
