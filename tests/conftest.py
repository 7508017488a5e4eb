"""Fixtures of all tests. Helpers for golden cases: ``from tests.conftest import golden_cases, load_case, fill``."""

from __future__ import annotations

import logging
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golden.common import fill, golden_cases, golden_root, load_case, shared_path, tokenizer_dir

__all__ = ["fill", "golden_cases", "golden_root", "load_case", "shared_path", "tokenizer_dir"]

LOOPBACK = ("127.", "localhost", "::1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--need-shared", action="store_true", help="a test skipped for lack of MB_SHARED is a failure")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.skipped and item.config.getoption("--need-shared") and "MB_SHARED" in str(report.longrepr):
        report.outcome, report.longrepr = "failed", f"skipped under --need-shared: {report.longrepr[2]}"
    return report


@pytest.fixture(name="shared")
def _shared() -> Path:
    """The folder of shared test material."""
    return shared_path()


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A test that runs a whole command does not take the package's messages from later tests."""
    logger = logging.getLogger("maskrcnn_benchmark")
    level, propagate = logger.level, logger.propagate
    yield
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Annotation indices of the tests do not go into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Only this machine can be reached from a test, by number or by name."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def check(host: object) -> None:
        if isinstance(host, bytes):
            host = host.decode()
        if host and not str(host).startswith(LOOPBACK):
            raise OSError(f"tests have no network: connection to {host!r} refused")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        connect(self, address)

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        check(host)
        return lookup(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_lookup)
        yield
