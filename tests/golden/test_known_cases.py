"""Every golden case of a system that is in is run by some test; those whose part is not in yet are listed here."""

from __future__ import annotations

import importlib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.golden.common import CLAIMED, NO_SHARED, case_files, golden_root

NOT_IN_YET: dict[str, tuple[str, ...]] = {
    "fiber": (),
    "eval": (),
    "e2e": (),
    "dap": (),
    "decola": (),
    "mdetr": (),
}


@pytest.mark.parametrize("system", list(NOT_IN_YET))
def test_every_case_is_run(system: str) -> None:
    if golden_root() is None:
        pytest.skip(NO_SHARED)
    tests = Path(__file__).parents[1]
    for folder in ("golden", "e2e"):
        for path in (tests / folder).glob("test_*.py"):
            importlib.import_module(f"tests.{folder}.{path.stem}")
    run = CLAIMED.get(system, set())
    unknown = [
        name
        for name in case_files(system)
        if name not in run and not any(fnmatchcase(name, pattern) for pattern in NOT_IN_YET[system])
    ]
    assert not unknown, f"no test runs these cases of {system}: {', '.join(unknown)}"
