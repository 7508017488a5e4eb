"""Released checkpoints: what there is, under which terms, where it can be had; and getting one when asked to.

The list is ``zoo.yaml``. Only :func:`download` reaches out to the network.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from tqdm import tqdm

from maskrcnn_benchmark.checkpoint.io import find_weights
from maskrcnn_benchmark.errors import ConfigError, WeightsError

ZOO = Path(__file__).with_name("zoo.yaml")
BLOCK = 1 << 20
TIMEOUT = 60  # seconds without a byte
USER_AGENT = "maskrcnn_benchmark"


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Attributes:
        name: What ``--model`` takes.
        system: FIBER, GLIP, MDETR, DECOLA, CLIP, DAP, maskrcnn-benchmark, MSRA or detectron2.
        about: What it was trained for.
        file: Its name in ``MODEL/``.
        config: Config file; "" where this version has none for it.
        urls: Mirrors, tried in turn; none: it is to be fetched by hand from ``page``.
        size: As its authors give it; "" where they do not.
        sha256: Of the file; "" where nobody has published it.
        page: Where the authors offer it.
        code: Licence of the authors' code.
        weights: Licence of the weights.
        data: Data that it was trained on, which have terms of their own.
        note: What else there is to know.
    """

    name: str
    system: str
    about: str
    file: str
    config: str = ""
    urls: tuple[str, ...] = ()
    size: str = ""
    sha256: str = ""
    page: str = ""
    code: str = ""
    weights: str = ""
    data: str = ""
    note: str = ""


@cache
def released() -> dict[str, Released]:
    """Every entry of the list by its name, in its order."""
    tree = yaml.safe_load(ZOO.read_text(encoding="utf-8"))
    return {name: _entry(name, row, tree["systems"]) for name, row in tree["models"].items()}


def _entry(name: str, row: Mapping[str, Any], systems: Mapping[str, Mapping[str, Any]]) -> Released:
    values = {"name": name, **systems[row["system"]], **row}
    mirrors = [f"{base}{values['file']}" for base in values.pop("mirrors", ())]
    values["urls"] = tuple(values.get("urls", mirrors))
    return Released(**values)


def find(name: str) -> Released:
    """The entry of a name.

    Raises:
        ConfigError: there is none; names the closest.
    """
    known = released()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"closest: {', '.join(near)}" if near else "`mrb models` lists them"
    raise ConfigError(f"no released model is called {name!r}: {hint}")


def find_url(url: str) -> Released | None:
    """The entry that a URL is a mirror of, whatever stands after its question mark; None: it is none, or no URL.

    Raises:
        WeightsError: it is a URL of something else.
    """
    if not url.startswith(("http://", "https://")):
        return None
    wanted = unquote(url.split("?")[0])
    for entry in released().values():
        if wanted in [unquote(mirror) for mirror in entry.urls]:
            return entry
    raise WeightsError(
        f"{url}: is no released model (`mrb models` lists them), and weights are not downloaded by themselves: fetch "
        "the file and give its path"
    )


def weights_of(entry: Released) -> Path:
    """The file of an entry in the model folder.

    Raises:
        WeightsError: it is not there.
    """
    try:
        return find_weights(entry.file)
    except WeightsError as error:
        raise WeightsError(f"{error}; `mrb models get {entry.name}` tries to download it") from None


def download(entry: Released, folder: Path, say: Callable[[str], None] = print) -> Path:
    """Bring the file of an entry into a folder, from the first mirror that has it; goes on where it was interrupted.

    Args:
        entry: What.
        folder: Where to; a file of that name is not replaced.
        say: Told what is done.

    Returns:
        The file.

    Raises:
        WeightsError: no mirror has it, or what came is something else; names each mirror with the reason.
    """
    target = folder / entry.file
    if target.exists():
        return _checked(entry, target, say)
    if not entry.urls:
        raise WeightsError(f"{entry.name}: it is to be fetched by hand: {entry.page}; put it at {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in entry.urls:
        part = folder / f"{entry.file}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
        say(f"from {url}")
        try:
            _fetch(url, part)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(f"{url}: {_reason(error)}")
            say(f"  {_reason(error)}")
            continue
        _checked(entry, part, say)
        part.replace(target)
        return target
    sha = f" with the sha256 {entry.sha256}" if entry.sha256 else ""
    raise WeightsError(
        f"{entry.name} could not be downloaded ({'; '.join(reasons)}): check the network and run it again, or put the "
        f"file{sha} at {target} yourself{f'; its authors offer it at {entry.page}' if entry.page else ''}"
    )


def _fetch(url: str, part: Path) -> None:
    """Bring a file as far as it is not there yet.

    Raises:
        OSError: it cannot be had, or not all of it came.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": USER_AGENT, **({"Range": f"bytes={have}-"} if have else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and (error.headers.get("Content-Range") or "").endswith(f"/{have}"):
            return  # all of it is there
        raise
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise OSError("a web page came instead of a file")
        goes_on = answer.status == 206
        length = answer.headers.get("Content-Length")
        total = int(length) + (have if goes_on else 0) if length else None
        with (
            part.open("ab" if goes_on else "wb") as file,
            tqdm(total=total, initial=have if goes_on else 0, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"{part.stat().st_size:,} of {total:,} bytes came: run it again, it goes on from there")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(getattr(error, "reason", error) or type(error).__name__)


def _checked(entry: Released, file: Path, say: Callable[[str], None]) -> Path:
    """The file, if its digest is that of the list.

    Raises:
        WeightsError: it is another.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    if entry.sha256 and found != entry.sha256:
        raise WeightsError(
            f"{file}: its sha256 is {found}, and that of {entry.name} is {entry.sha256}: delete it and get it again"
        )
    known = "as it should be" if entry.sha256 else "there is none published to compare it with"
    say(f"sha256 {found}: {known}")
    return file
