"""What a fine-tuning command asks for: which trainings, and the config of each.

The order of precedence is that of FIBER's ``finetune.py`` (https://github.com/microsoft/FIBER): config file, task file,
what the command's own options say, KEY VALUE; ``SOLVER.TUNING_HIGHLEVEL_OVERRIDE`` then sets the keys it stands for.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.config import Cfg, load_cfg
from maskrcnn_benchmark.config.load import COMMAND_LINE
from maskrcnn_benchmark.config.task_files import find_task_files
from maskrcnn_benchmark.engine.freeze import with_tuning
from maskrcnn_benchmark.errors import ConfigError

logger = logging.getLogger(__name__)

SHOTS_OPTION = "--custom_shot_and_epoch_and_general_copy"
SEEDS_OPTION = "--shuffle_seeds"
ONLY_ZERO_SHOT = 10000  # as a number of shots: nothing is trained
TEST_SPLIT = "test"  # what task files call the set that is scored in the end; DATASETS.TEST chooses the best weights
POINTER_AS_WEIGHTS = "model_last_checkpoint.pth"  # stands for the file that last_checkpoint beside it names

NOT_COMPARED = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINTS_KEPT",
    "SOLVER.LOG_PERIOD",
    "SOLVER.ON_BAD_LOSS",
    "SOLVER.PICTURES_PERIOD",
    "TEST.IMS_PER_BATCH",
    "TEST.EVAL_ENGINE",
    "TEST.ON_BAD_IMAGE",
    "TEST.RETENTION_DATASET",
)
"""Keys that may be another when a command is run again: trainings that are finished stay what they are."""


@dataclass(frozen=True)
class Shots:
    """Pictures per class, passes over them, and how often each is in a pass."""

    shots: int
    epochs: int
    copies: int

    @classmethod
    def parse(cls, text: str) -> Shots:
        """From ``3_200_4``.

        Raises:
            ConfigError: it is no such text.
        """
        match = re.fullmatch(r"(\d{1,9})_(\d{1,9})_(-1|\d{1,9})", text.strip())
        if match is None:
            raise ConfigError(
                f"{SHOTS_OPTION} {text!r} must be three whole numbers SHOTS_EPOCHS_COPIES, such as 3_200_4 "
                "(0 shots: all pictures)"
            )
        made = cls(*map(int, match.groups()))
        if made.shots != ONLY_ZERO_SHOT and made.epochs < 1:
            raise ConfigError(f"{SHOTS_OPTION} {text!r}: the second number, epochs, must be at least 1")
        if made.copies == 0:
            raise ConfigError(f"{SHOTS_OPTION} {text!r}: the third number, copies, must be at least 1 (or -1: once)")
        return made


@dataclass(frozen=True)
class Run:
    """One training of a suite.

    Attributes:
        index: Of its task, from 1.
        task: Name of its task file, without folder and ending.
        seed: Of the choice of shots, where ``--shuffle_seeds`` gave several.
        trains: False: only the starting weights are scored.
        cfg: Everything else; ``OUTPUT_DIR`` is the folder of this training.
    """

    index: int
    task: str
    seed: int | None
    trains: bool
    cfg: Cfg

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def sets(self) -> tuple[str, ...]:
        """Data sets to score, the one that counts first: the test split of the task file, then ``DATASETS.TEST``."""
        chosen: tuple[str, ...] = self.cfg.DATASETS.TEST
        split = (TEST_SPLIT,) if TEST_SPLIT in self.cfg.DATASETS.REGISTER else ()
        return tuple(dict.fromkeys((*split, *chosen)))

    def settings(self) -> dict[str, Any]:
        """What the outcome depends on, in the types of JSON."""
        used = {f"DATASETS.REGISTER.{name}" for name in (*self.cfg.DATASETS.TRAIN, *self.sets)}
        values = {
            key: value
            for key, value in self.cfg.keys_and_values()
            if key not in NOT_COMPARED and (key in used or not key.startswith("DATASETS.REGISTER."))
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def plan_runs(
    config_file: str, tasks: str = "", opts: Sequence[str] = (), shots: str = "", seeds: str = ""
) -> list[Run]:
    """The trainings of a command line, task by task, seed by seed.

    Args:
        config_file: YAML file of the model.
        tasks: Globs of task files with commas between; empty: the config file has the data sets itself.
        opts: ``[KEY, VALUE, ...]``.
        shots: ``SHOTS_EPOCHS_COPIES``; empty: as the configs say.
        seeds: Numbers with commas between; empty: ``DATASETS.SHUFFLE_SEED`` as the configs say.

    Raises:
        ConfigError: an option, a file, a key or a value that will not do.
    """
    schedule = Shots.parse(shots) if shots else None
    files: list[Path | None] = list(find_task_files(tasks, "--ft-tasks")) if tasks else [None]
    trains = schedule is None or schedule.shots != ONLY_ZERO_SHOT
    numbers = parse_seeds(seeds) if seeds else [None]
    return [
        Run(
            index,
            (file or Path(config_file)).stem,
            seed,
            trains,
            task_config(config_file, file, opts, index=index, seed=seed, shots=schedule),
        )
        for index, file in enumerate(files, 1)
        for seed in numbers
    ]


def task_config(
    config_file: str | Path,
    task_file: str | Path | None = None,
    opts: Sequence[str] = (),
    *,
    index: int = 1,
    seed: int | None = None,
    shots: Shots | None = None,
) -> Cfg:
    """The config of one training; a function of its arguments and the files alone.

    Args:
        config_file: YAML file of the model.
        task_file: YAML file of the data; None: the former says it.
        opts: ``[KEY, VALUE, ...]``, which win over everything else here.
        index: Of the task, from 1; names the folder below the ``OUTPUT_DIR`` of config file and ``opts``.
        seed: ``DATASETS.SHUFFLE_SEED``. It counts for sets read as grounding too, as different seeds would otherwise
            choose the same shots; ``DATASETS.FEW_SHOT_SHUFFLE False`` among ``opts`` has them do so.
        shots: Shots, epochs and copies.

    Raises:
        ConfigError: a file, a key, a value, or a combination of values that will not do.
    """
    model = load_cfg(config_file, opts=opts)
    cfg = load_cfg(config_file, task_file, opts)
    if shots is not None:
        values = {
            "DATASETS.FEW_SHOT": 0 if shots.shots == ONLY_ZERO_SHOT else shots.shots,
            "SOLVER.MAX_EPOCH": shots.epochs,
            "DATASETS.GENERAL_COPY": shots.copies,
        }
        cfg = _weaker(cfg, values, SHOTS_OPTION)
    if seed is not None:
        cfg = _weaker(cfg, {"DATASETS.SHUFFLE_SEED": seed, "DATASETS.FEW_SHOT_SHUFFLE": True}, SEEDS_OPTION)
    last: dict[str, object] = {
        "OUTPUT_DIR": f"{model.OUTPUT_DIR}/ft_task_{index}{'' if seed is None else f'_seed_{seed}'}"
    }
    weight = Path(cfg.MODEL.WEIGHT)
    if weight.name == POINTER_AS_WEIGHTS:
        last["MODEL.WEIGHT"] = str(weight.with_name("last_checkpoint"))
    classes = "MODEL.DYHEAD.NUM_CLASSES"
    if cfg.peek(classes) != model.peek(classes) and cfg.peek("MODEL.DYHEAD.FUSE_CONFIG.USE_DOT_PRODUCT_TOKEN_LOSS"):
        logger.info("%s: %s has no effect: the words of the prompt are the classes", cfg.source(classes), classes)
        last[classes] = model.peek(classes)
    return with_tuning(cfg.override(last, f"task {index} of the suite"))


def _weaker(cfg: Cfg, values: Mapping[str, object], source: str) -> Cfg:
    """The config with these values, where the command line does not set the keys itself."""
    return cfg.override({key: value for key, value in values.items() if cfg.source(key) != COMMAND_LINE}, source)


def parse_seeds(text: str) -> list[int | None]:
    """From ``3,30,300``.

    Raises:
        ConfigError: it is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = next((part for part in parts if not re.fullmatch(r"\d{1,9}", part)), None)
    if wrong is not None:
        raise ConfigError(f"{SEEDS_OPTION} {text!r}: {wrong!r} is no whole number: give numbers such as 3,30,300")
    twice = next((part for part in parts if [int(p) for p in parts].count(int(part)) > 1), None)
    if twice is not None:
        raise ConfigError(f"{SEEDS_OPTION} {text!r} has {twice} twice: give each seed once")
    return [int(part) for part in parts]
