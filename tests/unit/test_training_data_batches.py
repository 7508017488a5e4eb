"""Batches for training: which pictures, which words; equal however they are read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from maskrcnn_benchmark.data import train_loader
from maskrcnn_benchmark.data.training import TrainingData, build_training_data
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.interface import Batch
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer
from tests.unit.tiny_tokenizers import write_bpe
from tests.unit.training_files import (
    CAPTION,
    LABELS,
    as_captions,
    as_coco,
    everything,
    training_config,
)

FUSE = "MODEL.DYHEAD.FUSE_CONFIG"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_bpe(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def data(tmp_path: Path, words: Tokenizer) -> TrainingData:
    return build_training_data(everything(tmp_path), words)


def fingerprint(batch: Batch) -> tuple[object, ...]:
    assert batch.text is not None
    assert batch.rng is not None
    maps = (batch.maskable, batch.token_labels, batch.word_labels)
    return (
        batch.images.pixels.tolist(),
        batch.images.metas,
        [(row.boxes.tolist(), row.labels.tolist(), row.prompt, row.positive_map.tolist()) for row in batch.targets],
        batch.text.input_ids.tolist(),
        [None if part is None else part.tolist() for part in maps],
        batch.rng.random(),
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(data: TrainingData, workers: int) -> None:
    alone = [fingerprint(batch) for batch in data.loader(2)]
    assert len(alone) == data.plan.batches == 6
    assert [fingerprint(batch) for batch in data.loader(2, workers=workers)] == alone
    assert [fingerprint(batch) for batch in data.loader(2, start=4, workers=workers)] == alone[4:]


def test_epochs_one_after_the_other(data: TrainingData) -> None:
    separate = [fingerprint(batch) for epoch in (3, 4) for batch in data.loader(epoch)]
    stream = iter(data.loader(3, start=4, workers=1, endless=True))
    assert [fingerprint(next(stream)) for _ in range(8)] == separate[4:]
    last = iter(data.loader(3, start=6, endless=True))
    assert fingerprint(next(last)) == separate[6]
    assert list(data.loader(3, start=6)) == []


def test_processes_read_the_parts_of_a_batch(data: TrainingData) -> None:
    whole = [meta.file for batch in data.loader(0) for meta in batch.images.metas]
    halves = zip(*(data.loader(0, world=2, rank=rank) for rank in (0, 1)), strict=True)
    assert [meta.file for pair in halves for batch in pair for meta in batch.images.metas] == whole


def test_pixels_in_memory_that_a_gpu_can_read(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Loader(train_loader.DataLoader):
        def __init__(self, *args: object, pin_memory: bool, **options: object) -> None:
            asked.append(pin_memory)
            super().__init__(*args, **options)

        def __iter__(self) -> Iterator[object]:  # what torch does to a batch where there is a GPU
            return (pin_memory(batch) if asked[-1] else batch for batch in super().__iter__())

    monkeypatch.setattr(train_loader, "DataLoader", Loader)
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor) or tensor)
    plain = [fingerprint(batch) for batch in data.loader(0)]
    assert pinned == []
    batches = list(data.loader(0, pin=True))
    assert asked == [False, True]
    assert [fingerprint(batch) for batch in batches] == plain
    assert [tensor.data_ptr() for tensor in pinned] == [batch.images.pixels.data_ptr() for batch in batches]


def test_reading_leaves_other_random_numbers_alone(data: TrainingData) -> None:
    def state() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    list(data.loader(0, workers=1))
    list(data.loader(0))
    assert state() == before


def test_a_batch(data: TrainingData) -> None:
    for batch in data.loader(0):
        assert batch.images.pixels.dtype == torch.uint8
        assert not any(side % 32 for side in batch.images.pixels.shape[-2:])
        assert batch.text.input_ids.shape == (2, 256)
        ready = data.prepare(batch, "cpu")
        assert ready.images.pixels.dtype == torch.float32
        assert not ready.images.pixels[ready.images.mask[:, None].expand_as(ready.images.pixels)].any()
        assert (ready.maskable, ready.token_labels, ready.word_labels) == (None, None, None)
        for row, found in enumerate(ready.targets):
            assert found.meta is ready.images.metas[row]
            assert found.positive_map.shape == (len(found), 256)
            assert set(found.positive_map.unique().tolist()) <= {0.0, 1.0}
            assert (found.positive_map.sum(1) > 0).all()
            assert (found.positive_map <= ready.text.attention_mask[row]).all()


def test_boxes_own_the_tokens_of_their_words(data: TrainingData, words: Tokenizer) -> None:
    wanted = {1: {"boxes": "cup", "table": "dog", "words": "a dog"}, 2: {"boxes": "jar", "table": "cat"}}
    seen = set()
    for batch in data.loader(0):
        for found, ids in zip(batch.targets, batch.text.input_ids, strict=True):
            for label, row in zip(found.labels.tolist(), found.positive_map, strict=True):
                mine = ids[row.bool()].tolist()
                options = {wanted[label].get(found.meta.dataset), "the street" if label == 1 else None}
                spelled = [words.encode([text]).input_ids[0, 1:-1].tolist() for text in options if text]
                spelled += [words.encode([f" {text}"]).input_ids[0, 1:-1].tolist() for text in options if text]
                assert any(mine == tokens or mine == tokens[1:] for tokens in spelled)
                seen.add(found.meta.dataset)
    assert seen == {"boxes", "table", "words"}


def test_prompts_of_each_kind(data: TrainingData) -> None:
    texts: dict[str, set[str]] = {"boxes": set(), "words": set(), "table": set()}
    for epoch in range(12):
        for batch in data.loader(epoch):
            for found in batch.targets:
                texts[found.meta.dataset].add(found.prompt.text)
    assert texts["words"] == {CAPTION}
    assert texts["boxes"] == {"cup. jar", "jar. cup"}
    tables = [set(text.split(". ")) for text in texts["table"]]
    assert all({"dog", "cat"} <= names <= {*LABELS, " background "} for names in tables)
    assert {2, 5} <= {len(names - {" background "}) for names in tables}
    assert len(texts["table"]) > 10


def test_copies(tmp_path: Path, words: Tokenizer) -> None:
    sets = {"boxes": as_coco(tmp_path / "c"), "words": {**as_captions(tmp_path / "m"), "copies": "FLICKR_COPY"}}
    cfg = training_config(tmp_path, sets, GENERAL_COPY=3, FLICKR_COPY=2)
    data = build_training_data(cfg, words)
    assert data.plan.sets == (("boxes", 5, 3), ("words", 3, 2))
    assert not {"DATASETS.GENERAL_COPY", "DATASETS.FLICKR_COPY"} & {key for key, _, _ in cfg.unread()}
    assert (data.plan.samples, data.plan.batches) == (21, 10)
    assert str(data.plan) == (
        "21 samples (boxes 5 x 3, words 3 x 2): 10 batches of 2 in an epoch; "
        "1 sample of each epoch, others every time, fill no batch"
    )
    first, copy = data.item(0, 0), data.item(0, 5)
    assert first.target.meta.image_id == copy.target.meta.image_id
    sizes = {data.item(0, index).target.meta.size for index in range(0, 15, 5)}
    prompts = {data.item(0, index).target.prompt.text for index in range(15)}
    assert len(sizes) + len(prompts) > 2, "copies have random numbers of their own"
    with pytest.raises(ConfigError, match=r"DATASETS\.GENERAL_COPY is 0 .*give -1"):
        build_training_data(training_config(tmp_path, sets, GENERAL_COPY=0), words)


def test_words_hidden_and_classes_of_tokens(tmp_path: Path, words: Tokenizer) -> None:
    opts = (f"{FUSE}.MLM_LOSS", "True", f"{FUSE}.USE_SHALLOW_CONTRASTIVE_LOSS", "True")
    data = build_training_data(everything(tmp_path, *opts), words)
    hidden = 0
    for batch in [batch for epoch in range(8) for batch in data.loader(epoch)]:
        for row, found in enumerate(batch.targets):
            plain = words.encode([found.prompt.text], pad_to=256).input_ids[0]
            changed = batch.text.input_ids[row] != plain
            asked = batch.word_labels[row] != -100
            assert (batch.maskable[row][asked] == 1).all()
            assert torch.equal(batch.word_labels[row][asked], plain[asked])
            hidden += int(asked.sum())
            assert batch.text.attention_mask[row][changed].all()
            if found.meta.dataset == "words":
                assert batch.maskable[row].sum() == batch.text.attention_mask[row].sum() - 2
                assert found.token_labels.tolist() == [-10, -10]
                assert (batch.token_labels[row] == -1).all()
            elif found.meta.dataset == "table":
                assert found.token_labels.tolist() == [1, 2]
                for label, own in zip((1, 2), found.positive_map.bool(), strict=True):
                    assert (batch.token_labels[row][own] == label).all()
                assert batch.maskable[row].sum() == found.positive_map.sum()
            else:
                assert found.token_labels.tolist() == [-10] * len(found)
    assert hidden > 10


@pytest.mark.parametrize(("key", "kept"), [("NO_MASK_FOR_OD", {"boxes", "table"}), ("NO_MASK_FOR_GOLD", {"words"})])
def test_texts_in_which_nothing_is_hidden(tmp_path: Path, words: Tokenizer, key: str, kept: set[str]) -> None:
    data = build_training_data(everything(tmp_path, f"{FUSE}.MLM_LOSS", "True", f"{FUSE}.{key}", "True"), words)
    found = {
        row.meta.dataset: mask
        for batch in data.loader(0)
        for row, mask in zip(batch.targets, batch.maskable, strict=True)
    }
    assert {name for name, mask in found.items() if (mask == -1).all()} == kept
