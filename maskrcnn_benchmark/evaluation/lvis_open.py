"""LVIS's scores of open-vocabulary detectors: novel classes apart from base classes, and conditioned AP."""

from __future__ import annotations

from typing import Any

from maskrcnn_benchmark.evaluation.lvis import LvisEvaluator
from maskrcnn_benchmark.evaluation.report import table

MEASURED = 0.0  # an AP below this is of a class without objects


class OpenLvisEvaluator(LvisEvaluator):
    """LVIS's scores, those of novel and base classes, and where it says so conditioned AP.

    Novel are the rare classes, which are taken out of the annotations for training; base are all others (Gu et al.,
    Open-vocabulary Object Detection via Vision and Language Knowledge Distillation, ICLR 2022). Conditioned AP (Cho and
    Krähenbühl, CVPR 2024) is the AP of a detector that is asked, for each picture, for the classes of its own objects.

    Args:
        conditioned: The detections are of such a detector; the numbers then are C-AP and C-APr "@" the most detections
            of a picture.
        For the others, see :class:`LvisEvaluator`.
    """

    def __init__(self, *args: Any, conditioned: bool = False, **options: Any):
        super().__init__(*args, **options)
        self.conditioned = conditioned

    def summary(self) -> dict[str, float]:
        """Those of :class:`LvisEvaluator`, AP-novel, AP-base; conditioned: C-AP@k and C-APr@k too; -1: no objects."""
        numbers = super().summary()
        base = [
            row["AP"] for row in self.per_category() if row["frequency"] != "r" and row["AP"] >= MEASURED
        ]  # each class counts once
        numbers |= {"AP-novel": numbers["APr"], "AP-base": sum(base) / len(base) if base else -1.0}
        if self.conditioned:
            numbers |= {f"C-{name}@{self._limit}": numbers[name] for name in ("AP", "APr")}
        return numbers

    def table(self) -> str:
        """The numbers for people, those of novel and base classes first."""
        numbers = {name: value for name, value in self.summary().items() if "-" in name and "/" not in name}
        head = "conditioned" if self.conditioned else "open vocabulary"
        return "\n".join([table([head, *numbers], [["all", *numbers.values()]]), super().table()])

    def card(self) -> dict[str, Any]:
        card = super().card()
        return card | {"protocol": card["protocol"] | {"conditioned": self.conditioned}}
