"""Class names for detectors that compare pictures with embeddings of names, and do not read the names themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_benchmark.checkpoint.io import Report, read_classes
from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import PromptError, WeightsError
from maskrcnn_benchmark.modeling.detectors.named import NamedDetector
from maskrcnn_benchmark.modeling.heads.class_tables import CLASSES, OBJECT, class_names, embed
from maskrcnn_benchmark.modeling.heads.zero_shot import PromptClassifier, ZeroShotClassifier, without_embeddings
from maskrcnn_benchmark.modeling.interface import TextState
from maskrcnn_benchmark.structures import TextBatch
from maskrcnn_benchmark.text.class_bank import BUNDLED, TEMPLATE, ClassBank, bundled_names, check_names, plain_name

EMBEDDING = ("DecolaDeformableDETR", "DeformableDETR")
"""``MODEL.META_ARCHITECTURE`` of detectors that are asked for embeddings, each picture for its own if need be."""
ALIKE = 0.99  # cosine of two embeddings of a name by one encoder


@dataclass
class Vocabulary:
    """Turns names into what such a detector is asked.

    Attributes:
        detector: With its weights.
        names: Of the classes that it has embeddings of, in their order; empty where nothing says.
        cfg: For a text encoder, which embeds other names.
    """

    detector: NamedDetector
    names: tuple[str, ...]
    cfg: Cfg
    _known: dict[str, Tensor] = field(default_factory=dict)  # rows that the encoder made
    _all: list[TextState] = field(default_factory=list)

    def everything(self) -> TextState:
        """All classes of the detector; label k is class k, from 1."""
        if not self._all:
            count = len(self.detector.table)
            names = self.names or [f"class {number}" for number in range(1, count + 1)]
            self._all.append(self.detector.encode_text(TextBatch.of_classes(dict(enumerate(names, 1)))))
        return self._all[0]

    def classes(self, lists: Sequence[Sequence[int]]) -> TextState:
        """Some classes of the detector for each of several pictures, by their numbers from 1."""
        rows = [{n: self.names[n - 1] if self.names else f"class {n}" for n in numbers} for numbers in lists]
        return self.detector.encode_text(TextBatch.of_classes(*rows))

    def named(self, names: Sequence[str]) -> TextState:
        """Any names; label k is the k-th of them, from 1.

        Raises:
            PromptError: there is no embedding of a name, and no text encoder; or a name is empty or comes twice.
            WeightsError: the text encoder is not there, or is not that of the detector's embeddings.
        """
        check_names(names)
        return self.detector.encode_embeddings(TextBatch.of_classes(dict(enumerate(names, 1))), self.rows(names))

    def rows(self, names: Sequence[str]) -> Tensor:
        """(K, E) embeddings."""
        table = self.detector.table
        place = {plain_name(name): row for row, name in reversed(list(enumerate(self.names)))}
        self._embed([name for name in names if plain_name(name) not in place and name not in self._known])
        own = [place.get(plain_name(name)) for name in names]
        return torch.stack(
            [self._known[name].to(table) if row is None else table[row] for name, row in zip(names, own, strict=True)]
        )

    def _embed(self, names: list[str]) -> None:
        if not names:
            return
        if not self.cfg.MODEL.ZEROSHOT_CLS.TEXT_WEIGHT:
            table = self.detector.table
            try:
                ClassBank(table, self.names, TEMPLATE, source="this detector").rows(names)  # tells what is there
            except PromptError as error:
                raise PromptError(
                    f"{error}; for any names, set MODEL.ZEROSHOT_CLS.TEXT_WEIGHT to CLIP's weights"
                ) from None
        bank = embed(self.cfg, [*self.names[:1], *names])
        own, table = bank.table[: len(self.names[:1])], self.detector.table
        if len(own) and F.cosine_similarity(own, table[:1].to(own)).item() < ALIKE:
            raise WeightsError(
                f"MODEL.ZEROSHOT_CLS.TEXT_WEIGHT {self.cfg.MODEL.ZEROSHOT_CLS.TEXT_WEIGHT!r}: embeds {self.names[0]!r} "
                "otherwise than the table of the detector: it is another encoder, or another "
                "MODEL.ZEROSHOT_CLS.PROMPT or TEXT_ACTIVATION"
            )
        self._known.update(zip(names, bank.table[len(own) :], strict=True))


def build_vocabulary(cfg: Cfg, detector: object, names: Callable[[], tuple[str, ...]] = tuple) -> Vocabulary | None:
    """None: the detector is of another kind.

    Args:
        cfg: Of the detector.
        detector: See above.
        names: Finds the names of its classes where its embeddings do not tell them.
    """
    if not isinstance(detector, NamedDetector) or not detector.takes_names:
        return None
    found = class_names(cfg)
    if len(found) != len(detector.table) and not cfg.MODEL.ZEROSHOT_CLS.NAMES_FILE:
        found = ()  # a list that comes along with the default WEIGHT_PATH; the weights brought other embeddings
    return Vocabulary(detector, found or names(), cfg)


def refuse_other_embeddings(cfg: Cfg, detector: nn.Module, report: Report) -> None:
    """That names are embedded as in the table that weights bring, where a detector keeps its own in place of that one.

    Rows are compared as far as their names are known: DECOLA's prompt for any object; classes that a training noted
    with the weights, or, where it noted none, those of a released table of as many rows as are used now.

    Raises:
        WeightsError: they are not, or its own has only a part of them.
    """
    parts = ((detector.get_submodule(name.rpartition(".")[0]), table) for name, table in report.replaced.items())
    part, theirs = next(((part, table) for part, table in parts if isinstance(part, ZeroShotClassifier)), (None, None))
    if part is None or theirs is None or part.zs_weight.is_meta:
        return
    if nothing := without_embeddings(detector, cfg.MODEL.DECOLA.PROB_OBJECT_PROMPT > 0):
        raise WeightsError(
            f"{report.path}: {nothing} has no embedding: {CLASSES} and OBJECT_WEIGHT_PATH stand in for the table of "
            "these weights: give both, or neither"
        )
    if isinstance(part, PromptClassifier) and not _alike(part.object_row, theirs[-1:]):
        raise _embedded_otherwise(cfg, OBJECT, report)
    ours, mine, rows = class_names(cfg), part.classes(part.zs_weight), part.classes(theirs)
    noted = read_classes(report.path)
    if not noted and len(ours) == len(rows) and ours in map(bundled_names, BUNDLED.values()):
        noted = ours
    if len(ours) > len(mine) or len(noted) > len(rows):
        return  # names that are not of these rows
    place = {name: row for row, name in enumerate(noted)}
    both = [(row, place[name]) for row, name in enumerate(ours) if name in place]
    if both and not _alike(mine[[row for row, _ in both]], rows[[row for _, row in both]]):
        raise _embedded_otherwise(cfg, CLASSES, report)


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether most rows (N, E) are by one encoder; zeros are of no name."""
    known = ours.any(dim=1) & theirs.any(dim=1)
    cosines = F.cosine_similarity(ours[known].float(), theirs[known].float())
    return len(cosines) == 0 or cosines.median().item() >= ALIKE


def _embedded_otherwise(cfg: Cfg, key: str, report: Report) -> WeightsError:
    given = str(cfg.MODEL.ZEROSHOT_CLS[key.rpartition(".")[2]])
    if not Path(given).is_file() and cfg.MODEL.ZEROSHOT_CLS.TEXT_WEIGHT:
        key, given = "MODEL.ZEROSHOT_CLS.TEXT_WEIGHT", cfg.MODEL.ZEROSHOT_CLS.TEXT_WEIGHT
    return WeightsError(
        f"{report.path}: was trained with other embeddings of the same names than {key} {given!r} "
        f"({cfg.source(key)}) gives: that is of another encoder or template; make it with those of the weights "
        f"(`mrb bank`), or set MODEL.ZEROSHOT_CLS.WEIGHT_PATH and OBJECT_WEIGHT_PATH to '' to take the weights' own"
    )


def takes_names(cfg: Cfg) -> bool:
    """Whether the detector of a config has a :class:`Vocabulary`."""
    mask = cfg.MODEL.ROI_MASK_HEAD
    if cfg.MODEL.META_ARCHITECTURE == "CenterNet2RCNN":
        return cfg.MODEL.ZEROSHOT_CLS.ENABLED and (not cfg.MODEL.MASK_ON or mask.CLS_AGNOSTIC_MASK)
    return cfg.MODEL.META_ARCHITECTURE in EMBEDDING
