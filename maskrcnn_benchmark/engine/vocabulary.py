"""Class names for detectors that compare pictures with embeddings of names, and do not read the names themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import PromptError, WeightsError
from maskrcnn_benchmark.modeling.detectors.named import NamedDetector
from maskrcnn_benchmark.modeling.heads.class_tables import class_names, embed
from maskrcnn_benchmark.modeling.interface import TextState
from maskrcnn_benchmark.structures import TextBatch
from maskrcnn_benchmark.text.class_bank import TEMPLATE, ClassBank, check_names, plain_name

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


def takes_names(cfg: Cfg) -> bool:
    """Whether the detector of a config has a :class:`Vocabulary`."""
    mask = cfg.MODEL.ROI_MASK_HEAD
    if cfg.MODEL.META_ARCHITECTURE == "CenterNet2RCNN":
        return cfg.MODEL.ZEROSHOT_CLS.ENABLED and (not cfg.MODEL.MASK_ON or mask.CLS_AGNOSTIC_MASK)
    return cfg.MODEL.META_ARCHITECTURE in EMBEDDING
