"""Class names for detectors that compare pictures with embeddings of names, and do not read the names themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import PromptError, WeightsError
from maskrcnn_benchmark.modeling.detectors.deformable_detr import QueryDetector
from maskrcnn_benchmark.modeling.heads.class_tables import class_names, embed
from maskrcnn_benchmark.modeling.interface import TextState
from maskrcnn_benchmark.structures import TextBatch
from maskrcnn_benchmark.text.class_bank import TEMPLATE, ClassBank, check_names

EMBEDDING = ("DecolaDeformableDETR", "DeformableDETR")
"""``MODEL.META_ARCHITECTURE`` of detectors that are asked for embeddings."""
ALIKE = 0.99  # cosine of two embeddings of a name by one encoder


@dataclass
class Vocabulary:
    """Turns names into what such a detector is asked.

    Attributes:
        detector: With its weights.
        names: Of the classes that it has embeddings of, in their order; empty where nothing says.
        cfg: For a text encoder, which embeds other names.
    """

    detector: QueryDetector
    names: tuple[str, ...]
    cfg: Cfg
    _known: dict[str, Tensor] = field(default_factory=dict)  # rows that the encoder made
    _all: list[TextState] = field(default_factory=list)

    def everything(self) -> TextState:
        """All classes of the detector; label k is class k, from 1."""
        if not self._all:
            count = len(self.detector.classifiers[0].rows)
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
        table = self.detector.classifiers[0].rows
        place = {_plain(name): row for row, name in reversed(list(enumerate(self.names)))}
        self._embed([name for name in names if _plain(name) not in place and name not in self._known])
        return torch.stack(
            [table[place[_plain(name)]] if _plain(name) in place else self._known[name].to(table) for name in names]
        )

    def _embed(self, names: list[str]) -> None:
        if not names:
            return
        if not self.cfg.MODEL.ZEROSHOT_CLS.TEXT_WEIGHT:
            known = ClassBank(torch.zeros(len(self.names), 1), self.names, TEMPLATE, source="this detector")
            known.rows(names)  # tells what is there
            raise PromptError(f"this detector has no embedding of {names[0]!r}")
        bank = embed(self.cfg, [*self.names[:1], *names])
        own, table = bank.table[: len(self.names[:1])], self.detector.classifiers[0].rows
        if len(own) and F.cosine_similarity(own, table[:1].to(own)).item() < ALIKE:
            raise WeightsError(
                f"MODEL.ZEROSHOT_CLS.TEXT_WEIGHT {self.cfg.MODEL.ZEROSHOT_CLS.TEXT_WEIGHT!r}: embeds {self.names[0]!r} "
                "otherwise than the table of the detector: it is another encoder, or another "
                "MODEL.ZEROSHOT_CLS.PROMPT or TEXT_ACTIVATION"
            )
        self._known.update(zip(names, bank.table[len(own) :], strict=True))


def build_vocabulary(cfg: Cfg, detector: object) -> Vocabulary | None:
    """None: the detector is of another kind."""
    return Vocabulary(detector, class_names(cfg), cfg) if isinstance(detector, QueryDetector) else None


def _plain(name: str) -> str:
    """Names are the same when they differ in case, or in spaces and underscores."""
    return " ".join(name.replace("_", " ").lower().split())
