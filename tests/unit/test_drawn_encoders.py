"""What the small FIBER of the drawn world starts from, ``python -m maskrcnn_benchmark.demo.encoders``."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import Split, World
from maskrcnn_benchmark.data.drawn.vocabulary import COLOURS, SHAPES
from maskrcnn_benchmark.demo import encoders
from maskrcnn_benchmark.demo.encoders import (
    COLOUR,
    EVERYTHING,
    SHAPE,
    Sums,
    asked_place,
    main,
    never_drawn,
    painted,
    pointing,
    possible,
    sentences_about,
    tagged,
)
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.text.tokenizer import load_tokenizer
from maskrcnn_benchmark.training import starting_model

CONFIG = "configs/tiny/fiber_tiny.yaml"
NONE = 4, 5  # no side, no order
LEFT, RIGHT, TOP, BOTTOM = range(4)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("the leftmost red circle", (LEFT, 0)),
        ("the bottom star", (BOTTOM, 0)),
        ("the second big moon from the right", (RIGHT, 1)),
        ("circle left of the big blue square", (LEFT, 0)),
        ("the heart above the cross", (TOP, 0)),
        ("the striped heart", NONE),
    ],
)
def test_asked_place(text: str, place: tuple[int, int]) -> None:
    assert asked_place(text) == place


def test_tokens_know_what_their_own_phrase_says() -> None:
    text = "the small circle left of the dotted red square"
    tokenizer = load_tokenizer("fiber_tiny")
    ids, *rows = tagged(tokenizer, (text, [((0, 16), text), ((25, len(text)), text)]), EVERYTHING, 64)
    words = {tokenizer.encode([text]).offsets(0)[place]: [int(row[place]) for row in rows] for place in range(len(ids))}
    red, square, circle = (list(COLOURS).index("red"), list(SHAPES).index("square"), list(SHAPES).index("circle"))
    assert words[(10, 16)] == [len(COLOURS), circle, 3, 0, LEFT, 0]
    assert words[(40, 46)] == [red, square, 1, 2, LEFT, 0]
    assert words[(17, 21)] == [len(COLOURS), len(SHAPES), 3, 2, -100, -100], "outside of phrases"
    _, *rows = tagged(tokenizer, ("red circle. blue star", [((0, 10), ""), ((12, 21), "")]), EVERYTHING, 64)
    assert {int(value) for row in rows[-2:] for value in row} == {-100}, "names ask for no place"


def test_painted_is_what_the_picture_shows() -> None:
    picture = World(3, Split.TRAIN, (96, 128))[1]
    colour, texture = painted(picture, "colour"), painted(picture, "texture")
    for item in picture.items:
        assert set(colour[torch.from_numpy(item.mask)].tolist()) == {list(COLOURS).index(item.colour)}
        plain = item.texture == "plain"
        assert (texture[torch.from_numpy(item.mask)] == 3).all() == plain
    x, y = painted(picture, "place")
    assert x.shape == y.shape == picture.size
    assert (x[50, 0], x[50, -1], y[0, 50], y[-1, 50]) == (-1, 1, -1, 1)


@pytest.mark.parametrize(("facts", "joint"), [(["colour", "shape"], 0), (list(EVERYTHING), 2)])
def test_a_training_starts_from_the_file(
    tmp_path: Path, facts: list[str], joint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both encoders and the pyramid have learnt, and the head where it was taught; what joins the encoders has not."""
    monkeypatch.setattr(encoders, "SCENES", 10)
    file = tmp_path / "start.safetensors"
    steps = ["--text-steps=2", "--picture-steps=2", f"--joint-steps={joint}"]
    plain = [] if joint else ["--plain"]
    main(["--config-file", CONFIG, "--out", str(file), *steps, *plain, "--facts", *facts])
    cfg = load_cfg(CONFIG, opts=["MODEL.WEIGHT", str(file)])
    started = starting_model(cfg).state_dict()
    torch.manual_seed(cfg.SOLVER.SEED)
    fresh = build_detector(cfg).state_dict()
    changed = {name for name, value in fresh.items() if not torch.equal(started[name], value)}
    parts = ["backbone.body.layers.0", "backbone.fpn", "language_backbone.body.model.encoder.layer.0"]
    for part in parts:
        assert any(name.startswith(f"fusion_backbone.{part}") for name in changed), part
    assert not [name for name in changed if "i2t" in name or "t2i" in name or "bbox_pred" in name]
    heads = {name for name in changed if name.startswith("rpn.")}
    assert (
        any("dyhead_tower" in name for name in heads) == any("projection_text" in name for name in heads) == bool(joint)
    )


def test_lessons_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each encoder can learn in a process of its own; the last lesson begins with both."""
    monkeypatch.setattr(encoders, "SCENES", 10)
    steps = ["--text-steps=2", "--picture-steps=2", "--joint-steps=1"]
    files = {lesson: tmp_path / f"{lesson}.safetensors" for lesson in ("text", "pictures", "together")}
    for lesson, parts in (("text", []), ("pictures", []), ("together", ["text", "pictures"])):
        weights = ["--weights", *(str(files[part]) for part in parts)] if parts else []
        main([*steps, "--lessons", lesson, *weights, "--out", str(files[lesson])])
    text, pictures, joint = (load_file(file) for file in files.values())
    assert not text.keys() & pictures.keys()
    assert all(torch.equal(joint[name], value) for name, value in text.items()), "text rests in the last lesson"
    assert joint.keys() == build_detector(load_cfg(CONFIG)).state_dict().keys()
    body = "fusion_backbone.backbone.body.patch_embed.proj.weight"
    assert (joint[body] - pictures[body]).abs().max() < 1e-3
    wrong = ["--opts", "MODEL.LANGUAGE_BACKBONE.LANG_DIM", "64"]
    with pytest.raises(WeightsError, match=r"text.safetensors.*: fusion_backbone.language.* is not of the network"):
        main(["--weights", str(files["text"]), "--out", str(tmp_path / "x.safetensors"), *wrong])


def test_what_no_picture_shows_does_not_count() -> None:
    white, cross, red = COLOUR["white"], SHAPE["cross"], COLOUR["red"]
    assert never_drawn("shape")[white, cross]
    assert never_drawn("colour")[cross, white]
    assert not never_drawn("shape")[red, cross]
    assert not never_drawn("shape")[:, -1].any(), "a place without a thing"
    shape = torch.tensor([[cross, SHAPE["circle"], len(SHAPES)]])
    scores = possible(torch.zeros(1, 3, len(COLOURS) + 1), "colour", {"shape": shape}, -1)
    assert [int((row < 0).sum()) for row in scores[0]] == [1, 1, 0]
    assert scores[0, 0, white] < -1000
    assert torch.equal(possible(scores, "texture", {}, -1), scores)


def test_sums_are_near_where_facts_do_not_meet() -> None:
    """A vector for each fact, added, costs nothing; one for a pair does; expressions may say more."""
    torch.manual_seed(0)
    sums = Sums(["colour", "shape"], 4)
    colours, shapes = (torch.arange(2).repeat(2)[None], torch.arange(2).repeat_interleave(2)[None])
    own = sums.parts[0](colours) + sums.parts[1](shapes)
    assert sums(own, [colours, shapes]).item() == pytest.approx(0, abs=1e-12)
    paired = own + torch.tensor([1.0, -1, -1, 1])[None, :, None]
    assert sums(paired, [colours, shapes]).item() == pytest.approx(1)
    said = torch.tensor([[-100, 0, 0, 0]])
    paired[0, 1:] += 7
    assert sums(paired, [colours, shapes, said, said]).item() == pytest.approx(1), "the first word alone is of a name"


def test_a_config_of_another_system(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mdetr_drawn.yaml is not of FIBER"):
        main(["--config-file", "configs/tiny/mdetr_drawn.yaml", "--out", str(tmp_path / "start.safetensors")])


def test_sentences_are_true_of_their_things() -> None:
    """Names of pairs, of shapes and of colours are about all that they are true of."""
    kinds = set()
    for picture in World(3, Split.TRAIN, (160, 160)).pictures(4):
        said = sentences_about(picture)
        assert 1 < len(said) <= encoders.SENTENCES
        for text, (begin, end), things in said:
            words = [(item.name, item.shape, item.colour) for item in picture.items]
            assert text[begin:end].split()[-1] in {word for number in things for word in words[number]}
            kind = next((kind for kind in range(3) if text == words[things[0]][kind]), None)
            if kind is not None:
                assert things == tuple(number for number, row in enumerate(words) if row[kind] == text)
            kinds.add(kind)
    assert kinds == {0, 1, 2, None}


def test_pointing() -> None:
    """Least where the places of a thing share the whole; what is too small for the map does not count."""
    shown = torch.zeros(2, 4, 4, dtype=torch.bool)
    shown[0, 1, 1:3] = True
    right, half = torch.full((2, 16), -20.0), torch.full((2, 16), -20.0)
    right[0, 5:7] = half[0, 5] = half[0, 9] = 0
    assert pointing(right, shown).item() == pytest.approx(math.log(2))
    assert pointing(half, shown) > 5


def test_the_map_is_padded_so_that_places_are_known() -> None:
    """Windows that fit a map exactly leave Swin blind to where in the picture it looks."""
    cfg = load_cfg(CONFIG)
    sides = [cfg.INPUT.MIN_SIZE_TEST // stride for stride in (4, 8, 16, 32)]
    assert all(side % cfg.MODEL.SWINT.WINDOW_SIZE for side in sides)
