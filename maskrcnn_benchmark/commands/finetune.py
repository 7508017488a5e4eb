"""``mrb finetune --data``: a detector tuned on somebody's own data, by one command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.commands.data import count_table
from maskrcnn_benchmark.commands.estimate import estimate, workers
from maskrcnn_benchmark.commands.options import config_and_weight, existing_file
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.forms.read import usable
from maskrcnn_benchmark.data.forms.recognise import recognise
from maskrcnn_benchmark.data.forms.task import Taken, take
from maskrcnn_benchmark.engine.device import pick_device
from maskrcnn_benchmark.engine.distributed import launch
from maskrcnn_benchmark.engine.finetune_report import summary_table
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.finetuning import Stages
from maskrcnn_benchmark.finetuning import finetune as run_suite
from maskrcnn_benchmark.text.typed import split_names

ARCHITECTURE = "GeneralizedVLRCNN"  # the recipe of the task file is for it
HEADER = """\
# Written by `mrb finetune`; may be changed. Used again with `mrb finetune --task`, or with
# `tools/finetune.py --ft-tasks`.
"""
IN_ORDER = 50  # classes that surely fit a prompt together; of more, a prompt may have to leave some out
FEW_SHOT_EPOCHS, EPOCHS = 200, 12
COPIES = {10: 1, 5: 2, 3: 4, 1: 8}  # at least so many shots -> copies of each picture in an epoch, as GLIP and FIBER


def finetune(args: argparse.Namespace) -> None:
    """Tune a detector on data of any known form: finds out the form, converts, splits, chooses prompts and defaults.

    Writes the task file and everything else to the output folder; run again, it goes on where it was interrupted.
    """
    config, weight = config_and_weight(args)
    folder = _folder(args)
    opts = ["OUTPUT_DIR", str(folder), *(["MODEL.WEIGHT", weight] if weight else []), *args.opts]
    task = existing_file(args.task, "--task") if args.task else _prepare(args, config, opts, folder)
    if not args.no_estimate and args.gpus in (None, 1):
        print(estimate(config, task, opts), flush=True)
    if args.gpus is not None and args.gpus != 1:
        same = ["--config-file", config, *(["--weight", weight] if weight else []), "--output", str(folder)]
        flags = [f"--{name.replace('_', '-')}" for name in ("dry_run", "strict_config") if getattr(args, name)]
        command = ["finetune", "--task", str(task), *same, *flags, "--no-estimate"]
        launch(args.gpus, ["-m", "maskrcnn_benchmark.mrb", *command, *(["--set", *args.opts] if args.opts else [])])
    summary = run_suite(config, str(task), opts, stages=Stages(strict=args.strict_config), dry_run=args.dry_run)
    if summary:
        print(summary_table(summary))
        print(f"weights and results: {folder}")


def _folder(args: argparse.Namespace) -> Path:
    if args.output:
        folder = Path(args.output)
    elif args.data:
        path = Path(args.data).resolve()
        folder = Path("OUTPUT/finetune") / (path.stem if path.is_file() else path.name)
    else:
        folder = Path(args.task).parent
    if "," in str(folder):
        raise ConfigError(f"--output {str(folder)!r}: a comma cannot be in the name of this folder: choose another")
    return cli.output_folder(str(folder), "--output")


def _prepare(args: argparse.Namespace, config: str, opts: list[str], folder: Path) -> Path:
    """Find out what the data are, and write the task file."""
    cfg = load_cfg(config, opts=opts)
    if cfg.MODEL.META_ARCHITECTURE != ARCHITECTURE:
        raise ConfigError(
            f"{config}: mrb finetune tunes FIBER and GLIP ({ARCHITECTURE}), and MODEL.META_ARCHITECTURE is "
            f"{cfg.MODEL.META_ARCHITECTURE!r}: use mrb train for this one"
        )
    layout = recognise(args.data, args.images)
    data = usable(layout)
    print(f"{args.data}: {layout}")
    print(count_table(data))
    for part in layout.others:
        print(f"not used: {part.files[0]}")
    taken = take(layout, data, folder / "data", _prompts(args.names), args.val, args.seed)
    for line in taken.said:
        print(line)
    print(f"prompt: {', '.join(row['name'] for row in taken.categories)}")
    on_cpu = pick_device(cfg.MODEL.DEVICE).type == "cpu"
    path = folder / f"{folder.resolve().name or 'task'}.yaml"
    text = yaml.safe_dump(_task(args, taken, on_cpu), sort_keys=False, allow_unicode=True)
    path.write_text(HEADER + text, encoding="utf-8")
    print(f"task file: {path}")
    return path


def _task(args: argparse.Namespace, taken: Taken, on_cpu: bool) -> dict[str, Any]:
    """The task file: the published recipe of FIBER for one data set, on one GPU or a CPU."""
    shots, batch = args.shots or 0, args.batch or (2 if on_cpu else 4)
    datasets = {
        "TRAIN": ["train"],
        "TEST": ["val"],
        "REGISTER": taken.register,
        "TRAIN_DATASETNAME_SUFFIX": "_grounding",
        "USE_OVERRIDE_CATEGORY": True,
        "OVERRIDE_CATEGORY": taken.categories,
        "DISABLE_SHUFFLE": len(taken.categories) <= IN_ORDER,
        "FEW_SHOT": shots,
        "SHUFFLE_SEED": args.seed,
        "FEW_SHOT_SHUFFLE": True,
        "GENERAL_COPY": next(copies for least, copies in COPIES.items() if shots >= least) if shots else 1,
    }
    if args.caption_prompt:
        datasets |= {"USE_CAPTION_PROMPT": True, "CAPTION_PROMPT": _caption_prompt(args.caption_prompt)}
    solver = {
        "MAX_EPOCH": args.epochs or (FEW_SHOT_EPOCHS if shots else EPOCHS),
        "IMS_PER_BATCH": batch,
        "USE_AMP": not on_cpu,
        "WEIGHT_DECAY": 0.05,
        "WARMUP_ITERS": 0,
        "USE_AUTOSTEP": True,
        "USE_COSINE": False,  # of a model that was trained with it; the two exclude each other
        "WEIGHT_DECAY_SCHEDULE": False,  # which would follow fixed steps
        "STEP_PATIENCE": 3,
        "AUTO_TERMINATE_PATIENCE": 8,
        "CHECKPOINT_PER_EPOCH": 1.0,
        "TEST_WITH_INFERENCE": True,
        "FIND_UNUSED_PARAMETERS": False,
        "MODEL_EMA": 0.0,
        "TUNING_HIGHLEVEL_OVERRIDE": "full",
    }
    return {
        "DATASETS": datasets,
        "DATALOADER": {"NUM_WORKERS": workers(), "ASPECT_RATIO_GROUPING": False},
        "SOLVER": solver,
        "TEST": {"EVAL_TASK": "detection", "DURING_TRAINING": True, "IMS_PER_BATCH": batch},
        "MODEL": {"BACKBONE": {"FREEZE_CONV_BODY_AT": 2}, "DYHEAD": {"USE_CHECKPOINT": True}},
    }


def _prompts(text: str) -> dict[str, str]:
    """Class -> words, from "RBC=red blood cell, ...".

    Raises:
        ConfigError: it is no such text.
    """
    pairs = {}
    for item in split_names(text) if text else []:
        name, sign, words = (part.strip() for part in item.partition("="))
        if not sign or not name or not words:
            raise ConfigError(f"--names: {item!r} is not CLASS=WORDS")
        pairs[name] = words
    return pairs


def _caption_prompt(path: str) -> Any:
    try:
        tree = yaml.safe_load(existing_file(path, "--caption-prompt").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--caption-prompt {path!r}: not valid YAML ({error})") from None
    if isinstance(tree, dict):  # a task file that has one
        tree = tree.get("DATASETS", tree).get("CAPTION_PROMPT")
    if not isinstance(tree, list):
        raise ConfigError(f"--caption-prompt {path!r}: no list of prefix, name and suffix")
    return tree
