"""What a config can say about training data, and what is said when it does not fit them."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskrcnn_benchmark.data.catalog import resolve
from maskrcnn_benchmark.data.datasets.coco import CocoDataset
from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from maskrcnn_benchmark.data.draws import rng_for
from maskrcnn_benchmark.data.training import build_training_data
from maskrcnn_benchmark.errors import ConfigError, DataError, PromptError
from maskrcnn_benchmark.text.tokenizer import Tokenizer, load_tokenizer
from tests.unit.coco_files import SIZE, coco, write
from tests.unit.tiny_tokenizers import write_bpe
from tests.unit.training_files import (
    CAPTION,
    as_coco,
    as_table,
    everything,
    mdetr,
    training_config,
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_bpe(tmp_path_factory.mktemp("tokenizer")))


def long_names(data: dict[str, Any]) -> None:
    data["categories"] += [{"id": 100 + i, "name": f"hot dog number {i} of the street"} for i in range(40)]


def test_more_classes_than_fit(tmp_path: Path, words: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    sets = {"boxes": as_coco(tmp_path / "c", change=long_names)}
    data = build_training_data(training_config(tmp_path, sets), words)
    assert "its 42 class names take" in caplog.text
    caplog.clear()
    safe = build_training_data(training_config(tmp_path, sets, SPECIAL_SAFEGUARD_FOR_COCO_GROUNDING=True), words)
    assert "class names" not in caplog.text
    for one in (data, safe):
        prompts = [found.prompt for batch in one.loader(0) for found in batch.targets]
        assert all({1, 2} <= set(prompt.ids) for prompt in prompts)
        assert all(words.count(prompt.text) <= 256 for prompt in prompts)
        assert min(len(prompt) for prompt in prompts) > 5
    with pytest.raises(ConfigError, match=r"boxes: its 42 class names .* set DATASETS.DISABLE_SHUFFLE False"):
        build_training_data(training_config(tmp_path, sets, DISABLE_SHUFFLE=True), words)


def test_boxes_of_names_that_do_not_fit_are_counted(
    tmp_path: Path, words: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    def change(data: dict[str, Any]) -> None:
        data["categories"][0]["name"] = "cup " * 300

    sets = {"boxes": as_coco(tmp_path / "c", images=4, change=change)}
    data = build_training_data(training_config(tmp_path, sets), words)
    caplog.clear()
    found = [row.labels.tolist() for batch in data.loader(0) for row in batch.targets]
    assert all(labels in ([2], []) for labels in found)
    assert "boxes: pictures without some of their boxes: 4 in this epoch, such as " in caplog.text


def test_captions_that_are_too_long_are_cut_and_counted(
    tmp_path: Path, words: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    data = mdetr(2)
    for row in data["images"]:
        row["caption"] = "a dog on " + "the street " * 200
    data["annotations"][1]["tokens_positive"] = [[2000, 2010]]
    path = write(tmp_path / "m", data)
    sets = {"words": {"kind": "flickr", "img_dir": str(path.parent), "ann_file": str(path)}}
    batch = next(iter(build_training_data(training_config(tmp_path, sets), words).loader(0)))
    assert batch.text.input_ids.shape == (2, 256)
    assert sorted(tuple(row.positive_map.any(1).tolist()) for row in batch.targets) == [(True, False), (True, True)]
    assert "words: texts cut at 256 tokens: 2 in this epoch" in caplog.text


def test_words_around_the_names(tmp_path: Path, words: Tokenizer) -> None:
    sets = {"boxes": as_coco(tmp_path / "c")}
    prompt = [{"prefix": "", "name": name, "suffix": " on the street"} for name in ("cup", "glass")]
    keys: dict[str, Any] = {"CAPTION_PROMPT": prompt, "USE_CAPTION_PROMPT": True, "DISABLE_SHUFFLE": True}
    data = build_training_data(training_config(tmp_path, sets, **keys), words)
    assert data.item(0, 0).target.prompt.text == "cup on the street. glass on the street"
    with pytest.raises(ConfigError, match=r"CAPTION_PROMPT needs DATASETS\.DISABLE_SHUFFLE True"):
        build_training_data(training_config(tmp_path, sets, **{**keys, "DISABLE_SHUFFLE": False}), words)
    with pytest.raises(ConfigError, match=r"boxes: DATASETS\.USE_CAPTION_PROMPT cannot be combined with"):
        build_training_data(training_config(tmp_path, sets, SPECIAL_SAFEGUARD_FOR_COCO_GROUNDING=True, **keys), words)
    with pytest.raises(PromptError, match="has 1 entries for 2 categories"):
        build_training_data(training_config(tmp_path, sets, **{**keys, "CAPTION_PROMPT": prompt[:1]}), words)


def test_an_opening_and_a_fixed_order(tmp_path: Path, words: Tokenizer) -> None:
    data = build_training_data(everything(tmp_path, ADD_DET_PROMPT=True, DISABLE_SHUFFLE=True), words)
    assert data.item(0, 0).target.prompt.text == "object detection : cup. jar"
    assert data.item(0, 5).target.prompt.text == CAPTION
    assert data.item(0, 8).target.prompt.text == "object detection : dog. cat. car. shark. bow"


def test_tables_of_few_classes_and_settings_of_their_prompts(tmp_path: Path, words: Tokenizer) -> None:
    sets = {"table": as_table(tmp_path / "t")}
    none = build_training_data(training_config(tmp_path, sets, CONTROL_PROB=[0, 1, 0, 0]), words)
    assert {len(none.item(0, index).target.prompt) for index in range(4)} == {2}
    two = build_training_data(training_config(tmp_path, sets, CONTROL_PROB=[0, 0, 1, 0], RANDOM_SAMPLE_NEG=1), words)
    assert {len(two.item(0, index).target.prompt) for index in range(12)} == {2, 3}
    for wrong in ([0.5, 0.5, 0.5, 0], []):
        with pytest.raises(ConfigError, match=r"table: DATASETS\.CONTROL_PROB is .* must be four numbers"):
            build_training_data(training_config(tmp_path, sets, CONTROL_PROB=wrong), words)


@pytest.mark.parametrize(
    ("kind", "extra", "same"),
    [("coco_grounding", {}, True), ("coco_grounding", {"FEW_SHOT_SHUFFLE": True}, False), ("coco", {}, False)],
)
def test_seeds_of_few_shots(
    tmp_path: Path, words: Tokenizer, caplog: pytest.LogCaptureFixture, kind: str, extra: dict[str, Any], same: bool
) -> None:
    sets = {"boxes": {**as_coco(tmp_path / "c", images=30), "kind": kind}}
    chosen = set()
    for seed in range(6):
        cfg = training_config(tmp_path, sets, FEW_SHOT=3, SHUFFLE_SEED=seed, **extra)
        dataset = build_training_data(cfg, words).sets[0].dataset
        assert isinstance(dataset, CocoGrounding)
        chosen.add(tuple(dataset.image_id(index) for index in range(len(dataset))))
    assert (len(chosen) == 1) == same
    assert ("FEW_SHOT_SHUFFLE True makes it do so" in caplog.text) == same


def test_few_shots_are_of_classes(tmp_path: Path, words: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    data = build_training_data(everything(tmp_path, FEW_SHOT=1), words)
    assert [count for _, count, _ in data.plan.sets] == [1, 3, 4]
    assert "table: DATASETS.FEW_SHOT chooses among classes" in caplog.text or "words: DATASETS.FEW_SHOT" in caplog.text


def test_sizes_that_the_annotations_do_not_give(
    tmp_path: Path, words: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    entry = as_coco(tmp_path / "c", images=8)
    data = coco(8)
    for row in data["images"]:
        del row["height"]
    Path(entry["ann_file"]).write_text(json.dumps(data))
    found = build_training_data(training_config(tmp_path, {"boxes": entry}), words)
    assert "boxes: the annotations give no size for 8 pictures: read from the pictures" in caplog.text
    for batch in found.loader(0):
        assert len({meta.size[0] >= meta.size[1] for meta in batch.images.metas}) == 1


# what goes wrong


def test_nothing_to_train_on(tmp_path: Path, words: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN names no data set"):
        build_training_data(training_config(tmp_path, {}), words)


def test_missing_pictures_are_told_before_the_first_step(tmp_path: Path, words: Tokenizer) -> None:
    sets = {"boxes": as_coco(tmp_path / "c")}
    for name in ("2.png", "4.png"):
        (tmp_path / "c" / name).unlink()
    with pytest.raises(DataError, match=r"boxes: 2 of 5 pictures are missing, such as .*2\.png"):
        build_training_data(training_config(tmp_path, sets), words)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_stops_the_training_in_one_line(tmp_path: Path, words: Tokenizer, workers: int) -> None:
    sets = {"boxes": as_coco(tmp_path / "c", images=4)}
    data = build_training_data(training_config(tmp_path, sets), words)
    (tmp_path / "c" / "3.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"3\.png \(image id 3\): not a picture.*: mend or replace the file") as error:
        list(data.loader(0, workers=workers))
    assert "\n" not in str(error.value)


def test_pictures_of_another_size_are_counted(
    tmp_path: Path, words: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    sets = {"boxes": as_coco(tmp_path / "c", images=4)}
    Image.new("RGB", (50, 20)).save(tmp_path / "c" / "3.png")
    list(build_training_data(training_config(tmp_path, sets), words).loader(0))
    assert "boxes: pictures that do not fit their annotations: 1 in this epoch, such as" in caplog.text
    assert "3.png: 50x20 pixels, but 32x40 by the annotations" in caplog.text


def test_pictures_of_one_set_are_varied_and_those_of_another_are_not(tmp_path: Path, words: Tokenizer) -> None:
    row = as_coco(tmp_path / "pictures")
    Image.new("RGB", SIZE[::-1], (200, 40, 40)).save(tmp_path / "pictures" / "2.png")
    own = {"augment": {"HUE": 0.5, "FLIP_PROB_TRAIN": 1, "MULT_MIN_SIZE_TRAIN": [24]}}
    plain = ("AUGMENT.MULT_MIN_SIZE_TRAIN", "(48,)", "AUGMENT.FLIP_PROB_TRAIN", "0.0")
    data = build_training_data(training_config(tmp_path, {"plain": row, "varied": row | own}, *plain), words)
    colours: dict[str, set[tuple[int, ...]]] = {"plain": set(), "varied": set()}
    lefts: dict[str, set[float]] = {"plain": set(), "varied": set()}
    for part in data.sets:
        for seed in range(9):
            item = part.item(1, rng_for(seed, 0, 0))
            assert item.pixels.shape[1] == (48 if part.dataset.name == "plain" else 24)
            colours[part.dataset.name].add(tuple(item.pixels[:, 5, 5].tolist()))
            lefts[part.dataset.name].add(float(item.target.boxes[0, 0]))
    assert colours["plain"] == {(200, 40, 40)}
    assert len(colours["varied"]) == 9
    assert len(lefts["plain"]) == len(lefts["varied"]) == 1
    assert lefts["plain"] != lefts["varied"]


def test_a_set_that_is_varied_in_training_can_be_scored_too(tmp_path: Path, words: Tokenizer) -> None:
    row = {**as_coco(tmp_path / "c"), "kind": "coco", "augment": {"HUE": 0.5}, "copies": "COCO_COPY"}
    cfg = training_config(tmp_path, {"boxes": row})
    assert build_training_data(cfg, words).sets[0].transform.jitter.hue == 0.5
    assert len(CocoDataset.from_entry(resolve(cfg, "boxes", "test"))) == 5


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"HEU": 0.5}, "DATASETS.REGISTER.one.augment: 'HEU' is not one of FLIP_PROB_TRAIN, VERTICAL"),
        (0.5, "DATASETS.REGISTER.one.augment is 0.5: give keys of AUGMENT"),
        ({"HUE": 0.7}, "AUGMENT.HUE 0.7 (DATASETS.REGISTER.one.augment) must be from 0 to 0.5"),
        (
            {"FLIP_PROB_TRAIN": "often"},
            ".one.augment: AUGMENT.FLIP_PROB_TRAIN expects float like 0.5, got 'often'",
        ),
    ],
)
def test_mistakes_in_how_pictures_of_a_set_are_varied(tmp_path: Path, words: Tokenizer, own: Any, told: str) -> None:
    row = {**as_coco(tmp_path / "c"), "augment": own}
    with pytest.raises(ConfigError, match=re.escape(told)):
        build_training_data(training_config(tmp_path, {"one": row}), words)


def test_a_key_of_an_entry_that_nothing_reads(tmp_path: Path, words: Tokenizer) -> None:
    sets = {"boxes": {**as_coco(tmp_path / "c"), "imgdir": "x"}}
    with pytest.raises(DataError, match="data set 'boxes': nothing reads its key 'imgdir' when it is of kind 'coco_g"):
        build_training_data(training_config(tmp_path, sets), words)
    sets = {"boxes": {**as_coco(tmp_path / "c"), "copies": "MY_COPY"}}
    with pytest.raises(ConfigError, match="data set 'boxes': copies names 'MY_COPY', which is no key of DATASETS"):
        build_training_data(training_config(tmp_path, sets), words)


def test_words_around_the_names_and_a_table(tmp_path: Path, words: Tokenizer) -> None:
    """A caption prompt is for sets with the classes that it names: a table has names of its own."""
    prompt = [{"prefix": "", "name": name, "suffix": ""} for name in ("cup", "jar")]
    keys: dict[str, Any] = {"CAPTION_PROMPT": prompt, "USE_CAPTION_PROMPT": True, "DISABLE_SHUFFLE": True}
    data = build_training_data(everything(tmp_path, **keys), words)
    assert data.item(0, 8).target.prompt.text == "dog. cat. car. shark. bow"
