"""The fenced blocks of a page of documentation, for tests that run them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900  # seconds for a command, also on a machine with much else to do
FENCE = re.compile(r"^```")

FIRST, RELEASED, INSTALL, TESTS = "first", "released", "install", "tests"
HOW = {
    r"make demo": FIRST,
    r"source \.venv/bin/activate": FIRST,
    r"python -m maskrcnn_benchmark\.data\.drawn .*": FIRST,
    r"mrb (detect|eval|finetune|serve|data check) [^{}]*": FIRST,
    r"cat > \w+\.yaml <<'END'": FIRST,
    r"mrb models": RELEASED,
    r"mrb (detect|finetune|data check) .*\{.*": RELEASED,
    r"(python|python -m torch\.distributed\.launch --nproc_per_node=4) tools/\w+\.py .*\{.*": RELEASED,
    r"pip install (-e )?\.": INSTALL,
    r"python setup\.py build develop": INSTALL,
    r"make test": TESTS,
}
"""What a command looks like -> what it needs. A command that is not here has no test."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: File it stands in.
        line: Number of the line after the fence, from 1.
        info: What stands after the fence: ``bash``, ``python``, ``python run``.
        text: The lines between the fences.
    """

    page: Path
    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def is_run(self) -> bool:
        """Whether the page says that the block runs as it stands."""
        return "run" in self.info.split()[1:]

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, each in one line; remarks at the end are left out."""
        joined = self.text.replace("\\\n", " ")
        rows = (re.sub(r"\s+", " ", re.sub(r"(^|\s)#.*", "", row)).strip() for row in joined.splitlines())
        return [row for row in rows if row]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: str | Path) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: the last one has no end.
    """
    page = ROOT / page
    found: list[Block] = []
    begin, info, lines = 0, "", list[str]()
    for number, row in enumerate(page.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not FENCE.match(row):
            lines.append(row)
        elif begin:
            found.append(Block(page, begin, info, "".join(lines)))
            begin = 0
        else:
            begin, info, lines = number + 1, row[3:].strip(), []
    if begin:
        raise ValueError(f"{page}:{begin}: this block has no end")
    return found


def indented(page: str | Path) -> list[str]:
    """``file:line`` of code that is marked by indentation alone: outside fences, after an empty line, not in a list."""
    found, fenced, listed, before = [], False, False, ""
    for number, row in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(row):
            fenced = not fenced
        elif not fenced and row.startswith("    ") and row.strip() and not before.strip() and not listed:
            found.append(f"{page}:{number}")
        if not fenced and row and not row[0].isspace():
            listed = bool(re.match(r"([-*+]|\d+\.)\s", row))
        before = row
    return found


def need_of(block: Block) -> str:
    """What the commands of a block need; all of them the same."""
    if block.language == "python":
        return FIRST
    assert block.language == "bash", f"{block}: nothing is known of blocks of {block.info!r}"
    needs = set()
    for command in re.sub(r"(?s)(<<'END').*?\nEND$", r"\1", block.text, flags=re.M).replace("\\\n", "").splitlines():
        line = re.sub(r"\s+", " ", command.partition(" #")[0]).strip()
        if line:
            matches = [need for pattern, need in HOW.items() if re.fullmatch(pattern, line)]
            assert len(matches) == 1, f"{block}: no test runs {line!r}: add it to HOW"
            needs |= set(matches)
    assert len(needs) == 1, f"{block}: commands of several kinds in one block: {needs}"
    return needs.pop()


def run_python(text: str, where: object, names: dict[str, Any]) -> None:
    """Run the lines of a page in this process; what they define goes into ``names``."""
    exec(compile(text, str(where), "exec"), names)


def run_shell(text: str, folder: Path, env: dict[str, str]) -> str:
    """Run shell lines, with this Python and its programs first; returns what they print to stdout.

    Raises:
        AssertionError: they end with another code than 0.
    """
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert run.returncode == 0, f"{text}\n{run.stdout}\n{run.stderr}"
    return run.stdout


def run_server(text: str, folder: Path, env: dict[str, str]) -> str:
    """Run shell lines that start a page and do not end, on a free port; returns the page and ends the server."""
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {text.strip()} --port 0"], cwd=folder, env=env, stdout=out, stderr=out
        )
        try:
            return _page(process, log)
        finally:
            process.terminate()
            process.wait(LIMIT)


def _page(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < end:
        if address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            with urllib.request.urlopen(address[0], timeout=LIMIT) as answer:
                return str(answer.read().decode())
        time.sleep(0.2)
    raise AssertionError(f"no page: {log.read_text()}")


def environment(base: dict[str, str], home: Path) -> dict[str, str]:
    """An environment in which ``python`` and ``mrb`` are those of the test, on one CPU thread."""
    programs = str(Path(sys.executable).parent)
    return base | {
        "PATH": f"{programs}:{base['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MB_CACHE": str(home / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
