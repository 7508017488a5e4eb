"""Task files as they are named on a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn_benchmark.config.task_files import find_task_files
from maskrcnn_benchmark.errors import ConfigError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.yaml", "a.yaml", "c.yml", "notes.txt", "deep/d.yaml", "with [brackets].yaml"):
        (tmp_path / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tasks" / name).write_text("{}\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(patterns: str) -> list[str]:
    return [path.name for path in find_task_files(patterns)]


def test_files_folders_and_globs(here: Path) -> None:
    assert names("tasks/b.yaml, tasks/a.yaml,") == ["b.yaml", "a.yaml"]
    assert names("tasks") == names("tasks/*") == ["a.yaml", "b.yaml", "c.yml", "with [brackets].yaml"]
    assert names("tasks/*.yaml") == ["a.yaml", "b.yaml", "with [brackets].yaml"]
    assert names("tasks/**/*.yaml") == ["a.yaml", "b.yaml", "d.yaml", "with [brackets].yaml"]
    assert names("tasks/with [brackets].yaml") == ["with [brackets].yaml"]
    assert names(str(here / "tasks/b.yaml")) == ["b.yaml"]
    assert names("") == []


def test_a_file_counts_once(here: Path) -> None:
    assert names("tasks/b.yaml,tasks/*.yaml,./tasks") == ["b.yaml", "a.yaml", "with [brackets].yaml", "c.yml"]


def test_a_list_says_what_belongs_to_a_folder(here: Path) -> None:
    (here / "tasks/_all.json").write_text('["c.yml", "deep/d.yaml", "configs/odinw_13/pothole.yaml"]')
    assert names("tasks") == names("tasks/_all.json") == ["c.yml", "d.yaml", "pothole.yaml"]
    assert len(names("tasks/*.yaml")) == 3


@pytest.mark.parametrize("text", ["[]", "{}", "[1]", "not json"])
def test_lists_that_are_none(here: Path, text: str) -> None:
    (here / "tasks/_all.json").write_text(text)
    with pytest.raises(ConfigError, match=r"^tasks/_all.json: "):
        find_task_files("tasks")


def test_odinw_is_13_and_35_data_sets(here: Path) -> None:
    """From any folder; plantdoc_100x100 lies beside the 35 without being one of them."""
    thirteen, all_of_them = names("configs/odinw_13"), names("odinw_35")
    assert (len(thirteen), len(all_of_them)) == (13, 35)
    assert set(thirteen) < set(all_of_them) == set(names("configs/odinw_35/*.yaml")) - {"plantdoc_100x100.yaml"}
    assert sorted(all_of_them) == all_of_them


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "tasks/*.json",
            r"--task_config: 'tasks/\*.json' matches no YAML file here nor in .*configs.* give task files",
        ),
        ("empty", "--task_config: there is no YAML file in the folder 'empty'"),
        ("configs/odinw_13/potole.yaml", "no config file 'configs/odinw_13/potole.yaml'. Did you mean .*pothole.yaml"),
        ("tasks/x.json", "a config is a YAML file"),
        ("tasks/nowhere", r"--task_config: there is no file or folder 'tasks/nowhere'"),
    ],
)
def test_what_matches_nothing(here: Path, pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_task_files(pattern)
