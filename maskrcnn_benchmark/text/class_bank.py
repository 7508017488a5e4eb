"""Embeddings of class names on disk: which names, in which words, by which encoder.

A bank is a ``.safetensors`` file. The ``.npy`` tables of DECOLA and Detic, float16 (C, E) and no more, are read too.
"""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskrcnn_benchmark.errors import ConfigError, DataError, PromptError
from maskrcnn_benchmark.text.clip_encoder import ClipText
from maskrcnn_benchmark.text.clip_tokenizer import ClipTokenizer

TEMPLATE = "a {}"
FORM = "class bank 1"  # what the metadata of a file says it is
NAMES = Path(__file__).with_name("names.yaml")
BUNDLED = {
    "lvis_v1_clip_a+cname.npy": "lvis_v1",
    "coco_clip_a+cname.npy": "coco",
    "o365_clip_a+cnamefix.npy": "objects365",
    "oid_clip_a+cname.npy": "openimages",
}
"""Released tables -> lists of names that come with this package, in the order of their rows."""
SHOWN = 3  # names in a message
MAKE = "make it again with `mrb bank`"


@dataclass(frozen=True)
class ClassBank:
    """Embeddings of C names.

    Attributes:
        table: (C, E) float32, not normalised.
        names: In the order of the rows; empty for a ``.npy`` table, which does not say.
        template: What the encoder read, with ``{}`` for the name; "" where that is not known.
        encoder: :meth:`ClipText.digest` of the encoder; "" where that is not known.
        source: The file, for messages.
    """

    table: Tensor
    names: tuple[str, ...] = ()
    template: str = ""
    encoder: str = ""
    source: str = "class bank"

    def __len__(self) -> int:
        return len(self.table)

    def check(
        self, names: Sequence[str] | None = None, other: ClassBank | None = None, width: int | None = None
    ) -> ClassBank:
        """The bank, if it is of these names in this order, made as another one is, and of this width.

        A table without names or encoder is compared by its size alone.

        Raises:
            DataError: it is another.
        """
        if width is not None and self.table.shape[1] != width:
            raise DataError(
                f"{self.source}: its embeddings have {self.table.shape[1]} numbers, the detector's {width}: it is of "
                "another encoder"
            )
        if other is not None:
            self._check_encoder(other)
        if names is not None:
            self._check_names(names)
        return self

    def _check_encoder(self, other: ClassBank) -> None:
        for what, mine, its in (
            ("encoder", self.encoder[:12], other.encoder[:12]),
            ("template", self.template, other.template),
        ):
            if mine and its and mine != its:
                raise DataError(
                    f"{self.source}: was made with the {what} {mine!r}, and {other.source} with {its!r}: their "
                    f"embeddings cannot be compared; {MAKE}, with the same {what}"
                )

    def _check_names(self, names: Sequence[str]) -> None:
        if len(names) != len(self):
            raise DataError(f"{self.source}: has {len(self)} rows for {len(names)} classes ({_some(names)}); {MAKE}")
        if not self.names or tuple(names) == self.names:
            return
        place = next(row for row, pair in enumerate(zip(names, self.names, strict=True)) if pair[0] != pair[1])
        same = sorted(names) == sorted(self.names)
        what = "the classes in another order" if same else "other classes"
        raise DataError(
            f"{self.source}: has {what}: row {place + 1} is {self.names[place]!r} and class {place + 1} is "
            f"{names[place]!r}; {MAKE}"
        )

    def rows(self, names: Sequence[str]) -> Tensor:
        """(N, E) of some names, in any order.

        Raises:
            PromptError: a name has no row, or the bank has no names.
        """
        if not self.names:
            raise PromptError(f"{self.source}: does not say which names its {len(self)} rows are of")
        place = {name: row for row, name in reversed(list(enumerate(self.names)))}
        if missing := [name for name in names if name not in place]:
            near = difflib.get_close_matches(missing[0], place, n=SHOWN)
            hint = f"the closest of its {len(place)} are {', '.join(near)}" if near else f"it has {_some(self.names)}"
            raise PromptError(f"{self.source}: no embedding of {missing[0]!r}: {hint}")
        return self.table[[place[name] for name in names]]


def check_names(names: Sequence[str], where: str = "class names") -> tuple[str, ...]:
    """Names that can be told apart.

    Raises:
        PromptError: there are none, or one is empty or comes twice, also with other capitals, spaces or underscores.
    """
    if not names:
        raise PromptError(f"{where}: no names")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise PromptError(f"{where}: name {number} of {len(names)} is empty: give it one, or take it out")
    doubled = [name for name, count in Counter(name.strip() for name in names).items() if count > 1]
    if doubled:
        places = ", ".join(str(n) for n, name in enumerate(names, 1) if name.strip() == doubled[0])
        more = f", and {len(doubled) - 1} more names come" if len(doubled) > 1 else ""
        raise PromptError(f"{where}: {doubled[0]!r} comes more than once (names {places}){more}: take the others out")
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(plain_name(name), name)) != name:
            raise PromptError(f"{where}: {other!r} and {name!r} are the same name: take one of them out")
    return tuple(names)


def plain_name(name: str) -> str:
    """Names are the same when they differ in case, or in spaces and underscores: that is what is equal of them."""
    return " ".join(name.replace("_", " ").lower().split())


def bundled_names(name: str) -> tuple[str, ...]:
    """A list that comes with this package: lvis_v1, coco, objects365 or openimages.

    Raises:
        PromptError: there is none of that name.
    """
    lists = yaml.safe_load(NAMES.read_text(encoding="utf-8"))
    if name not in lists:
        raise PromptError(f"{name}: no such file of class names, and none of the lists {', '.join(lists)}")
    return tuple(lists[name])  # OpenImages has two kinds of bench, and of mouse


def read_names(path: str | Path) -> tuple[str, ...]:
    """Class names: of a text file, one a line, or the categories of COCO JSON by ascending ids.

    Raises:
        PromptError: the file cannot be read; see :func:`check_names` too.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = json.loads(text) if Path(path).suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise PromptError(f"{path}: class names cannot be read ({error})") from None
    if data is None:
        return check_names([line.strip() for line in text.rstrip().splitlines()], str(path))
    rows = data.get("categories") if isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {"id", "name"} <= row.keys() for row in rows):
        raise PromptError(f"{path}: no list of categories with id and name; give one, or a text file, a name a line")
    return check_names([str(row["name"]) for row in sorted(rows, key=lambda row: row["id"])], str(path))


def make_bank(
    names: Sequence[str], encoder: ClipText, tokenizer: ClipTokenizer, template: str = TEMPLATE, source: str = "names"
) -> ClassBank:
    """Embed names; where their ``source`` is a list that comes with this package, those that it has twice too.

    Raises:
        PromptError: see :func:`check_names`; or a name has too many tokens.
        ConfigError: the template has no place for a name.
    """
    if template.count("{}") != 1:
        raise ConfigError(f"MODEL.ZEROSHOT_CLS.PROMPT {template!r}: one {{}} must stand where the name goes")
    checked = tuple(names) if source in BUNDLED.values() else check_names(names, source)
    table = encoder.embed([template.replace("{}", name) for name in checked], tokenizer)
    return ClassBank(table, checked, template, encoder.digest(), source)


def write_bank(bank: ClassBank, path: str | Path) -> Path:
    """Write a ``.safetensors`` file; it has its name only when it is whole.

    Raises:
        ConfigError: the path has another ending, or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a class bank ends in .safetensors")
    about = {"form": FORM, "names": json.dumps(bank.names), "template": bank.template, "encoder": bank.encoder}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"table": bank.table.contiguous()}, partial, about)
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}): choose another place") from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_bank(path: str | Path, names: Sequence[str] = ()) -> ClassBank:
    """A bank, or a ``.npy`` table.

    Args:
        path: The file.
        names: Of the rows of a ``.npy`` table, where they are known.

    Raises:
        DataError: the file is missing or damaged, is no bank, or has another number of rows than names.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such class bank; {MAKE}")
    bank = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path)
    if bank.table.ndim != 2 or not bank.table.is_floating_point() or not len(bank.table):
        kind = f"{str(bank.table.dtype).removeprefix('torch.')} {tuple(bank.table.shape)}"
        raise DataError(f"{path}: holds {kind}; embeddings are (classes, numbers)")
    bank = replace(bank, table=bank.table.float())
    if not bank.table.isfinite().all():
        raise DataError(f"{path}: an embedding is not finite: copy the file again")
    if names and not bank.names:
        bank.check(names)
        return replace(bank, names=tuple(names))
    return bank


def _read_npy(path: Path) -> ClassBank:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a whole .npy table of numbers ({error}): copy it again") from None
    return ClassBank(torch.from_numpy(np.ascontiguousarray(values)), source=str(path))


def _read_safetensors(path: Path) -> ClassBank:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("form") != FORM or "table" not in file.keys():  # noqa: SIM118
                raise DataError(f"{path}: is no class bank (.npy, or .safetensors made by `mrb bank`)")
            table = file.get_tensor("table")
        names = tuple(json.loads(about["names"]))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a whole class bank ({str(error)[:160]}); {MAKE}") from None
    if len(names) != len(table):
        raise DataError(f"{path}: {len(names)} names for {len(table)} rows: the file is damaged; {MAKE}")
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{path}: has {doubled[0]!r} more than once; {MAKE}")
    return ClassBank(table, names, about.get("template", ""), about.get("encoder", ""), str(path))


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
