"""Which tensor of a file goes where in a closed-vocabulary detector (Faster R-CNN, RetinaNet, CenterNet2).

Names of the file need only be the ends of ours: ``layer1.0.conv1.weight`` of a classifier is that of the backbone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from maskrcnn_benchmark.checkpoint.io import Report, difference
from maskrcnn_benchmark.checkpoint.rules import describe
from maskrcnn_benchmark.errors import WeightsError

PREDICTORS = {
    "Faster R-CNN": ("roi_heads.box.predictor.*",),
    "RetinaNet": ("rpn.head.cls_logits.*",),
    "CenterNet2": (),  # whose classes are names
}
"""What belongs to the classes that a detector was trained on, and is learnt anew for others."""
BACKBONE = "backbone."
SHOWN = 3  # names of each kind in a message
CLASS_SPECIFIC = "it belongs to the classes of the data that the file was trained on"


@dataclass(frozen=True)
class Fit:
    """What a file has for a detector.

    Attributes:
        source: Name in the detector -> name in the file.
        dropped: Name in the detector -> why what the file has for it is not taken.
        kept: Names in the detector that the file has nothing for.
        unused: Names in the file that the detector has no place for.
    """

    source: Mapping[str, str]
    dropped: Mapping[str, str]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def report(self, path: Path, digest: str) -> Report:
        """The same for those who know no more than a checkpoint of one's own kind."""
        return Report(path, digest, tuple(self.source), (), self.unused, self.dropped, self.kept)

    def text(self) -> str:
        """What was loaded, dropped, kept and left over, in a few lines."""
        total = len(self.source) + len(self.dropped) + len(self.kept)
        reasons = Counter(self.dropped.values())
        lines = [f"{len(self.source)} of {total} tensors loaded: {_parts(self.source)}"]
        lines += [
            f"dropped, as {reason}: {_first(name for name, why in self.dropped.items() if why == reason)}"
            for reason in reasons
        ]
        lines += [f"{len(self.kept)} keep their first values: {_parts(self.kept)}"] if self.kept else []
        lines += [f"{len(self.unused)} of the file have no place: {_first(self.unused)}"] if self.unused else []
        return "\n  ".join(lines)


def fit(ours: Mapping[str, Tensor], file: Mapping[str, Tensor], path: Path) -> Fit:
    """How a file can be the beginning of a training.

    Args:
        ours: State dict of the detector; its tensors may be without values (meta device).
        file: State dict of a detector or of a classifier, by the names of :data:`rules.RELEASED`.
        path: Of the file, for messages.

    Raises:
        WeightsError: nothing in the file is for the backbone, or is of another shape there.
    """
    found = longest_ends(ours, file)
    patterns = PREDICTORS.get(describe({name: tuple(value.shape) for name, value in ours.items()}), ())
    source: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for name, theirs in found.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            dropped[name] = CLASS_SPECIFIC
        elif what := difference(name, ours[name], file[theirs]):
            dropped[name] = what
        else:
            source[name] = theirs
    _refuse(path, ours, file, source, dropped)
    used = set(found.values())
    return Fit(
        source,
        dropped,
        kept=tuple(name for name in ours if name not in found),
        unused=tuple(name for name in file if name not in used),
    )


def longest_ends(ours: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
    """For each of our names the longest of theirs that it ends in; those without one are left out.

    A deformable convolution finds the plain one that stood in its place: ``conv2.conv.weight`` ends in
    ``conv2.weight``.
    """
    known = set(theirs)
    found = {}
    for name in ours:
        forms = dict.fromkeys((name, name.replace(".conv2.conv.", ".conv2.")))
        ends = [end for form in forms if (end := _longest_end(form, known)) is not None]
        if ends:
            found[name] = max(ends, key=len)
    return found


def _longest_end(name: str, known: set[str]) -> str | None:
    return next((name[start:] for start in range(len(name)) if name[start:] in known), None)


def _refuse(
    path: Path,
    ours: Mapping[str, Tensor],
    file: Mapping[str, Tensor],
    source: Mapping[str, str],
    dropped: Mapping[str, str],
) -> None:
    """Raises: see :func:`fit`."""
    looks = describe({name: tuple(value.shape) for name, value in file.items()})
    wrong = [f"{name}: {what}" for name, what in dropped.items() if BACKBONE in name]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise WeightsError(
            f"{path} looks like {looks} and does not fit the backbone ({wrong[0]}{more}): give weights of the size "
            "that MODEL.BACKBONE and MODEL.RESNETS describe"
        )
    if not any(BACKBONE in name for name in source):
        raise WeightsError(
            f"{path}: none of its {len(file)} tensors fits the backbone ({_first(file)}; it looks like {looks}): give "
            "a checkpoint of such a detector, or of a ResNet classifier"
        )


def _parts(names: Iterable[str]) -> str:
    """``backbone.body 265, rpn.head 6``"""
    return ", ".join(f"{part} {count}" for part, count in Counter(_part(name) for name in names).items())


def _part(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _first(names: Iterable[str]) -> str:
    listed: Sequence[str] = list(names)
    return f"{', '.join(listed[:SHOWN])}{f' and {len(listed) - SHOWN} more' if len(listed) > SHOWN else ''}"
