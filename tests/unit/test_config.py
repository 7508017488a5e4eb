"""The config loader: sources, types, messages, what was read, and the frozen result."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_benchmark.config import TRAINING_KEYS, Cfg, get_defaults, is_under, load_cfg, problems
from maskrcnn_benchmark.errors import ConfigError

KEYS = Path(__file__).with_name("config_keys.txt")
Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file into the current folder of the test."""
    monkeypatch.chdir(tmp_path)

    def _write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return _write


def changed(cfg: Cfg) -> dict[str, Any]:
    """The keys that somebody set."""
    return {key: value for key, value in cfg.keys_and_values() if cfg.source(key) != "default"}


def message(*args: Any, **kwargs: Any) -> str:
    """What the loader says when it refuses; always one line."""
    with pytest.raises(ConfigError) as error:
        load_cfg(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_list_of_keys_is_the_reviewed_one() -> None:
    now = "".join(f"{key} = {value!r}\n" for key, value in get_defaults().keys_and_values())
    assert now == KEYS.read_text(encoding="utf-8"), f"a key or a default changed: write the new list to {KEYS.name}"


def test_training_keys_exist() -> None:
    assert [key for key in TRAINING_KEYS if not get_defaults().has(key)] == []


def test_later_sources_win_and_are_remembered(write: Write) -> None:
    write("base/far.yaml", "TEST: {IMS_PER_BATCH: 1, EVAL_TASK: detection, CHUNKED_EVALUATION: 5}\n")
    near = write("near.yaml", "_BASE_: base/far.yaml\nTEST: {IMS_PER_BATCH: 2, EVAL_TASK: grounding}\n")
    task = write("task.yaml", "TEST: {IMS_PER_BATCH: 3}\n")
    cfg = load_cfg(near, task, ["TEST.PAD_TEXT", "True", "TEST.PAD_TEXT", "False"])
    test = cfg.TEST
    assert (test.CHUNKED_EVALUATION, test.EVAL_TASK, test.IMS_PER_BATCH, test.PAD_TEXT) == (5, "grounding", 3, False)
    sources = {
        key: cfg.source(f"TEST.{key}") for key in ("CHUNKED_EVALUATION", "EVAL_TASK", "IMS_PER_BATCH", "PAD_TEXT")
    }
    assert list(sources.values()) == ["base/far.yaml", "near.yaml", "task.yaml", "command line"]
    assert cfg.source("MODEL.WEIGHT") == "default"


def test_a_file_that_lies_anywhere_builds_on_a_config_of_the_package(write: Write) -> None:
    task = write("mine/task.yaml", "_BASE_: configs/base/task.yaml\nDATASETS: {TEST: [fruit]}\n")
    cfg = load_cfg(task_config=task)
    assert (tuple(cfg.DATASETS.TEST), cfg.source("INPUT.MIN_SIZE_TEST")[-9:]) == (("fruit",), "task.yaml")
    write("mine/configs/base/task.yaml", "INPUT: {MIN_SIZE_TEST: 7}\n")
    assert load_cfg(task_config=task).INPUT.MIN_SIZE_TEST == 7


def test_configs_are_found_from_any_folder(write: Write) -> None:
    name = "pretrain/glip_Swin_L.yaml"
    here = load_cfg(name)
    assert here == load_cfg(f"configs/{name}")
    write(f"configs/{name}", "OUTPUT_DIR: mine\n")
    assert load_cfg(f"configs/{name}").OUTPUT_DIR == "mine"
    assert load_cfg(name) == here


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.BASE_LR", "1", 1.0),
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("TEST.CHUNKED_EVALUATION", "-1", -1),
        ("TEST.PAD_TEXT", "True", True),
        ("TEST.PAD_TEXT", "false", False),
        ("OUTPUT_DIR", "123", "123"),
        ("DATASETS.SEPARATION_TOKENS", ". ", ". "),
        ("DATASETS.SEPARATION_TOKENS", '"; "', "; "),
        ("DATASETS.TEST", "('val',)", ("val",)),
        ("DATASETS.TEST", '["val", "test"]', ("val", "test")),
        ("DATASETS.TEST", "()", ()),
        ("MODEL.RPN.ASPECT_RATIOS", "(1, 2)", (1.0, 2.0)),
        ("INPUT.PIXEL_MEAN", [0, 0.5, 1], (0.0, 0.5, 1.0)),
        ("SOLVER.STEPS", "(0.5, 0.75)", (0.5, 0.75)),
        ("SOLVER.STEPS", "(10, 20)", (10, 20)),
        ("DATASETS.CAPTION_PROMPT", '[{"name": "eel"}]', [{"prefix": "", "name": "eel", "suffix": ""}]),
        ("DATASETS.CAPTION_PROMPT", "None", None),
        ("DATASETS.OVERRIDE_CATEGORY", "[{'id': 0, 'name': \"cat's\"}]", [{"id": 0, "name": "cat's"}]),
        (
            "DATASETS.OVERRIDE_CATEGORY",
            '[{"id": 0, "name": "eel", "of": null}]',
            [{"id": 0, "name": "eel", "of": None}],
        ),
        ("DATASETS.SUPRESS_QUERY", "person", ("person",)),
        ("DATASETS.SUPRESS_QUERY", "['person', 'car']", ("person", "car")),
        ("SOLVER.TUNING_HIGHLEVEL_OVERRIDE", "full", "full"),
        ("TEST.EXPECTED_RESULTS", "[['bbox', 'AP', [0.4, 0.01]]]", (("bbox", "AP", 0.4, 0.01),)),
        ("TEST.EXPECTED_RESULTS", "[['segm', 'AP50', 1, 0]]", (("segm", "AP50", 1.0, 0.0),)),
    ],
)
def test_values(key: str, text: object, value: object) -> None:
    cfg = load_cfg(opts=[key, text])
    assert changed(cfg) == {key: value}
    assert type(cfg.peek(key)) is type(value)
    assert cfg.source(key) == "command line"


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (["MODEL.WEIGTH", "x"], "command line: no config key 'MODEL.WEIGTH'. Did you mean MODEL.WEIGHT?"),
        (["AUGMENT.HUU", "0.3"], "command line: no config key 'AUGMENT.HUU'. Did you mean AUGMENT.HUE?"),
        (
            ["MODEL.NUM_CONVS", "6"],
            "command line: no config key 'MODEL.NUM_CONVS'. Did you mean MODEL.DYHEAD.NUM_CONVS or "
            "MODEL.RETINANET.NUM_CONVS?",
        ),
        (["QUITE.ELSE", "1"], "command line: no config key 'QUITE.ELSE'."),
        (["TEST.SPEED=4", "x"], "command line: 'TEST.SPEED=4' is not a key: write TEST.SPEED 4 with a space"),
        (["SOLVER.BASE_LR", "abc"], "command line: SOLVER.BASE_LR expects float like 0.001, got 'abc'"),
        (["TEST.IMS_PER_BATCH", "1.5"], "command line: TEST.IMS_PER_BATCH expects int like 16, got '1.5'"),
        (["TEST.IMS_PER_BATCH", "True"], "command line: TEST.IMS_PER_BATCH expects int like 16, got 'True'"),
        (
            ["TEST.EXPECTED_RESULTS", "[['AP', 0.4]]"],
            'command line: TEST.EXPECTED_RESULTS expects a list like [["bbox", "AP", [0.384, 0.002]]]: task, metric, '
            "mean and standard deviation, got \"[['AP', 0.4]]\"",
        ),
        (["TEST.PAD_TEXT", "1"], "command line: TEST.PAD_TEXT expects True or False, got '1'"),
        (["DATASETS.TEST", "val"], "command line: DATASETS.TEST expects a tuple of names like \"('val',)\", got 'val'"),
        (
            ["MODEL.SWINT.DEPTHS", "(2, 2, 6, 2.5)"],
            "command line: MODEL.SWINT.DEPTHS expects a tuple of int like (2, 2, 6, 2), got '(2, 2, 6, 2.5)'",
        ),
        (
            ["DATASETS.CAPTION_PROMPT", '[{"nam": "eel"}]'],
            "command line: DATASETS.CAPTION_PROMPT expects a list like "
            '[{"prefix": "", "name": "fish", "suffix": ""}], got \'[{"nam": "eel"}]\'',
        ),
        (["MODEL", "1"], "command line: MODEL is a group of keys like MODEL.META_ARCHITECTURE, got '1'"),
        (
            ["TEST.IMS_PER_BATCH"],
            "command line: 'TEST.IMS_PER_BATCH' has no value: give pairs like TEST.IMS_PER_BATCH 4",
        ),
        (
            ["TEST.PAD_TEXT", "TEST.EVAL_TASK", "detection"],
            "command line: 'TEST.PAD_TEXT' has no value: give pairs like TEST.IMS_PER_BATCH 4",
        ),
        (
            ["TEST.PAD_TEXT", "True", "--weight", "x.pth"],
            "command line: '--weight' stands after KEY VALUE pairs: put options before them",
        ),
        (
            ["MODEL.DYHEAD.USE_GN", "False"],
            "command line: MODEL.DYHEAD.USE_GN False is not offered (no released network has it): take it out",
        ),
    ],
)
def test_refused_on_the_command_line(opts: list[str], expected: str) -> None:
    assert message(opts=opts) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "MODEL: {WEIGTH: x}", "a.yaml: no config key 'MODEL.WEIGTH'. Did you mean MODEL.WEIGHT?"),
        ("a.yaml", "TEST: {IMS_PER_BATCH: many}", "a.yaml: TEST.IMS_PER_BATCH expects int like 16, got 'many'"),
        ("a.yaml", "TEST: {PAD_TEXT: 0}", "a.yaml: TEST.PAD_TEXT expects True or False, got 0"),
        ("a.yaml", "MODEL: {WEIGHT: }", "a.yaml: MODEL.WEIGHT expects text, got None"),
        ("a.yaml", "MODEL: 3", "a.yaml: MODEL is a group of keys like MODEL.META_ARCHITECTURE, got 3"),
        ("a.yaml", "1: 2", "a.yaml: a key under the top is not text: 1"),
        ("a.yaml", "- MODEL", "a.yaml: expects keys and values like 'MODEL:', got a list"),
        ("a.yaml", "TEST:\n  X: [1\nY: 2", "a.yaml line 3: is not valid YAML: expected ',' or ']', but got ':'"),
        (
            "a.yaml",
            "TEST:\n  PAD_TEXT: true\n  PAD_TEXT: false",
            "a.yaml line 3: is not valid YAML: 'PAD_TEXT' is written twice (lines 2 and 3)",
        ),
        (
            "a.yaml",
            "MODEL: !!python/object/apply:os.system [exit]",
            "a.yaml line 1: is not valid YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        (
            "a.yaml",
            "DATASETS: {REGISTER: {mine: path}}",
            "a.yaml: DATASETS.REGISTER.mine expects keys like img_dir and ann_file, got 'path'",
        ),
        (
            "a.yaml",
            "DATASETS: {REGISTER: {mine: {ann_file: 2020-01-01}}}",
            "a.yaml: DATASETS.REGISTER.mine expects text and numbers, got {'ann_file': datetime.date(2020, 1, 1)}",
        ),
        ("a.yaml", "_BASE_: bass.yaml", "a.yaml: its _BASE_ 'bass.yaml' does not exist. Did you mean base.yaml?"),
        ("a.yaml", "_BASE_: a.yaml", "a.yaml: _BASE_ runs in a circle: a.yaml -> a.yaml"),
        ("a.yaml", "_BASE_: base.yaml", "a.yaml: _BASE_ runs in a circle: a.yaml -> base.yaml -> a.yaml"),
        ("a.yaml", "_BASE_: 3", "a.yaml: _BASE_ expects the path of a YAML file, relative to this one, got 3"),
        (
            "a.py",
            "print(1)",
            "a.py: a config is a YAML file; a Python file is refused because reading it would run it",
        ),
        ("a.json", "{}", "a.json: a config is a YAML file, named .yaml or .yml"),
    ],
)
def test_refused_in_a_file(write: Write, name: str, text: str, expected: str) -> None:
    write("base.yaml", "_BASE_: a.yaml\n")
    assert message(write(name, text)) == expected


def test_a_missing_file_is_told_with_names_that_are_close(write: Write) -> None:
    said = message("configs/pretrain/glip_Swin_XL.yaml")
    assert said.startswith("no config file 'configs/pretrain/glip_Swin_XL.yaml'. Did you mean ")
    assert "configs/pretrain/glip_Swin_L.yaml" in said
    write("folder/a.yaml", "")
    assert message("folder") == "config file 'folder' is a folder: name a YAML file in it"


def test_an_empty_file_and_an_empty_group_change_nothing(write: Write) -> None:
    assert changed(load_cfg(write("a.yaml", "TEST:\n"))) == {}
    assert changed(load_cfg(write("b.yaml", "# nothing\n"))) == {}


def test_every_problem_is_told_at_once() -> None:
    said = message(opts=["TEST.EVAL_TASK", "detect", "INPUT.MAX_SIZE_TEST", "10", "SOLVER.STEPS", "(0.5, 100)"])
    assert said == (
        "3 problems: (1) TEST.EVAL_TASK 'detect' (command line) is not one of '', 'detection', 'grounding'; "
        "(2) INPUT.MIN_SIZE_TEST 800 (default) and INPUT.MAX_SIZE_TEST 10 (command line): the short side is longer "
        "than the long side; (3) SOLVER.STEPS (0.5, 100) (command line) mixes fractions of the training with "
        "iterations: write one or the other"
    )


FIBER = "pretrain/mixed_nococo_flickr_objects365.yaml"


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (["TEST.IMS_PER_BATCH", "0"], "must be at least 1"),
        (["MODEL.ATSS.NMS_TH", "1.5"], "must be from 0 to 1"),
        (["TEST.CHUNKED_EVALUATION", "0"], "must be -1 (off) or at least 1"),
        (["INPUT.PIXEL_STD", "(1, 1)"], "one per colour"),
        (["INPUT.PIXEL_STD", "(1, 1, 0)"], "must be above 0"),
        (["MODEL.SWINT.DEPTHS", "(2, 2, 18)"], "one per stage"),
        (["MODEL.SWINT.EMBED_DIM", "96"], "the channels must be (96, 192, 384, 768)"),
        (["MODEL.SWINT.NUM_HEADS", "(5, 8, 16, 32)"], "must divide the channels"),
        (["MODEL.SWINT.VERSION", "v1"], "a fused backbone needs a fused encoder"),
        (["MODEL.BACKBONE.FUSION_VERSION", "v1"], "use v2 or v3"),
        (["MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE", "bert-base-uncased"], "reads tokens of roberta-base"),
        (["MODEL.LANGUAGE_BACKBONE.NUM_HEADS", "5"], "must divide MODEL.LANGUAGE_BACKBONE.LANG_DIM 768 (default)"),
        (["MODEL.RPN.ANCHOR_STRIDE", "(8, 16)"], "one value per level"),
        (["MODEL.GROUP_NORM.NUM_GROUPS", "7"], "must divide MODEL.DYHEAD.CHANNELS 256"),
        (["SOLVER.STEPS", "(200, 100)"], "must grow"),
        (["SOLVER.STEPS", "(100.5,)"], "must be whole iterations"),
        (["DATASETS.CONTROL_PROB", "(0.5,)"], "must have 4 values"),
        (["DATASETS.REGISTER.mine.img_dir", 3], "DATASETS.REGISTER.mine.img_dir 3 (command line) must be a path"),
    ],
)
def test_values_that_do_not_go_together(opts: list[str], expected: str) -> None:
    assert expected in message(FIBER, opts=opts)


def test_batches_are_shared_by_the_processes() -> None:
    cfg = load_cfg(FIBER, opts=["TEST.IMS_PER_BATCH", "4"])
    assert problems(cfg, world_size=4) == []
    assert problems(cfg, world_size=8) == [
        "TEST.IMS_PER_BATCH 4 (command line) must be a multiple of the 8 processes that share a batch"
    ]


def test_data_sets_of_a_user(write: Write) -> None:
    task = write("t.yaml", "DATASETS: {REGISTER: {my.set: {img_dir: a, ann_file: a.json, extra: 1}}, TEST: [my.set]}\n")
    cfg = load_cfg(task, opts=["DATASETS.REGISTER.my.set.img_dir", "b", "DATASETS.REGISTER.two.img_dir", "c"])
    register = cfg.DATASETS.REGISTER
    assert register["my.set"] == {"img_dir": "b", "ann_file": "a.json", "extra": 1}
    assert register.two.img_dir == "c"
    assert cfg.source("DATASETS.REGISTER.two") == "command line"
    assert "DATASETS.REGISTER.two" not in [key for key, _, _ in cfg.unread()]


def test_what_nothing_read() -> None:
    opts = ["TEST.EVAL_TASK", "detection", "SOLVER.BASE_LR", "0.1", "MODEL.ATSS.NMS_TH", "0.5"]
    cfg, task = load_cfg(opts=opts), load_cfg(opts=[*opts, "TEST.CHUNKED_EVALUATION", "3"])
    assert cfg.TEST.EVAL_TASK == "detection"
    assert task.MODEL.ATSS.NMS_TH == 0.5
    rows = [("SOLVER.BASE_LR", 0.1, "command line"), ("TEST.CHUNKED_EVALUATION", 3, "command line")]
    assert sorted(cfg.unread(task)) == rows
    assert cfg.unread(task, ignore=("SOLVER",)) == rows[1:]
    assert cfg.unread(task, ignore=("SOLVER.BASE_L", "TEST.CHUNKED_EVALUATION")) == rows[:1]
    assert is_under("SOLVER.CLIP_GRADIENTS.ENABLED", TRAINING_KEYS)


def test_keys_without_effect_are_noted_once() -> None:
    keys = ("MODEL.FCOS.NUM_CLASSES", "MODEL.RETINANET.DETECTIONS_PER_IMG", "MODEL.ROI_HEADS.DETECTIONS_PER_IMG")
    opts = [*(word for key in keys for word in (key, 8)), "MODEL.WEIGHTS", "x.pth"]
    cfg = load_cfg(opts=[*opts, "MODEL.META_ARCHITECTURE", "GeneralizedVLRCNN"])
    assert cfg.notes == [
        "command line: MODEL.FCOS.NUM_CLASSES: no effect, as in the original (the data set says how many classes it "
        "has)",
        "command line: MODEL.RETINANET.DETECTIONS_PER_IMG, MODEL.ROI_HEADS.DETECTIONS_PER_IMG: no effect, as in the "
        "original (of another detector)",
        "command line: MODEL.WEIGHTS: called MODEL.WEIGHT here",
    ]
    assert changed(cfg) == {"MODEL.WEIGHT": "x.pth", "MODEL.META_ARCHITECTURE": "GeneralizedVLRCNN"}
    assert load_cfg(opts=opts[-4:]).MODEL.ROI_HEADS.DETECTIONS_PER_IMG == 8  # a detector that reads it


def test_a_loaded_config_does_not_change() -> None:
    cfg = load_cfg()
    for change in (
        lambda: setattr(cfg, "OUTPUT_DIR", "x"),
        lambda: setattr(cfg.MODEL, "WEIGHT", "x"),
        cfg.defrost,
        cfg.MODEL.defrost,
        lambda: cfg.merge_from_list(["OUTPUT_DIR", "x"]),
        lambda: cfg.assign("OUTPUT_DIR", "x", "a test"),
    ):
        with pytest.raises(AttributeError):
            change()
    with pytest.raises(AttributeError):
        _ = cfg.MODEL.WEIGTH


def test_an_override_is_a_copy_that_counts_reads_for_both() -> None:
    cfg = load_cfg(opts=["TEST.CHUNKED_EVALUATION", "3"])
    other = cfg.override({"TEST.IMS_PER_BATCH": 2}, "a test")
    assert (cfg.TEST.IMS_PER_BATCH, other.TEST.IMS_PER_BATCH) == (16, 2)
    assert (other.source("TEST.IMS_PER_BATCH"), other.source("TEST.CHUNKED_EVALUATION")) == ("a test", "command line")
    assert other.TEST.CHUNKED_EVALUATION == 3
    assert cfg.unread() == []
    with pytest.raises(ConfigError, match=r"a test: no config key 'TEST\.IMS'"):
        cfg.override({"TEST.IMS": 2}, "a test")
    with pytest.raises(ConfigError, match="must be at least 1"):
        cfg.override({"TEST.IMS_PER_BATCH": 0}, "a test")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cfg: pickle.loads(pickle.dumps(cfg)), Cfg.clone])
def test_copies_keep_what_is_known(copied: Callable[[Cfg], Cfg]) -> None:
    cfg = load_cfg("odinw/Aquarium_Aquarium_Combined.v2-raw-1024.coco.yaml")
    twin = copied(cfg)
    assert twin == cfg
    assert twin.is_frozen()
    assert twin.source("DATASETS.GENERAL_COPY") == cfg.source("DATASETS.GENERAL_COPY") != "default"


def test_the_dump_says_who_set_what_and_loads_again(write: Write) -> None:
    task = "odinw_35/Aquarium_Aquarium_Combined.v2-raw-1024.coco.yaml"
    cfg = load_cfg(FIBER, task, ["TEST.EVAL_TASK", "detection"])
    text = cfg.dump_with_sources()
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert lines["EVAL_TASK"].endswith("# command line")
    assert lines["GENERAL_COPY"].endswith("configs/odinw/Aquarium_Aquarium_Combined.v2-raw-1024.coco.yaml")
    assert lines["IMS_PER_BATCH"].endswith("configs/base/finetune_task.yaml")
    assert lines["TO_BGR255"].endswith("# default")
    assert load_cfg(write("config.yml", text)) == cfg


def test_the_dump_leaves_out_groups_that_nobody_set_or_read() -> None:
    cfg = load_cfg(opts=["TEST.EVAL_TASK", "detection"])
    assert cfg.INPUT.MAX_SIZE_TEST == 1333
    groups = [line for line in cfg.dump_with_sources().splitlines() if line.endswith(":")]
    assert groups == ["INPUT:", "TEST:"]
