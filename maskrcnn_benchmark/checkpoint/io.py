"""Checkpoint files: find, read, fit to a model, write."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint.caffe2 import torch_names
from maskrcnn_benchmark.checkpoint.names import Rule, rename
from maskrcnn_benchmark.checkpoint.rules import COPIES, RECOMPUTED, TABLES, UNUSED, describe
from maskrcnn_benchmark.checkpoint.unpickle import holds_arrays, load_arrays, load_torch
from maskrcnn_benchmark.errors import WeightsError
from maskrcnn_benchmark.paths import repository_root

logger = logging.getLogger(__name__)

ENDINGS = (".pth", ".pt", ".bin", ".safetensors", ".pkl")
CATALOG = (
    "catalog://"  # what names of maskrcnn-benchmark's model catalog begin with: catalog://ImageNetPretrained/MSRA/R-50
)
DETECTRON2 = "detectron2://"  # the same of detectron2: detectron2://ImageNetPretrained/torchvision/R-50.pkl
DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2/"  # what that stands for
CLASSES = "classes"  # key of a checkpoint: names of the labels of a closed-vocabulary detector
BLOBS = ("_w", "_bn_s")  # ends of names in Caffe2
SHOWN = 3  # names of each kind in an error message


@dataclass(frozen=True)
class Report:
    """How a file's tensors fit a model's."""

    path: Path
    digest: str  # sha256 of the file
    loaded: tuple[str, ...]  # our names
    missing: tuple[str, ...]  # in the model, not in the file, and not declared as allowed
    unexpected: tuple[str, ...]  # in the file, not in the model
    reshaped: Mapping[str, str]  # of another shape, kind or (recomputed buffers) value: "file has ..., model wants ..."
    left_alone: tuple[str, ...] = ()  # absent from the file, as declared, or the model's own class embeddings
    unused: Mapping[str, str] = field(default_factory=dict)  # name in the file -> why nothing is lost without it
    replaced: Mapping[str, Tensor] = field(default_factory=dict)  # in the file; the model keeps its own tables

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped)

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.path}: {len(self.loaded)} tensors loaded, {len(self.left_alone)} not in the file as declared, "
            f"{len(self.unused)} of no use, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, {len(self.reshaped)} reshaped "
            f"(sha256 {self.digest[:12]})"
        )

    def problems(self) -> str:
        """What does not fit, with counts and the first few names; empty when all does."""
        kinds = {
            "missing from the file": self.missing,
            "unknown to the model": self.unexpected,
            "different": [f"{name}: {what}" for name, what in self.reshaped.items()],
        }
        return "; ".join(
            f"{len(names)} {kind} ({', '.join(list(names)[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
            for kind, names in kinds.items()
            if names
        )


def find_weights(name: str | os.PathLike[str]) -> Path:
    """The checkpoint file that a path, or a name in the model folder, stands for.

    Tried in turn: the path itself; below ``$MODEL``; below ``MODEL/`` of the current folder and of the checkout (with
    or without the ``MODEL/``, or DECOLA's ``weights/``, in front). A text file called ``last_checkpoint`` leads to the
    file it names. A name of maskrcnn-benchmark's catalog, ``catalog://ImageNetPretrained/MSRA/R-50``, stands for the
    Caffe2 file ``ImageNetPretrained/MSRA/R-50.pkl``, or ``R-50.pkl`` alone; one of detectron2's,
    ``detectron2://ImageNetPretrained/torchvision/R-50.pkl``, for what comes after the ``//``.

    Raises:
        WeightsError: there is no such file (lists every place), or it is a folder.
    """
    text = os.fspath(name)
    if re.match(r"https?://", text):
        raise WeightsError(f"{text}: weights are not downloaded; fetch the file yourself and give its path")
    places = _places(text)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        _refuse_folders(places)
        tried = ", ".join(str(place) for place in places)
        if text.startswith(DETECTRON2):
            url = f"{DETECTRON2_URL}{text.removeprefix(DETECTRON2)}"
            raise WeightsError(
                f"no weights called {text!r}: fetch {url} and put it at one of {tried}, or give its path"
            )
        where = "; `mrb models` lists where it can be had" if text.startswith(CATALOG) else ""
        raise WeightsError(f"no weights called {text!r}: tried {tried}; put the file there or give its path{where}")
    return _follow(found) if found.name == "last_checkpoint" else found


def _places(text: str) -> list[Path]:
    """Where a file of that name may lie."""
    root = repository_root()
    folders = [Path(folder) for folder in (os.environ.get("MODEL"), "MODEL", root and root / "MODEL") if folder]
    if text.startswith(CATALOG):
        file = Path(f"{text.removeprefix(CATALOG)}.pkl")
        return list(dict.fromkeys(folder / name for folder in folders for name in (file, file.name)))
    if text.startswith(DETECTRON2):
        return list(dict.fromkeys(folder / text.removeprefix(DETECTRON2) for folder in folders))
    try:
        given = Path(text).expanduser()
    except RuntimeError:  # "~output/..." speaks of a user that is not there
        given = Path(text)
    rest = Path(*given.parts[1:])
    below = {"MODEL": [rest], "weights": [given, rest]}.get(given.parts[0] if given.parts else "", [given])
    if given.is_absolute():
        return [given]
    return list(dict.fromkeys([given, *(folder / name for folder in folders for name in below)]))


def _refuse_folders(places: Iterable[Path]) -> None:
    for folder in places:
        if folder.is_dir():
            files = sorted(p.name for p in folder.iterdir() if p.suffix in ENDINGS or p.name == "last_checkpoint")
            hint = f"one of its files: {', '.join(files[:SHOWN])}" if files else f"a file ({', '.join(ENDINGS)})"
            raise WeightsError(f"{folder}: is a folder, not a checkpoint; give {hint}")


def _follow(pointer: Path) -> Path:
    named = Path(pointer.read_text(encoding="utf-8", errors="replace").strip()[:4096] or ".")
    places = [pointer.parent / named, pointer.parent / named.name]  # the folder may have moved since
    for place in places:
        if place.is_file():
            return place
    raise WeightsError(f"{pointer}: names {str(named)!r}, which is not there; give the path of the weights themselves")


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of the classes, as a training notes them beside the weights; none where there are no such notes.

    Raises:
        WeightsError: the file is damaged or unsafe.
    """
    data = load_torch(path) if zipfile.is_zipfile(path) else None
    names = data.get(CLASSES, ()) if isinstance(data, Mapping) else ()
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()


def read_state_dict(path: str | os.PathLike[str], ema: bool | Literal["preferred"] = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, without wrappers; nothing in the file is run.

    Args:
        path: A file of ``torch.save`` (any ending), ``.safetensors``, or a ``.pkl`` of numpy arrays, as Caffe2's files
            are; their blobs get the names that maskrcnn-benchmark gives them. Big files are mapped, not copied.
        ema: Take the averaged weights (``model_ema``) of a file that holds both. A file with one set gives that one.
            "preferred": where there are none, take the plain ones.

    Raises:
        WeightsError: the file is damaged, unsafe, or holds no weights.
    """
    path = Path(path)
    state = _unwrap(_read(path), ema, path)
    if not any(name.endswith(BLOBS) for name in state):
        return state
    return {name: state[blob] for blob, name in torch_names(state).items()}


def _read(path: Path) -> Any:
    if not path.is_file():
        _refuse_folders([path])
        raise WeightsError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise WeightsError(f"{path}: is empty; copy or download it again")
    if head.lstrip()[:1] == b"<" and re.match(rb"<(!doctype|html|\?xml|head|body)", head.lstrip().lower()):
        raise WeightsError(f"{path}: is a web page, not weights; download it again, from the link to the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: is a Git LFS pointer, not the weights; run 'git lfs pull' where it came from")
    if path.suffix != ".safetensors" and head[8:9] != b"{":
        if head[:4] != b"PK\x03\x04" and head[:1] != b"\x80":
            raise WeightsError(
                f"{path}: is no checkpoint (begins with {head[:12]!r}); give a {', '.join(ENDINGS)} file"
            )
        return load_arrays(path) if path.suffix == ".pkl" and holds_arrays(head) else load_torch(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({str(error)[:160]}); copy or download it again"
        ) from None


def _unwrap(data: Any, ema: bool | Literal["preferred"], path: Path) -> dict[str, Tensor]:
    averaged = isinstance(data, Mapping) and isinstance(data.get("model_ema"), Mapping)  # MDETR's may hold None
    if ema is True and not averaged:
        raise WeightsError(f"{path}: holds no averaged weights (model_ema); load the plain ones")
    if ema == "preferred":
        logger.info("%s: the %s weights are taken", path, "averaged (model_ema)" if averaged else "plain")
    order = ("model_ema", "model", "state_dict") if ema else ("model", "state_dict", "model_ema", "blobs")
    while isinstance(data, Mapping):
        inner = next((key for key in order if isinstance(data.get(key), Mapping)), None)
        if inner is None:
            break
        data = data[inner]
    if not isinstance(data, Mapping) or not data:
        what = f"{'nothing in a' if isinstance(data, Mapping) else 'a'} {type(data).__name__}"
        raise WeightsError(f"{path}: holds {what}, not named tensors; give a checkpoint of the model")
    odd = next((name for name, value in data.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise WeightsError(
            f"{path}: {odd!r} is of type {type(data[odd]).__name__}, not a tensor; expected tensors, alone or under "
            "model, state_dict or model_ema"
        )
    state = {str(name): value for name, value in data.items()}
    while all(name.startswith("module.") for name in state):  # saved from a wrapped model
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def compare(
    model: Mapping[str, Tensor],
    file: Mapping[str, Tensor],
    allow_missing: Sequence[str] = (),
    path: Path = Path(),
    digest: str = "",
) -> Report:
    """How the tensors of a file fit those of a model; both may be without values (meta device).

    Args:
        model: State dict of the model.
        file: State dict of the file, under our names.
        allow_missing: Patterns (``rpn.head.*``) of model names that the file need not hold. Buffers that follow from
            the config may always be absent; when they are there, their values must be the model's.
        path: Of the file, for the report.
        digest: Of the file, for the report.
    """
    absent = [name for name in model if name not in file]
    declared = [name for name in absent if _matches(name, (*RECOMPUTED, *allow_missing))]
    differences = {name: difference(name, model[name], value) for name, value in file.items() if name in model}
    reshaped = {name: what for name, what in differences.items() if what}
    return Report(
        path=path,
        digest=digest,
        loaded=tuple(name for name in differences if name not in reshaped),
        missing=tuple(name for name in absent if name not in set(declared)),
        unexpected=tuple(name for name in file if name not in model and not _unused(name)),
        reshaped=reshaped,
        left_alone=tuple(declared),
        unused={name: why for name in file if name not in model and (why := _unused(name))},
    )


def _unused(name: str) -> str:
    """Why a file may hold a name that a model does not have; empty: it may not."""
    return next((why for pattern, why in UNUSED.items() if fnmatchcase(name, pattern)), "")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def difference(name: str, ours: Tensor, theirs: Tensor) -> str:
    """What keeps a file's tensor from taking the place of ours; empty when nothing does."""
    if ours.shape != theirs.shape or ours.is_floating_point() != theirs.is_floating_point():
        return f"file has {_kind(theirs)}, model wants {_kind(ours)}"
    if not _matches(name, RECOMPUTED) or ours.is_meta or theirs.is_meta:
        return ""
    if name.endswith(".position_ids"):  # 0, 1, 2, ..., but for a rounding error in MDETR's averaged weights
        return ""
    same = torch.allclose(ours.detach().cpu().double(), theirs.double(), rtol=1e-5, atol=1e-4)
    return "" if same else "its values are not those that the config gives"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    allow_missing: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    ema: bool | Literal["preferred"] = False,
) -> Report:
    """Give a model the weights of a file; any surprise is an error, and leaves the model as it was.

    Args:
        model: On any device; on the meta device names and shapes are checked and nothing is filled.
        path: What :func:`find_weights` takes.
        allow_missing: Patterns of names that may be absent, such as ``("rpn.head.*",)`` when starting from a backbone.
        rules: Table that turns the file's names into ours.
        ema: See :func:`read_state_dict`.

    Raises:
        WeightsError: the file cannot be read, or does not hold exactly the tensors of this model.
    """
    found = find_weights(path)
    state = read_state_dict(found, ema)
    ours = model.state_dict()
    renamed = rename(state, rules)
    file, copies = without_copies({renamed[name]: value for name, value in state.items()})
    kept = own_tables(ours, file)
    file = {name: value for name, value in file.items() if name not in kept}
    report = compare(ours, file, (*allow_missing, *kept), found, file_digest(found))
    report = replace(report, unused={**report.unused, **copies}, replaced=kept)
    if not report.fits:
        raise WeightsError(f"{found}: does not fit the model: {report.problems()}. {_remedy(state, ours)}")
    with torch.no_grad():
        loaded = set(report.loaded)
        for name in (name for name in ours if name in loaded):  # where names share a tensor, the last one counts
            if not _matches(name, RECOMPUTED):
                ours[name].copy_(file[name])
    return report


def without_copies(file: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state without tensors that are in it twice: each under the name that counts; and the names left out -> why."""
    own, left_out = dict(file), {}
    for name in file:
        for rule in COPIES:
            if (counts := rule.inward(name)) is not None:
                own.setdefault(counts, own.pop(name))
                left_out[name] = f"the same as {counts}"
    return own, left_out


def own_tables(ours: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file has in the place of tables that a model was built with, and keeps."""
    tables = (name for name in file if name in ours and _matches(name, TABLES))
    return {name: file[name] for name in tables if _is_given(ours[name], file[name])}


def _is_given(ours: Tensor, theirs: Tensor) -> bool:
    """Whether a model was built with these embeddings; without values (meta device), whether it may have been."""
    return ours.shape != theirs.shape if ours.is_meta else bool(ours.any())


def _remedy(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> str:
    looks, builds = describe(_shapes(file)), describe(_shapes(model))
    if looks == builds:
        return f"Both look like {looks}: check the options of the config"
    return f"This file looks like {looks}; the config builds {builds}: give the weights and the config of one model"


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_weights(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> Path:
    """Write a model's state dict, as ``{"model": ...}`` or, by the ending, as ``.safetensors``.

    The file appears under its name only when it is whole. Each tensor is written alone, on the CPU, also where several
    share their memory.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    users = Counter(value.untyped_storage().data_ptr() for value in tensors.values())
    for name, value in tensors.items():
        storage = value.untyped_storage()
        if users[storage.data_ptr()] > 1 or storage.nbytes() != value.nbytes:
            tensors[name] = value.clone()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.touch()
    mode = temporary.stat().st_mode  # what any new file gets; safetensors would keep its own to one user
    try:
        if path.suffix == ".safetensors":
            save_file(tensors, temporary)
        else:
            torch.save({"model": tensors}, temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
