"""Annotation indices on disk: when they are used again, when they are made anew, and who makes them."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from maskrcnn_benchmark.data.index import Arrays, Index, cache_folder, cached, pack, pack_value
from tests.unit.coco_files import coco, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Arrays:
        self.calls += 1
        numbers = {"n": np.arange(5), "none": np.zeros((0, 4), np.float32)}
        return numbers | pack("words", ["", "é", "dog"]) | pack_value("about", {"calls": self.calls})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "annotations [v2].json"
    path.write_text("{}")
    return path


def test_what_goes_in_comes_out(source: Path) -> None:
    for _ in range(2):
        index = cached("test", [source], 1, Builder())
        assert index["n"].tolist() == [0, 1, 2, 3, 4]
        assert index["none"].shape == (0, 4)
        assert index.texts("words") == ["", "é", "dog"]
        assert index.value("about") == {"calls": 1}


def test_files_are_read_once(source: Path, cache: Path) -> None:
    builder = Builder()
    first = cached("test", [source], 1, builder)
    again = cached("test", [source], 1, builder)
    assert builder.calls == 1
    assert isinstance(first["n"].base, np.memmap)
    assert isinstance(again["n"].base, np.memmap)
    assert not again["n"].flags.writeable
    assert [path.suffix for path in cache.iterdir() if not path.is_dir()] == [".lock"]


def test_a_file_that_changes_is_read_again_and_its_old_index_goes(source: Path, cache: Path) -> None:
    builder = Builder()
    cached("test", [source], 1, builder)
    for number, change in enumerate((lambda: source.write_text("{ }"), lambda: os.utime(source, (5, 5))), 2):
        change()
        cached("test", [source], 1, builder)
        assert builder.calls == number
    cached("test", [source], 2, builder)
    assert builder.calls == 4, "another version of the code"
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1
    cached("other", [source], 2, builder)
    assert builder.calls == 5, "another kind"


@pytest.mark.parametrize("harm", ["cut", "gone", "other", "about"])
def test_a_damaged_index_is_made_again(source: Path, cache: Path, caplog: pytest.LogCaptureFixture, harm: str) -> None:
    builder = Builder()
    cached("test", [source], 1, builder)
    file = next(cache.rglob("n.npy"))
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif harm == "gone":
        file.unlink()
    elif harm == "other":
        np.save(file, np.arange(4))
    else:
        next(cache.rglob("about.json")).write_text("{")
    assert cached("test", [source], 1, builder)["n"].tolist() == [0, 1, 2, 3, 4]
    assert builder.calls == 2
    assert "damaged" in caplog.text


@pytest.mark.parametrize("where", ["off", "0", "", "/dev/null/x"])
def test_without_a_cache(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    monkeypatch.setenv("MB_CACHE", where)
    assert cached("test", [source], 1, Builder())["n"].tolist() == [0, 1, 2, 3, 4]
    assert ("no index is kept" in caplog.text) == (where == "/dev/null/x")


def test_the_usual_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/maskrcnn_benchmark")


def test_a_worker_maps_the_same_file(source: Path) -> None:
    index = cached("test", [source], 1, Builder())
    sent = pickle.dumps(index)
    assert len(sent) < 500
    assert pickle.loads(sent)["n"].tolist() == [0, 1, 2, 3, 4]
    alone = Index(Builder()())
    assert pickle.loads(pickle.dumps(alone))["n"].tolist() == [0, 1, 2, 3, 4]


def test_of_several_processes_one_builds(source: Path, tmp_path: Path) -> None:
    code = f"""
import time, numpy as np
from pathlib import Path
from maskrcnn_benchmark.data.index import cached
def build():
    with open({str(tmp_path / "calls")!r}, "a") as file:
        file.write("x")
    time.sleep(0.5)
    return {{"n": np.arange(5)}}
assert cached("test", [Path({str(source)!r})], 1, build)["n"].tolist() == [0, 1, 2, 3, 4]
"""
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(300) for process in running] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "x"


def test_a_second_start_reads_no_annotations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = write(tmp_path, coco())
    first = CocoGrounding(tmp_path, path)
    assert "indexed in" in caplog.text
    caplog.clear()
    again = CocoGrounding(tmp_path, path)
    assert "indexed in" not in caplog.text
    assert again[0].target.boxes.tolist() == first[0].target.boxes.tolist()
