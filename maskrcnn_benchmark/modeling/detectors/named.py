"""Detectors that compare what they see with embeddings of names: DECOLA, Detic's Deformable DETR, and CenterNet2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from maskrcnn_benchmark.errors import PromptError
from maskrcnn_benchmark.modeling.heads.zero_shot import ZeroShotClassifier
from maskrcnn_benchmark.modeling.interface import Detector, ImageState, TextState
from maskrcnn_benchmark.structures import Detections, TextBatch


class NamedDetector(Detector):
    """What they share: classes are known by embeddings, those that the network was built with, which count from 1, or
    any others. Prompts are lists of classes; their text is not read."""

    @property
    def takes_names(self) -> bool:
        """Whether it is one of them; a network built otherwise knows no more than its own classes."""
        return True

    @property
    def classifiers(self) -> list[ZeroShotClassifier]:
        """All of which have the same embeddings."""
        raise NotImplementedError

    @property
    def table(self) -> Tensor:
        """(C, E) embeddings of the classes that the network was built with."""
        return self.classifiers[0].rows

    def find_rows(
        self, image: ImageState, ids: Sequence[int], names: Mapping[int, str], rows: Tensor
    ) -> list[Detections]:
        """One result for each of B pictures.

        Args:
            image: B pictures.
            ids: Labels of K classes.
            names: Of these labels.
            rows: (K, E) embeddings.
        """
        raise NotImplementedError

    def encode_text(self, text: TextBatch) -> TextState:
        """Prompts whose ids are classes that the network was built with.

        Raises:
            PromptError: there is no class of such an id.
        """
        table = self.table
        for prompt in text.prompts:
            if wrong := [label for label in prompt.ids if not 1 <= label <= len(table)]:
                raise PromptError(
                    f"class {wrong[0]} of the prompt {prompt.text[:40]!r}: the detector has embeddings of classes 1 to "
                    f"{len(table)}; give embeddings of other names (MODEL.ZEROSHOT_CLS)"
                )
        return _state(text, [table[torch.tensor(prompt.ids, dtype=torch.int64) - 1] for prompt in text.prompts])

    def encode_embeddings(self, text: TextBatch, table: Tensor) -> TextState:
        """Prompts about any classes: id k stands for row k - 1 of a table (C, E) of embeddings of any length."""
        rows = self.classifiers[0].unit(table.to(self.table))
        return _state(text, [rows[torch.tensor(prompt.ids, dtype=torch.int64) - 1] for prompt in text.prompts])

    def detect(self, image: ImageState, text: TextState) -> list[Detections]:
        """One result per picture, in pixels of the picture on disk, best first.

        Args:
            image: B pictures.
            text: One list of classes for all of them, or B lists, one for each.
        """
        batch, prompts = len(image.metas), text.text.prompts
        if len(prompts) == 1:
            return self.find_rows(image, prompts[0].ids, _names(text, 0), text.features[0, : len(prompts[0])])
        if len(prompts) != batch:
            raise ValueError(f"{len(prompts)} prompts for {batch} pictures: give one, or one for each")
        return [
            found
            for row, prompt in enumerate(prompts)
            for found in self.find_rows(
                image.select([row]), prompt.ids, _names(text, row), text.features[row, : len(prompt)]
            )
        ]


def _state(text: TextBatch, rows: Sequence[Tensor]) -> TextState:
    """Rows of P prompts as (P, K, E); those of shorter prompts end in zeros."""
    if any(len(part) and not part.any() for part in rows):
        raise PromptError("the detector has no embeddings of these classes: give it a table (MODEL.ZEROSHOT_CLS)")
    return TextState(text, nn.utils.rnn.pad_sequence(list(rows), batch_first=True))


def _names(text: TextState, row: int) -> dict[int, str]:
    prompt = text.text.prompts[row]
    return {label: prompt.name(entity) for entity, label in enumerate(prompt.ids)}
