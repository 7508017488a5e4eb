"""The numbers of a fine-tuning suite: a record for each training, means over seeds and tasks, and a table."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.engine.finetune import Run
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.evaluation.report import table, write_files

logger = logging.getLogger(__name__)

RECORD, SUMMARY = "result.json", "finetune.json"
Row = dict[str, Any]
HEADER = ("task", "set", "shots", "seed", "zero-shot AP", "fine-tuned AP", "val AP", "best step", "retention AP")


def new_record(run: Run) -> Row:
    """The record of a training that has not begun: AP by data set, before and after."""
    cfg = run.cfg
    return {
        "task": run.task,
        "index": run.index,
        "seed": run.seed,
        "shots": cfg.DATASETS.FEW_SHOT if run.trains else None,
        "weights": cfg.MODEL.WEIGHT,
        "set": next(iter(run.sets), None),
        "val_set": next(iter(cfg.DATASETS.TEST), None),
        "zero_shot": {},
        "trained": None,
        "fine_tuned": {},
        "retention": {},
        "settings": run.settings(),
    }


def read_record(run: Run, begun: bool) -> Row:
    """The record of an earlier call of the command, or a new one.

    Args:
        run: The training.
        begun: It has checkpoints.

    Raises:
        ConfigError: that call trained with another config.
    """
    path, fresh = run.folder / RECORD, new_record(run)
    try:
        old: Row = json.loads(path.read_text(encoding="utf-8"))
        before, now = old["settings"], fresh["settings"]
    except FileNotFoundError:
        return fresh
    except (OSError, ValueError, KeyError, TypeError):
        logger.warning("%s cannot be read: its numbers are made again", path)
        return fresh
    differs = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if not differs:
        return {**fresh, **old}
    if old.get("trained") or begun:
        key = differs[0]
        more = f", and {len(differs) - 1} more keys differ" if len(differs) > 1 else ""
        raise ConfigError(
            f"{run.folder} was trained with {key} {before.get(key)!r}, now it is {now.get(key)!r} "
            f"({run.cfg.source(key) if run.cfg.has(key) else 'not set'}){more}: choose another OUTPUT_DIR, or empty it"
        )
    return fresh


def write_record(folder: Path, record: Row) -> None:
    write_files(folder, {RECORD: json.dumps(record, indent=1).encode()})


def summarise(records: Sequence[Row]) -> Row:
    """Rows, means over the seeds of each task, and means over the tasks.

    ``std`` is the standard deviation of a sample (n - 1): over the seeds of a task; for the mean over tasks, over what
    that mean is with each of the seeds. It is None where there is one seed.
    """
    rows = [_row(record) for record in records]
    tasks = []
    for index in dict.fromkeys(row["index"] for row in rows):
        mine = [row for row in rows if row["index"] == index]
        about = {key: mine[0][key] for key in ("index", "task", "set", "shots")}
        tasks.append({**about, "seeds": [row["seed"] for row in mine], **_statistics(mine)})
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    each = [_means([row for row in rows if row["seed"] == seed]) for seed in seeds]
    overall = {"tasks": len(tasks), "seeds": seeds, **_statistics(each)}
    return {"rows": rows, "tasks": tasks, "mean": overall}


NUMBERS = ("zero_shot", "fine_tuned", "val", "retention_before", "retention_after")


def _row(record: Row) -> Row:
    trained, name = record["trained"] or {}, record["set"]
    val = record["fine_tuned"].get(record["val_set"])
    if val is None and trained.get("best_step"):
        val = trained["best"]
    return {
        **{key: record[key] for key in ("index", "task", "set", "val_set", "shots", "seed", "weights")},
        "zero_shot": record["zero_shot"].get(name),
        "fine_tuned": record["fine_tuned"].get(name),
        "val": val,
        "retention_set": record["retention"].get("set"),
        "retention_before": record["retention"].get("before"),
        "retention_after": record["retention"].get("after"),
        "steps": trained.get("steps"),
        "best_step": trained.get("best_step"),
        "all_zero_shot": record["zero_shot"],
        "all_fine_tuned": record["fine_tuned"],
    }


def _present(rows: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if row[key] is not None]


def _means(rows: Sequence[Row]) -> dict[str, float | None]:
    """Mean of each number, None unless every row has it."""
    values = {key: _present(rows, key) for key in NUMBERS}
    return {key: statistics.fmean(found) if len(found) == len(rows) else None for key, found in values.items()}


def _statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation of each number; None where rows lack it."""
    made: dict[str, dict[str, float | None]] = {}
    for key in NUMBERS:
        found = _present(rows, key)
        whole = len(found) == len(rows)
        spread = statistics.stdev(found) if whole and len(found) > 1 else None
        made[key] = {"mean": statistics.fmean(found) if whole else None, "std": spread}
    return made


def summary_table(summary: Row) -> str:
    """The rows as a table; below those of a task, and at the end, means."""
    lines: list[list[object]] = []
    for task in summary["tasks"]:
        mine = [row for row in summary["rows"] if row["index"] == task["index"]]
        for row in mine:
            numbers = [_cell(row[key]) for key in ("zero_shot", "fine_tuned", "val")]
            kept = _kept(_cell(row["retention_before"]), _cell(row["retention_after"]))
            names = [row["task"], row["set"] or "-", _shots(row["shots"]), _cell(row["seed"])]
            lines.append([*names, *numbers, _cell(row["best_step"]), kept])
        if len(mine) > 1:
            lines.append(_mean_line(f"{task['task']}: mean", task, _shots(task["shots"]), f"{len(mine)} seeds"))
    if len(summary["tasks"]) > 1:
        mean = summary["mean"]
        lines.append(_mean_line(f"mean of {mean['tasks']} tasks", mean, "", ""))
    return table(HEADER, lines)


def _mean_line(name: str, means: Row, shots: str, seeds: str) -> list[object]:
    numbers = [_spread(means[key]) for key in ("zero_shot", "fine_tuned", "val")]
    kept = _kept(_spread(means["retention_before"]), _spread(means["retention_after"]))
    return [name, "", shots, seeds, *numbers, "", kept]


def _cell(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _shots(value: int | None) -> str:
    return "-" if value is None else "all" if value == 0 else str(value)


def _spread(number: Mapping[str, float | None]) -> str:
    return _cell(number["mean"]) + (f" ± {number['std']:.4f}" if number["std"] is not None else "")


def _kept(before: str, after: str) -> str:
    return "-" if before == after == "-" else f"{before} -> {after}"
