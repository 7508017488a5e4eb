"""The shape of the package: who may import whom, how long a file or function may be, where CUDA may be named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "maskrcnn_benchmark"
OUTSIDE = ("tools", "tests", "benchmarks")  # never imported by the package
FILES = sorted(path for folder in (PACKAGE.name, *OUTSIDE) for path in (ROOT / folder).rglob("*.py")) + sorted(
    ROOT.glob("*.py")
)

# A room may import from itself, from lower levels and, ALONE apart, from its own level.
LEVELS: dict[str, int] = {
    "errors": 0,
    "paths": 0,
    "config": 1,
    "structures": 1,
    "layers": 2,
    "text": 2,
    "modeling": 3,
    "data": 3,
    "evaluation": 3,
    "solver": 3,
    "checkpoint": 3,
    "engine": 4,
    "demo": 5,
    "doctor": 5,
    "api": 5,
    "cli": 5,
    "zero_shot": 5,
    "training": 5,
    "finetuning": 5,
    "pseudo_boxes": 5,
    "labelling": 5,
    "self_labelling": 5,
    "commands": 6,
    "mrb": 6,
    "__main__": 6,
}
ALONE = ("config", "structures")  # import nothing of their own level

COMPILED = ("_csrc_library.py", "_csrc_ops.py")  # say which devices the compiled operators have kernels for

MAX_FILE, MAX_FUNCTION = 500, 60


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def room(path: Path) -> str:
    """The part of the package a file belongs to: "config" for maskrcnn_benchmark/config/node.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import of a file, also inside functions."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


PACKAGE_FILES = [path for path in FILES if path.is_relative_to(PACKAGE) and path != PACKAGE / "__init__.py"]


def test_imports_point_downwards() -> None:
    wrong = []
    for path in PACKAGE_FILES:
        mine = room(path)
        assert mine in LEVELS, f"maskrcnn_benchmark/{mine} has no level: give it one in {Path(__file__).name}"
        for line, module in imports(path):
            top, *inside = module.split(".")
            theirs = inside[0] if inside and top == PACKAGE.name else ""
            level = LEVELS.get(theirs, 0)  # not there: a name of the top package, such as __version__
            above = level > LEVELS[mine] or (level == LEVELS[mine] and mine in ALONE)
            if top in OUTSIDE or (above and theirs not in (mine, "")):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_config_does_not_need_torch() -> None:
    heavy = ("torch", "torchvision", "transformers")
    files = (PACKAGE / "config").rglob("*.py")
    wrong = [f"{p}: {name}" for p in files for _, name in imports(p) if name.split(".")[0] in heavy]
    assert not wrong


def test_every_folder_of_the_package_is_installed() -> None:
    folders = {path.parent for path in FILES if path.is_relative_to(PACKAGE)}
    wrong = [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").exists()]
    assert not wrong, f"no __init__.py in {', '.join(wrong)}"


def test_files_are_short() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in FILES}
    wrong = [f"{path.relative_to(ROOT)} has {n} lines" for path, n in lines.items() if n > MAX_FILE]
    assert not wrong, "\n".join(wrong)


def test_functions_are_short() -> None:
    wrong = []
    for path in FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_cuda_is_named_in_the_engine_only() -> None:
    """Devices are chosen in one place; everything else works on the device of its tensors."""
    wrong = []
    for path in PACKAGE_FILES:
        if room(path) != "engine" and path.name not in COMPILED:
            for node in ast.walk(parse(path)):
                attribute = isinstance(node, ast.Attribute) and node.attr == "cuda"
                text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda")
                if attribute or text:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)
