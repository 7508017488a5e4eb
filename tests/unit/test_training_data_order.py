"""Which samples make up which batch, what is drawn for them, and what becomes of their pixels and boxes."""

from __future__ import annotations

import random
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_benchmark.data.combine import Combined
from maskrcnn_benchmark.data.draws import rng_for
from maskrcnn_benchmark.data.samplers import EpochSampler
from maskrcnn_benchmark.data.transforms import EvalTransform, Normalise, TrainTransform
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.structures import ImageBatch, ImageMeta, Target

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)


def sampler(count: int = 23, size: int = 4, seed: int = 1, **options: int) -> EpochSampler:
    return EpochSampler(np.arange(count) % 3 == 0, size, seed, **options)


def test_an_epoch_has_each_sample_once_but_for_less_than_a_batch() -> None:
    batches = sampler().batches(0)
    assert len(batches) == len(sampler()) == 23 // 4
    assert max(Counter(chain(*batches)).values()) == 1
    left_out = [set(range(23)) - set(chain(*sampler().batches(epoch))) for epoch in range(5)]
    assert {len(left) for left in left_out} == {3}
    assert len({frozenset(left) for left in left_out}) > 1


def test_groups_come_together_as_far_as_they_fill_batches() -> None:
    kinds = [{index % 3 == 0 for index in batch} for batch in sampler(count=40).batches(0)]
    assert sum(len(kind) > 1 for kind in kinds) <= 1
    assert {kind for kinds_ in kinds for kind in kinds_} == {True, False}
    rare = EpochSampler(np.arange(20) == 7, 4, 0)
    assert any(7 in batch for batch in rare.batches(0)), "too few for a batch of their own, and still seen"


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert sampler().batches(3) == sampler().batches(3)
    assert sampler().batches(3) != sampler().batches(4)
    assert sampler().batches(3) != sampler(seed=2).batches(3)
    assert sampler().batches(3, start=2) == sampler().batches(3)[2:]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_each_batch(world: int) -> None:
    shares = [sampler(world=world, rank=rank).batches(0) for rank in range(world)]
    assert [[*chain(*parts)] for parts in zip(*shares, strict=True)] == sampler().batches(0)
    with pytest.raises(ConfigError, match=r"SOLVER\.IMS_PER_BATCH 4 cannot be shared by 3 processes"):
        sampler(world=3)


def test_fewer_samples_than_a_batch_are_repeated() -> None:
    batches = sampler(count=3, size=8).batches(0)
    assert len(batches) == 1
    assert sorted(Counter(index % 3 for index in batches[0]).values()) == [2, 3, 3]
    assert len(set(batches[0])) == 8, "each with random numbers of its own"


def test_an_epoch_of_a_part_of_the_samples() -> None:
    parts = [set(chain(*sampler(parts=2).batches(epoch))) for epoch in range(6)]
    assert all(len(sampler(parts=2).batches(epoch)) == len(sampler(parts=2)) == 2 for epoch in range(6))
    assert all(part <= set(range(11)) for part in parts[::2]), "in their order"
    assert all(part <= set(range(11, 23)) for part in parts[1::2])
    assert len({frozenset(part) for part in parts}) > 2, "shuffled within"
    few = [sampler(count=7, size=4, parts=3).batches(epoch) for epoch in range(3)]
    assert [{index % 7 for index in chain(*batches)} for batches in few] == [{0, 1}, {2, 3}, {4, 5, 6}]


def test_sets_and_copies_by_one_number() -> None:
    both = Combined([2, 3], [1, 2])
    assert len(both) == 8
    assert [both.locate(i) for i in range(9)] == [
        (0, 0),
        (0, 1),
        *[(1, 0), (1, 1), (1, 2)] * 2,
        (0, 0),
    ]


def test_draws_depend_on_their_key() -> None:
    def drawn(*key: int) -> tuple[float, float]:
        draws = rng_for(*key)
        return draws.python.random(), float(draws.numpy.random_sample())

    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0), (0,), (0, 0, 0, 0), (2**31, 0, 0)]
    assert len({drawn(*key) for key in keys}) == len(keys)
    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    with pytest.raises(ValueError, match="parts of a key"):
        rng_for(-1)


def test_draws_stay_those_of_this_version() -> None:
    """A resumed training must draw what an older version would have."""
    draws = rng_for(1, 2, 3)
    assert [draws.python.randrange(1000) for _ in range(4)] == [209, 508, 880, 607]
    assert draws.numpy.randint(0, 1000, 4).tolist() == [247, 723, 713, 565]


def target(size: tuple[int, int], *boxes: list[float]) -> Target:
    return Target(torch.tensor(boxes), torch.ones(len(boxes), dtype=torch.int64), ImageMeta(1, size, size))


def test_boxes_go_with_their_picture() -> None:
    picture = Image.new("RGB", (64, 32))
    picture.paste((255, 255, 255), (8, 4, 24, 20))
    pixels, moved = TrainTransform((64,), 200, flip=1.0)(picture, target((32, 64), [8, 4, 23, 19]), random.Random(0))
    assert pixels.shape == (3, 64, 128)
    assert pixels.dtype == torch.uint8
    assert moved.meta.size == (64, 128)
    assert moved.meta.orig_size == (32, 64)
    assert moved.boxes.tolist() == [[128 - 46 - 1, 8, 128 - 16 - 1, 38]]
    rows, columns = (pixels[0] > 200).nonzero().unbind(1)
    x1, y1, x2, y2 = moved.boxes[0].tolist()
    assert (columns.min(), rows.min()) == (pytest.approx(x1, abs=2), pytest.approx(y1, abs=2))
    assert (columns.max(), rows.max()) == (pytest.approx(x2, abs=2), pytest.approx(y2, abs=2))


def test_sizes_and_mirroring_are_random_unless_told_otherwise() -> None:
    picture, rng = Image.new("RGB", (64, 32)), random.Random(0)
    seen = {
        (moved.meta.size, float(moved.boxes[0, 0]) / moved.meta.size[1] < 0.5)
        for _ in range(50)
        for _, moved in [TrainTransform((16, 24), 40, 0.5)(picture, target((32, 64), [4, 4, 9, 9]), rng)]
    }
    assert seen == {((16, 32), True), ((16, 32), False), ((20, 40), True), ((20, 40), False)}
    plain = {
        TrainTransform((32,), 99, 0.0)(picture, target((32, 64), [4, 4, 9, 9]), rng)[1].boxes[0, 0].item()
        for _ in range(20)
    }
    assert plain == {4}


@pytest.mark.parametrize("bgr", [True, False])
def test_bytes_become_what_evaluation_sees(bgr: bool) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (2, 24, 40, 3)).astype(np.uint8)
    pictures = [Image.fromarray(noise[0]), Image.fromarray(noise[1][:16, :32])]
    metas = [ImageMeta(i, (p.height, p.width), (p.height, p.width)) for i, p in enumerate(pictures)]
    mean, std = (MEAN, STD) if bgr else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    raw = ImageBatch.pad([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures], metas)
    transform = EvalTransform(16, 99, mean, std, bgr)
    expected = ImageBatch.pad([transform.normalise(picture) for picture in pictures], metas)
    assert torch.equal(Normalise(mean, std, bgr)(raw).pixels, expected.pixels)
