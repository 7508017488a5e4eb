"""``tools/finetune.py`` on drawn scenes with a narrow network: the suite, its table, and answers to mistakes."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskrcnn_benchmark import cli, finetuning
from maskrcnn_benchmark.checkpoint.io import read_state_dict
from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.config.task_files import find_task_files
from maskrcnn_benchmark.engine.finetune import Run, Shots, parse_seeds, plan_runs, task_config
from maskrcnn_benchmark.engine.finetune_report import new_record, read_record, summarise, summary_table, write_record
from maskrcnn_benchmark.engine.freeze import TUNING
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.solver.build import Solver
from tests.narrow import CONFIG, Narrow, make_narrow
from tests.training_runs import environment, rows
from tests.unit.test_freeze import expected
from tools import finetune

TRAIN = (
    *("INPUT.MIN_SIZE_TRAIN", "64", "INPUT.MAX_SIZE_TRAIN", "96", "AUGMENT.MULT_MIN_SIZE_TRAIN", "()"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.CHECKPOINT_PER_EPOCH", "1.0", "TEST.DURING_TRAINING", "True"),
    *("DATASETS.TRAIN_DATASETNAME_SUFFIX", "_grounding", "SOLVER.WARMUP_ITERS", "0"),
)
COMMAND = """--config-file {config_file}  --ft-tasks {configs} --skip-test \
      --custom_shot_and_epoch_and_general_copy {custom_shot_and_epoch_and_general_copy} \
      --evaluate_only_best_on_test --push_both_val_and_test \
      MODEL.WEIGHT {model_checkpoint} \
      SOLVER.USE_AMP True TEST.DURING_TRAINING True TEST.IMS_PER_BATCH 4 SOLVER.IMS_PER_BATCH 4 \
      SOLVER.WEIGHT_DECAY 0.05 TEST.EVAL_TASK detection DATASETS.TRAIN_DATASETNAME_SUFFIX _grounding \
      MODEL.BACKBONE.FREEZE_CONV_BODY_AT 2 MODEL.DYHEAD.USE_CHECKPOINT True SOLVER.FIND_UNUSED_PARAMETERS False \
      SOLVER.TEST_WITH_INFERENCE True SOLVER.USE_AUTOSTEP True DATASETS.USE_OVERRIDE_CATEGORY True SOLVER.SEED 10 \
      DATASETS.SHUFFLE_SEED 3 DATASETS.USE_CAPTION_PROMPT True DATASETS.DISABLE_SHUFFLE True \
      SOLVER.STEP_PATIENCE 3 SOLVER.CHECKPOINT_PER_EPOCH 1.0 SOLVER.AUTO_TERMINATE_PATIENCE 8 SOLVER.MODEL_EMA 0.0 \
      SOLVER.TUNING_HIGHLEVEL_OVERRIDE full"""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module")
def tasks(narrow: Narrow) -> Path:
    """Two task files in the form of ODinW's: sets called train, val and test."""
    folder = narrow.folder / "tasks"
    folder.mkdir()
    for number, name in enumerate(("first", "second")):
        register = {}
        for seed, split in enumerate(("train", "val", "test"), 1):
            file = narrow.data(
                narrow.folder / name / split, count=6 if split == "train" else 2, seed=10 * number + seed
            )
            register[split] = {"ann_file": str(file), "img_dir": str(file.parent)}
        tree = {"DATASETS": {"REGISTER": register, "TRAIN": ["train"], "TEST": ["val"], "FEW_SHOT": 9}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder


def run(narrow: Narrow, output: Path, *words: str) -> int:
    """The tool in this process; returns its exit code."""
    argv = ["--config-file", CONFIG, *words, *narrow.opts, *TRAIN, "MODEL.WEIGHT", str(narrow.weights)]
    return cli.run(finetune.main, [*argv, "OUTPUT_DIR", str(output)])


def numbers(output: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((output / "finetune.json").read_text())
    return summary


def test_a_suite_trains_scores_tabulates_and_goes_on(
    narrow: Narrow, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heldout = narrow.data(tmp_path / "heldout", count=2, seed=99)
    words = ["--ft-tasks", f"{tasks}/*.yaml", "--custom_shot_and_epoch_and_general_copy", "1_1_1"]
    words += ["--shuffle_seeds", "3,30", "--push_both_val_and_test", "TEST.RETENTION_DATASET", "heldout"]
    words += [
        "DATASETS.REGISTER.heldout.img_dir",
        str(heldout.parent),
        "DATASETS.REGISTER.heldout.ann_file",
        str(heldout),
    ]
    trained, scored = _count(monkeypatch)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "_score_tuned", interrupt)
        assert run(narrow, tmp_path / "out", *words) == 130
    assert len(trained) == 1
    assert run(narrow, tmp_path / "out", *words) == 0
    assert [Path(folder).name for folder in trained] == [f"ft_task_{i}_seed_{s}" for i in (1, 2) for s in (3, 30)]
    assert len(scored) == 2 * 2 + 1 + 4 * 3, "zero-shot once for a task, retention before once for all"
    printed = capsys.readouterr().out

    summary = numbers(tmp_path / "out")
    rows = summary["rows"]
    assert [(row["task"], row["seed"], row["shots"], row["set"]) for row in rows] == [
        (task, seed, 1, "test") for task in ("first", "second") for seed in (3, 30)
    ]
    for row in rows:
        assert set(row["all_zero_shot"]) == set(row["all_fine_tuned"]) == {"val", "test"}
        assert row["best_step"] > 0
        folder = tmp_path / "out" / f"ft_task_{row['index']}_seed_{row['seed']}"
        found = json.loads((folder / "eval" / "model_best" / "test" / "results.json").read_text())
        assert found["weights"] == str(folder / "model_best.pth")
        assert found["metrics"]["AP"] == pytest.approx(row["fine_tuned"])
        assert 0 <= row["retention_before"] <= 1
        assert 0 <= row["retention_after"] <= 1
        assert f"{row['fine_tuned']:.4f}" in printed
    assert rows[0]["zero_shot"] == rows[1]["zero_shot"]
    two = [rows[2]["fine_tuned"], rows[3]["fine_tuned"]]
    assert summary["tasks"][1]["fine_tuned"]["mean"] == pytest.approx(sum(two) / 2)
    assert summary["tasks"][1]["fine_tuned"]["std"] == pytest.approx(abs(two[0] - two[1]) / 2**0.5)
    assert summary["mean"]["fine_tuned"]["mean"] == pytest.approx(sum(row["fine_tuned"] for row in rows) / 4)
    assert "mean of 2 tasks" in printed

    before = (len(trained), len(scored))
    assert run(narrow, tmp_path / "out", *words) == 0, "nothing is left to do"
    assert (len(trained), len(scored)) == before
    assert numbers(tmp_path / "out") == summary
    capsys.readouterr()
    assert run(narrow, tmp_path / "out", *words, "SOLVER.BASE_LR", "0.5") == 2
    err = capsys.readouterr().err
    assert "SOLVER.BASE_LR" in err
    assert "choose another OUTPUT_DIR" in err


def _count(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], list[str]]:
    """Folders of the trainings and names of the sets that are scored, beside what training itself scores."""
    trained: list[Path] = []
    scored: list[str] = []
    train, evaluate = finetuning.train, finetuning._score

    def counted_train(training: Any) -> Any:
        trained.append(training.folder)
        return train(training)

    def counted_score(job: Any, sets: str, side: str, *args: Any) -> None:
        have = len(job.record[sets]) + (side in job.record["retention"])
        evaluate(job, sets, side, *args)
        scored.extend([sets] * (len(job.record[sets]) + (side in job.record["retention"]) - have))

    monkeypatch.setattr(finetuning, "train", counted_train)
    monkeypatch.setattr(finetuning, "_score", counted_score)
    return trained, scored


def test_ten_thousand_shots_are_the_zero_shot_record(narrow: Narrow, tasks: Path, tmp_path: Path) -> None:
    words = ["--ft-tasks", f"{tasks}/first.yaml", "--custom_shot_and_epoch_and_general_copy", "10000_1_1"]
    assert run(narrow, tmp_path / "out", *words) == 0
    row = numbers(tmp_path / "out")["rows"][0]
    assert (row["shots"], row["fine_tuned"], row["steps"]) == (None, None, None)
    assert 0 <= row["zero_shot"] <= 1
    assert not list((tmp_path / "out").rglob("model_*.pth"))


def test_weights_that_an_earlier_call_left_are_scored_without_training(
    narrow: Narrow, tasks: Path, tmp_path: Path
) -> None:
    words = ["--ft-tasks", f"{tasks}/first.yaml", "--custom_shot_and_epoch_and_general_copy", "1_1_1"]
    assert run(narrow, tmp_path / "out", *words, "--skip-test") == 0
    first = numbers(tmp_path / "out")["rows"][0]
    assert (first["zero_shot"], first["fine_tuned"]) == (None, None)
    assert first["best_step"] > 0
    assert run(narrow, tmp_path / "out", *words, "--skip-train") == 0
    second = numbers(tmp_path / "out")["rows"][0]
    assert second["fine_tuned"] is not None
    assert second["steps"] == first["steps"]


def test_two_runs_do_not_share_a_folder(
    narrow: Narrow, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = (
        "import sys; from pathlib import Path; from maskrcnn_benchmark.engine.lock import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(
        command, env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert run(narrow, tmp_path, "--ft-tasks", f"{tasks}/first.yaml") == 2
        assert f"is in use by another run (process {process.pid} on " in capsys.readouterr().err
        process.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"], "and nothing is written"


SIX_STEPS = ["--custom_shot_and_epoch_and_general_copy", "1_6_1", "--skip-test", "SOLVER.USE_AUTOSTEP", "False"]
SIX_STEPS += ["SOLVER.STEPS", "(0.5,)", "SOLVER.LOG_PERIOD", "1"]


@pytest.fixture(scope="module")
def interrupted(narrow: Narrow, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of six steps that ended before the fifth."""
    step, folder = Solver.step, tmp_path_factory.mktemp("interrupted")

    def until_the_fifth(self: Solver) -> Any:
        if self.done == 4:
            raise KeyboardInterrupt
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Solver, "step", until_the_fifth)
        assert run(narrow, folder, "--ft-tasks", f"{tasks}/first.yaml", *SIX_STEPS) == 130
    return folder


@pytest.mark.parametrize("flags", [[], ["--skip_optimizer_resume"]])
def test_an_interrupted_training_goes_on_with_the_old_optimizer_or_a_fresh_one(
    narrow: Narrow, tasks: Path, interrupted: Path, tmp_path: Path, flags: list[str]
) -> None:
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    assert run(narrow, tmp_path, "--ft-tasks", f"{tasks}/first.yaml", *SIX_STEPS, *flags) == 0
    folder = tmp_path / "ft_task_1"
    state = torch.load(folder / "model_final.pth", weights_only=True)
    steps = {int(row["step"]) for row in state["optimizer"]["state"].values()}
    assert state["iteration"] == 6
    assert max(steps) == (2 if flags else 6)
    rates = [row["lr"] for row in rows(folder)]
    assert rates == pytest.approx([rates[0]] * 2 + [rates[0] / 10] * 4), (
        "of the next step; in any case the schedule goes on"
    )


@pytest.mark.parametrize("mode", list(TUNING))
def test_a_tuning_mode_trains_what_its_table_counts(
    narrow: Narrow, tasks: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    opts = ["SOLVER.TUNING_HIGHLEVEL_OVERRIDE", mode, "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "-1"]
    words = ["--ft-tasks", f"{tasks}/first.yaml", "--custom_shot_and_epoch_and_general_copy", "1_2_1", "--skip-test"]
    assert run(narrow, tmp_path, *words, *opts) == 0
    model = build_detector(task_config(CONFIG, None, [*narrow.opts, *opts]))
    may = expected(model, "fiber", mode)
    row = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("| all "))
    trained, frozen = (int(cell.replace(",", "")) for cell in row.split("|")[2:4])
    assert trained == sum(value.numel() for name, value in model.named_parameters() if name in may)
    assert frozen == sum(value.numel() for value in model.parameters()) - trained
    before = read_state_dict(narrow.weights)
    after = read_state_dict(tmp_path / "ft_task_1" / "model_final.pth")
    changed = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    assert changed
    assert changed <= may


@pytest.mark.parametrize("shots", ["1_200_8", "3_200_4", "5_200_2", "10_200_1", "0_200_1"])
def test_the_printed_command_lines_are_understood(
    narrow: Narrow, tasks: Path, tmp_path: Path, shots: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = COMMAND.format(
        config_file=CONFIG,
        configs=f"{tasks}/*.yaml",
        custom_shot_and_epoch_and_general_copy=shots,
        model_checkpoint=narrow.weights,
    )
    argv = ["--local-rank=0", *shlex.split(line), *narrow.opts, "OUTPUT_DIR", str(tmp_path / "out"), "--dry-run"]
    assert cli.run(finetune.main, argv) == 0
    told = capsys.readouterr().err
    assert "ft_task_2" in told
    assert "test: 2 pictures" in told
    assert "val: 2 pictures" in told, "--push_both_val_and_test"
    assert not list((tmp_path / "out").rglob("*"))


def config(narrow: Narrow, *opts: str, **kwargs: Any) -> Cfg:
    return task_config(CONFIG, narrow.folder / "tasks" / "first.yaml", [*narrow.opts, *opts], **kwargs)


def test_key_value_wins_over_the_options_and_these_over_the_task_file(narrow: Narrow, tasks: Path) -> None:
    shots = Shots(3, 200, 4)
    cfg = config(narrow, "SOLVER.MAX_EPOCH", "7", "OUTPUT_DIR", "here", index=2, seed=30, shots=shots)
    data = cfg.DATASETS
    assert (data.FEW_SHOT, data.GENERAL_COPY, data.SHUFFLE_SEED, cfg.SOLVER.MAX_EPOCH) == (3, 4, 30, 7)
    assert cfg.OUTPUT_DIR == "here/ft_task_2_seed_30"
    assert config(narrow).DATASETS.FEW_SHOT == 9
    assert config(narrow, "DATASETS.SHUFFLE_SEED", "5", seed=30).DATASETS.SHUFFLE_SEED == 5
    assert config(narrow).DATASETS.FEW_SHOT_SHUFFLE is False
    assert config(narrow, seed=30).DATASETS.FEW_SHOT_SHUFFLE is True, "other seeds, other shots"
    assert cfg.is_frozen()


def test_the_tuning_mode_and_the_pointer_to_weights_are_resolved(narrow: Narrow, tasks: Path) -> None:
    mode = ("SOLVER.TUNING_HIGHLEVEL_OVERRIDE", "linear_prob", "MODEL.WEIGHT", "run/model_last_checkpoint.pth")
    cfg = config(narrow, *mode)
    assert cfg.MODEL.LINEAR_PROB
    assert str(Path("run/last_checkpoint")) == cfg.MODEL.WEIGHT


def test_the_number_of_classes_of_a_task_file_does_not_change_the_network(narrow: Narrow, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("MODEL: {DYHEAD: {NUM_CLASSES: 8}}")
    wide = task_config(CONFIG, None, narrow.opts).MODEL.DYHEAD.NUM_CLASSES
    assert task_config(CONFIG, tmp_path / "task.yaml", narrow.opts).MODEL.DYHEAD.NUM_CLASSES == wide != 8


MISTAKES = {
    "two numbers": (["--custom_shot_and_epoch_and_general_copy", "1_200"], ("'1_200'", "3_200_4")),
    "no numbers": (["--custom_shot_and_epoch_and_general_copy", "a_b_c"], ("'a_b_c'", "3_200_4")),
    "no epochs": (["--custom_shot_and_epoch_and_general_copy", "1_0_1"], ("epochs",)),
    "no copies": (["--custom_shot_and_epoch_and_general_copy", "1_1_0"], ("copies",)),
    "no such task": (["--ft-tasks", "nowhere/*.yaml"], ("--ft-tasks", "'nowhere/*.yaml'", "matches no YAML file")),
    "one of two": (["--ft-tasks", "{tasks}/first.yaml,nowhere.yaml"], ("'nowhere.yaml'",)),
    "seed": (["--shuffle_seeds", "3,x"], ("--shuffle_seeds", "'x'")),
    "seed twice": (["--shuffle_seeds", "3,3"], ("--shuffle_seeds", "3 twice")),
    "retention": (["--ft-tasks", "{tasks}/*.yaml", "TEST.RETENTION_DATASET", "nothing"], ("RETENTION", "'nothing'")),
    "weights": (["--ft-tasks", "{tasks}/*.yaml", "MODEL.WEIGHT", "no.pth"], ("no.pth",)),
    "a later task": (["--ft-tasks", "{tasks}/*.yaml,{bad}"], ("away.json",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_is_trained(
    narrow: Narrow, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    words, told = MISTAKES[mistake]
    tree = yaml.safe_load((tasks / "second.yaml").read_text())
    tree["DATASETS"]["REGISTER"]["test"]["ann_file"] = "away.json"
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tree))
    words = [word.format(tasks=tasks, bad=tmp_path / "bad.yaml") for word in words]
    argv = ["--config-file", CONFIG, *narrow.opts, *TRAIN, "MODEL.WEIGHT", str(narrow.weights), *words]
    assert cli.run(finetune.main, [*argv, "OUTPUT_DIR", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for word in told:
        assert word in line
    assert not list((tmp_path / "out").rglob("ft_task*"))


def test_tasks_come_in_order_and_once(tasks: Path) -> None:
    files = find_task_files(f"{tasks}/second.yaml,{tasks}/*.yaml")
    assert [file.name for file in files] == ["second.yaml", "first.yaml"]
    assert len(find_task_files("configs/odinw_13")) == 13
    assert parse_seeds("3, 30,300") == [3, 30, 300]


def test_an_unreadable_record_is_made_again(narrow: Narrow, tasks: Path, tmp_path: Path) -> None:
    one = plan_runs(CONFIG, f"{tasks}/first.yaml", [*narrow.opts, "OUTPUT_DIR", str(tmp_path)])[0]
    write_record(one.folder, {**new_record(one), "zero_shot": {"test": 0.5}})
    assert read_record(one, begun=True)["zero_shot"] == {"test": 0.5}
    (one.folder / "result.json").write_text('{"half')
    assert read_record(one, begun=True) == new_record(one)


def record(one: Run, index: int, seed: int | None, ap: float | None) -> dict[str, Any]:
    tuned = {} if ap is None else {"test": ap}
    about = {"task": f"t{index}", "index": index, "seed": seed, "zero_shot": {"test": 0.25}, "fine_tuned": tuned}
    return {**new_record(one), **about}


def test_means_over_seeds_and_tasks(narrow: Narrow, tasks: Path) -> None:
    one = plan_runs(CONFIG, f"{tasks}/first.yaml", narrow.opts)[0]
    aps = {(1, 3): 0.2, (1, 30): 0.4, (2, 3): 0.6, (2, 30): 0.6}
    summary = summarise([record(one, *key, ap) for key, ap in aps.items()])
    assert summary["tasks"][0]["fine_tuned"] == pytest.approx({"mean": 0.3, "std": 0.02**0.5})
    assert summary["mean"]["fine_tuned"] == pytest.approx({"mean": 0.45, "std": 0.005**0.5})
    assert "0.4500 ± 0.0707" in summary_table(summary)
    part = summarise([record(one, 1, None, 0.5), record(one, 2, None, None)])
    assert part["tasks"][0]["fine_tuned"] == {"mean": 0.5, "std": None}
    assert part["mean"]["fine_tuned"] == {"mean": None, "std": None}, "no mean of a part"
    assert part["mean"]["zero_shot"]["mean"] == 0.25
