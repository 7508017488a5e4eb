"""Checkpoint files of torch, and pickles of numpy arrays, read without running anything that they hold.

``torch.load(weights_only=True)`` refuses every class that is not on its list. Training scripts put their settings
beside the weights (a yacs tree, an argparse namespace, numpy numbers), so those names are mapped to inert stand-ins
here: the real classes are neither imported nor called.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn_benchmark.errors import WeightsError

RE_SAVE = "ask its author for a .safetensors file, or for torch.save of plain tensors"


class Inert:
    """Takes the place of a class or function that is only named in a file, such as the factory of a defaultdict."""

    def __new__(cls, *args: object) -> Inert:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Whatever the file says about it is dropped."""


class Settings:
    """A yacs node: becomes an OrderedDict of its keys."""

    def __new__(cls, *args: object) -> Any:
        return OrderedDict()


def _defaultdict(factory: object = None) -> OrderedDict[Any, Any]:
    return OrderedDict()


class Dtype:
    """A numpy dtype: its letter, size and byte order."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.big_endian = str(code), False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.big_endian = state[1] == ">"

    def numpy(self) -> np.dtype[Any]:
        """The real thing, numbers only."""
        return _numbers(self.code, self.big_endian)


@cache
def _numbers(code: str, big_endian: bool) -> np.dtype[Any]:
    if not re.fullmatch(r"[biufc]\d+", code):
        raise pickle.UnpicklingError(f"numpy values of type {code!r} are not read")
    return np.dtype((">" if big_endian else "<") + code)


class Array:
    """A numpy array: becomes a tensor when :func:`plain` sees it."""

    def __init__(self) -> None:
        self.value: torch.Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        data = _bytes(data)
        values = np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if fortran else "C")
        self.value = torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))


def _bytes(data: object) -> bytes:
    """Python 2 had no bytes: they come as text, a character each."""
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise pickle.UnpicklingError("numpy arrays of objects are not read")
    return bytes(data)


def _array(*_: object) -> Array:
    return Array()


def _buffer(data: object, dtype: Dtype, shape: tuple[int, ...], order: str) -> Array:
    array = Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _scalar(dtype: Dtype, data: object) -> Any:
    return np.frombuffer(_bytes(data), dtype.numpy(), count=1)[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode(encoding)


STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (argparse.Namespace, "argparse.Namespace"),  # holds attributes, does nothing
    (Settings, "yacs.config.CfgNode"),
    (_defaultdict, "collections.defaultdict"),
    *((Inert, f"pathlib{module}.PosixPath") for module in ("", "._local")),  # output folders, in settings
    *((Inert, f"builtins.{factory}") for factory in ("list", "dict", "int", "float", "str")),
    (Dtype, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
ARRAYS: dict[str, Callable[..., Any]] = {  # what a pickle of arrays may name, beside the above
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.numeric._frombuffer": _buffer for core in ("core", "_core")},
    **{item[1]: item[0] for item in STAND_INS if isinstance(item, tuple)},
}
TORCH_SAVE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what a file of torch.save begins with, before it was a zip


class _Arrays(pickle.Unpickler):
    """Reads numbers, text, arrays, and lists and dicts of them; what else a file names is refused unseen."""

    def find_class(self, module: str, name: str) -> Any:
        known = ARRAYS.get(f"{module}.{name}".replace("__builtin__.", "builtins."))
        if known is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return known

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it speaks of what is kept elsewhere")


def holds_arrays(head: bytes) -> bool:
    """Whether a file that begins so is a pickle by itself, not one of ``torch.save``."""
    return head[:1] == b"\x80" and not head.startswith(TORCH_SAVE)


def load_arrays(path: Path) -> Any:
    """The object in a pickle of numpy arrays, also one of Python 2; arrays become tensors.

    Raises:
        WeightsError: the file is damaged, or names something that is not on the list.
    """
    try:
        with path.open("rb") as file:
            return plain(_Arrays(file, encoding="latin1").load())
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from None
    except Exception as error:  # what a damaged file makes the reader raise is of every kind
        raise WeightsError(
            f"{path}: not a whole checkpoint file ({_first_line(error)}); copy or download it again"
        ) from None


def load_torch(path: Path) -> Any:
    """The object in a file of ``torch.save``, both the zip format (mapped, not copied) and the older one.

    Raises:
        WeightsError: the file is damaged, or names something that is not on the list.
    """
    zipped = zipfile.is_zipfile(path)
    with path.open("rb") as file:
        if not zipped and file.read(4) == b"PK\x03\x04":
            raise WeightsError(f"{path}: is cut short (the end of the archive is missing); copy or download it again")
    try:
        with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other protocols and TorchScript; both end in an error of ours
            return plain(torch.load(path, map_location="cpu", weights_only=True, mmap=zipped))
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from None
    except Exception as error:  # what a damaged file makes the reader raise is of every kind
        if "TorchScript" in str(error):
            raise WeightsError(f"{path}: holds a TorchScript program, not weights; {RE_SAVE}") from None
        raise WeightsError(
            f"{path}: not a whole checkpoint file ({_first_line(error)}); copy or download it again"
        ) from None


def _refusal(path: Path, message: str) -> str:
    named = re.search(r"GLOBAL (\S+)", message)
    culprit = named[1] if named else next(iter(_foreign_globals(path)), None)
    if culprit:
        return f"{path}: refused, because reading it would run {culprit}, which no weights need; {RE_SAVE}"
    lines = [line for line in message.splitlines() if line.strip() and "documentation" not in line]
    return f"{path}: not a readable checkpoint file ({lines[-1][:160]}); copy or download it again, or {RE_SAVE}"


def _foreign_globals(path: Path) -> Iterator[str]:
    """Classes and functions that a pickle names, by looking through it: for protocols that torch does not read."""
    known = ("torch.", "collections.", "numpy.", "argparse.", "yacs.", "_codecs.")
    strings: list[str] = []
    memo: dict[object, str] = {}
    try:
        for operation, value, _ in pickletools.genops(_pickle_bytes(path)):
            if operation.name == "MEMOIZE":
                memo[len(memo)] = strings[-1] if strings else ""
            elif operation.name in ("BINGET", "LONG_BINGET"):
                strings.append(memo.get(value, ""))
            elif isinstance(value, str) and operation.name != "GLOBAL":
                strings.append(value)
            name = str(value).replace(" ", ".") if operation.name == "GLOBAL" else ".".join(strings[-2:])
            if operation.name in ("GLOBAL", "STACK_GLOBAL") and not name.startswith(known):
                yield name
    except (ValueError, EOFError, IndexError):  # damaged from here on
        return


def _pickle_bytes(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(1 << 26)
    with zipfile.ZipFile(path) as archive:
        return next((archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")), b"")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def plain(value: Any) -> Any:
    """The same object with stand-ins replaced: arrays by tensors."""
    if isinstance(value, Array):
        return value.value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = plain(item)
    elif isinstance(value, list):
        value[:] = [plain(item) for item in value]
    return value
