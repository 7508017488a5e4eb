"""Every config and every override that the golden cases and the published commands use is understood."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from maskrcnn_benchmark.config import load_cfg
from tests.golden.common import NO_SHARED, case_files, load_case, shared_path

CASES = [
    pytest.param(path, id=f"{system}-{name}")
    for system in ("fiber", "e2e")
    for name, path in case_files(system).items()
] or [pytest.param(None, id="no-case", marks=pytest.mark.skip(reason=NO_SHARED))]
PAIR = re.compile(r"\b((?:[A-Z][A-Z0-9_]*\.)+[A-Z0-9_]+|OUTPUT_DIR)\s+(\{[^}]*\}|[^\s\\]+)")


@pytest.mark.parametrize("path", CASES)
def test_configs_of_golden_cases_load(path: Path, tmp_path: Path) -> None:
    case = load_case(path)[0]
    if "config_file" not in case:
        return
    task = case.get("task_config")
    if task and "\n" in task:  # the text of a file
        (tmp_path / "task.yaml").write_text(task, encoding="utf-8")
        task = tmp_path / "task.yaml"
    opts = [*case["opts"], *case.get("extra_opts", [])]
    cfg = load_cfg(case["config_file"], task, opts)
    assert [key for key in opts[::2] if cfg.source(key) != "command line"] == []


def commands() -> list[tuple[str, list[str]]]:
    """(text, [KEY, VALUE, ...]) of the published commands that use this kind of config."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(shared_path("seeds").glob("*.txt"))]
    blocks = [
        block
        for text in texts
        if "tools/test_grounding_net.py" in text
        for block in re.findall(r"```\n(.*?)```", text, re.DOTALL)
        if "tools/" in block
    ]
    return [(block, [word for pair in PAIR.findall(block) for word in pair]) for block in blocks]


def test_overrides_of_published_commands_load() -> None:
    found = commands()
    assert len(found) >= 8
    assert any("SOLVER.TUNING_HIGHLEVEL_OVERRIDE" in opts for _, opts in found)
    for block, opts in found:
        config = re.search(r"--config-file (configs/\S+)", block)
        tasks = re.search(r"--task_config (configs/\S+)", block)
        for task in tasks[1].split(",") if tasks else [None]:
            load_cfg(config[1] if config else "pretrain/mixed_nococo_flickr_objects365.yaml", task, opts)
