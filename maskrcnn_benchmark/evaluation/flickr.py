"""Phrase grounding on Flickr30k Entities: recall of the best boxes of each phrase, as MDETR and FIBER measure it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn_benchmark import __version__
from maskrcnn_benchmark.data.catalog import Entry, find_path
from maskrcnn_benchmark.errors import ConfigError, DataError
from maskrcnn_benchmark.evaluation.columns import json_list
from maskrcnn_benchmark.evaluation.entities import Box, SentenceId, read_entities
from maskrcnn_benchmark.evaluation.report import Content, table, write_files
from maskrcnn_benchmark.structures import Detections
from maskrcnn_benchmark.structures.boxes import iou

logger = logging.getLogger(__name__)

PROTOCOLS = {"separate": "any box", "merged": "one box around all"}
"""Name of a protocol -> what a phrase with several boxes wants to be found."""
LIMITS = {"Recall@1": 1, "Recall@5": 5, "Recall@10": 10, "Upper_bound": None}
NO_BOX = [0.0, 0.0, 0.0, 0.0]  # ends the list of every phrase in FIBER's predictions
NEVER = np.iinfo(np.int32).max
ENOUGH = 0.5  # IoU
SHOWN = 10


@dataclass(frozen=True)
class _Predicted:
    """The boxes of a sentence, as they were given."""

    image_id: int | str
    boxes: np.ndarray  # (N, 4)
    phrases: np.ndarray  # (N,) from 0
    scores: np.ndarray | None  # (N,)


class FlickrEvaluator:
    """Takes the boxes found for each caption, and keeps at which rank the first one hit each of its phrases.

    A box hits when its IoU with a box of the phrase is at least 0.5; pixels have no extent (no + 1). A phrase of
    several types counts in each of them, and once in "all".

    Args:
        entities: Folder of Flickr30k Entities, see :func:`~maskrcnn_benchmark.evaluation.entities.read_entities`.
        split: Name of the list of pictures in it, such as "val".
        protocols: "separate" (ANY-BOX: any box of the phrase is to be hit), "merged" (MERGED-BOX: the one around all of
            them), or both; the first one gives the main numbers, another's are called "merged/Recall@1_all" and so on.

    Raises:
        DataError: the folder is not what it should be.
        ConfigError: there is no such protocol.
    """

    main = "Recall@1_all"

    def __init__(self, entities: str | Path, split: str, protocols: Sequence[str] = ("separate",)):
        for name in protocols:
            if name not in PROTOCOLS:
                raise ConfigError(f"no Flickr30k protocol is called {name!r}: use {' or '.join(PROTOCOLS)}")
        data = read_entities(entities, split)
        self.where, self.split, self._digest, self.pictures = data.where, split, data.sha256, data.pictures
        self.number: dict[SentenceId, int] = {key: index for index, key in enumerate(data.sentences)}
        phrases = [phrase for sentence in data.sentences.values() for phrase in sentence]
        self._first = np.cumsum([0, *(len(sentence) for sentence in data.sentences.values())])
        self._targets = {name: _Targets([_wanted(name, phrase.boxes) for phrase in phrases]) for name in protocols}
        self._ranks = {name: np.full(len(phrases), NEVER, np.int32) for name in protocols}
        self._types = {"all": np.ones(len(phrases), np.int64)}
        for kind in sorted({kind for phrase in phrases for kind in phrase.types}):
            self._types[kind] = np.array([phrase.types.count(kind) for phrase in phrases])
        self._found: list[_Predicted | None] = [None] * len(self.number)
        self._doubled: list[SentenceId] = []
        self._unexpected: list[SentenceId] = []

    @classmethod
    def from_entry(cls, entry: Entry, protocol: str = "separate") -> FlickrEvaluator:
        """The evaluator of a catalog entry, whose keys ``entities`` and ``split`` say where the ground truth is.

        Raises:
            DataError: one of them is missing, or the folder is not what it should be.
        """
        for key, what in (("entities", "the folder of Flickr30k Entities"), ("split", 'its list, such as "val"')):
            if not isinstance(entry.options.get(key), str):
                raise DataError(f"data set {entry.name!r}: no {key}: the evaluator 'flickr' needs {what}")
        folder = find_path(entry.options["entities"], f"data set {entry.name!r}: entities")
        return cls(folder, entry.options["split"], (protocol,))

    def update(self, detections: Sequence[Detections]) -> None:
        """Add what was found for some captions; label ``i`` is phrase ``i``, from 1, of those that have boxes.

        ``meta.extra`` says which sentence a caption is: ``original_img_id`` and ``sentence_id``.

        Raises:
            DataError: a caption is no sentence, or has other phrases than the ground truth.
        """
        for found in detections:
            extra = found.meta.extra
            if "original_img_id" not in extra or "sentence_id" not in extra:
                raise DataError(
                    f"caption {found.meta.image_id!r} ({found.meta.file}): no original_img_id and sentence_id, which "
                    "say what sentence of Flickr30k Entities it is"
                )
            asked: Any = extra.get("tokens_positive_eval")
            row: dict[str, Any] = {"image_id": extra["original_img_id"], "sentence_id": extra["sentence_id"]}
            number = self._sentence(row, None if asked is None else len(asked))
            if number is not None:
                phrases, scores = found.labels.numpy() - 1, found.scores.numpy().copy()
                self._add(number, _Predicted(row["image_id"], found.boxes.numpy().copy(), phrases, scores))

    def update_ranked(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Add predictions that are ranked already: ``{image_id, sentence_id, boxes}``.

        ``boxes`` has, for each phrase of the sentence that has boxes and in their order, boxes (x1, y1, x2, y2) in
        pixels of the picture on disk, the best first; as lists, arrays or tensors. ``image_id`` is the picture's.

        Raises:
            DataError: a sentence has other phrases than the ground truth.
        """
        for row in predictions:
            number = self._sentence(row, len(row["boxes"]))
            if number is not None:
                ranked = [np.asarray(boxes).reshape(-1, 4) for boxes in row["boxes"]]
                phrases = np.repeat(np.arange(len(ranked)), [len(boxes) for boxes in ranked])
                self._add(number, _Predicted(row["image_id"], np.concatenate(ranked), phrases, None))

    def _sentence(self, row: Mapping[str, Any], count: int | None) -> int | None:
        """The number of a sentence; None where there is nothing to be scored.

        Raises:
            DataError: it has another number of phrases.
        """
        try:
            key = (str(row["image_id"]), int(row["sentence_id"]))
        except (ValueError, TypeError):
            raise DataError(
                f"picture {row['image_id']}: sentence_id {row['sentence_id']!r} is not a whole number"
            ) from None
        number = self.number.get(key)
        if number is None:
            if count != 0:
                self._unexpected.append(key)
            return None
        if self._found[number] is not None:
            self._doubled.append(key)
            return None
        expected = self._count(number)
        if count not in (None, expected):
            raise DataError(
                f"{_name(key)}: boxes for {count} phrases, but {expected} have boxes in {self.where}: the captions and "
                "the Entities are not of one version"
            )
        return number

    def _count(self, number: int) -> int:
        return int(self._first[number + 1] - self._first[number])

    def _add(self, number: int, found: _Predicted) -> None:
        count = self._count(number)
        if len(found.phrases) and not 0 <= found.phrases.min() <= found.phrases.max() < count:
            key = list(self.number)[number]
            raise DataError(
                f"{_name(key)}: boxes for phrase {int(found.phrases.max()) + 1}, but {count} phrases have boxes in "
                f"{self.where}: the captions and the Entities are not of one version"
            )
        self._found[number] = found
        rank = _rank(found.phrases)
        boxes = torch.from_numpy(found.boxes).double()
        mine = slice(int(self._first[number]), int(self._first[number + 1]))
        for name, targets in self._targets.items():
            hit = targets.hit(mine, boxes, found.phrases)
            np.minimum.at(self._ranks[name][mine], found.phrases[hit], rank[hit])

    def summary(self) -> dict[str, float]:
        """Recall@1, @5, @10 and the upper bound (any number of boxes) of all phrases and of each type, 0..1.

        Raises:
            DataError: there is no prediction for a sentence.
        """
        missing = [key for key, number in self.number.items() if self._found[number] is None]
        if missing:
            count = f"{len(missing)} of the {len(self.number)} sentences of {self.where}"
            raise DataError(f"missing predictions for {count}: {_few(missing)}")
        numbers = [self._recalls(name) for name in self._targets]
        for name, others in zip(list(self._targets)[1:], numbers[1:], strict=True):
            numbers[0] |= {f"{name}/{key}": value for key, value in others.items()}
        return numbers[0]

    def _recalls(self, protocol: str) -> dict[str, float]:
        ranks = self._ranks[protocol]
        numbers: dict[str, float] = {}
        for key, limit in LIMITS.items():
            hit = ranks < (NEVER if limit is None else limit)
            numbers |= {f"{key}_{kind}": float(times[hit].sum() / times.sum()) for kind, times in self._types.items()}
        return numbers

    def table(self) -> str:
        """The recalls in percent, a row for each type."""
        self.summary()
        parts = []
        for name in self._targets:
            recalls = self._recalls(name)
            rows = [
                [kind, int(times.sum()), *(f"{100 * recalls[f'{key}_{kind}']:.2f}" for key in LIMITS)]
                for kind, times in self._types.items()
            ]
            parts.append(table([f"{name} ({PROTOCOLS[name]})", "phrases", *LIMITS], rows))
        return "\n".join(parts)

    def csv(self, protocol: str | None = None) -> str:
        """FIBER's ``bbox.csv``."""
        recalls = self._recalls(protocol or next(iter(self._targets)))
        return "metric, avg \n" + "".join(f"{name}, {value} \n" for name, value in recalls.items())

    def predictions(self) -> Iterator[dict[str, Any]]:
        """``{image_id, sentence_id, boxes, scores}`` of each sentence, in the order of the split.

        As in FIBER, boxes are ranked, one list for each phrase, and a box [0, 0, 0, 0] without a score ends each of
        them. Predictions that came without scores are as they came.
        """
        for (_, sentence), number in self.number.items():
            found = self._found[number]
            if found is None:
                continue
            row: dict[str, Any] = {"image_id": found.image_id, "sentence_id": sentence}
            mine = [found.phrases == phrase for phrase in range(self._count(number))]
            if found.scores is None:
                yield row | {"boxes": [found.boxes[rows].tolist() for rows in mine]}
            else:
                boxes = [[*found.boxes[rows].tolist(), NO_BOX] for rows in mine]
                yield row | {"boxes": boxes, "scores": [found.scores[rows].tolist() for rows in mine]}

    def write(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write the result files, all or none, and log the table.

        ========================= ==================================================================================
        bbox.csv                  the recalls of the main protocol in FIBER's text; of another one as bbox_merged.csv
        predictions.json          see :meth:`predictions`
        results.json              all numbers, counts, the digest of the ground truth, and what ``card`` adds
        ========================= ==================================================================================

        Raises:
            DataError: there is no prediction for a sentence.
        """
        results = self.card() | dict(card or {})
        files: dict[str, Content] = {
            "bbox.csv" if index == 0 else f"bbox_{name}.csv": self.csv(name).encode()
            for index, name in enumerate(self._targets)
        }
        files["predictions.json"] = json_list(self.predictions())
        files["results.json"] = json.dumps(results, indent=2, ensure_ascii=False).encode()
        write_files(Path(folder), files)
        for note in self.notes:
            logger.warning("%s: %s", self.where, note)
        logger.info("%s\n%s", self.where, self.table())

    @property
    def notes(self) -> list[str]:
        """What was not as expected."""
        notes = []
        if self._doubled:
            many = f"{len(self._doubled)} predictions for sentences that had one already"
            notes.append(f"{many}, the first one counts: {_few(self._doubled)}")
        if self._unexpected:
            notes.append(
                f"{len(self._unexpected)} sentences were predicted that have no phrase with a box, or are not in the "
                f"split: {_few(self._unexpected)}"
            )
        return notes

    def card(self) -> dict[str, Any]:
        """Numbers, and what they were measured on and with."""
        metrics = self.summary()
        found = [row for row in self._found if row is not None]
        return {
            "metrics": metrics,
            "counts": {
                "pictures": self.pictures,
                "sentences": len(self.number),
                "phrases": {kind: int(times.sum()) for kind, times in self._types.items()},
                "detections": sum(len(row.boxes) for row in found),
            },
            "main": self.main,
            "protocol": {
                "name": next(iter(self._targets)),
                "measured": {name: PROTOCOLS[name] for name in self._targets},
            },
            "engine": {"name": "flickr30k_entities", "version": __version__},
            "notes": self.notes,
            "annotations": {"file": self.where, "sha256": self._digest},
        }


class _Targets:
    """The boxes that phrases want to be found.

    Args:
        boxes: Of each phrase, at least one.
    """

    def __init__(self, boxes: Sequence[Sequence[Box]]):
        self._boxes = torch.tensor([box for row in boxes for box in row], dtype=torch.float64)
        self._owner = np.repeat(np.arange(len(boxes)), [len(row) for row in boxes])
        self._first = np.cumsum([0, *(len(row) for row in boxes)])

    def hit(self, phrases: slice, boxes: Tensor, labels: np.ndarray) -> np.ndarray:
        """(N,) bool: whether a box (N, 4) hits its phrase; ``labels`` (N,) count the ``phrases`` from 0."""
        mine = slice(int(self._first[phrases.start]), int(self._first[phrases.stop]))
        enough = iou(boxes, self._boxes[mine]).numpy() >= ENOUGH
        hits: np.ndarray = (enough & (labels[:, None] == self._owner[mine] - phrases.start)).any(axis=1)
        return hits


def _wanted(protocol: str, boxes: Sequence[Box]) -> Sequence[Box]:
    """What has to be found of a phrase with some boxes."""
    if protocol == "separate":
        return boxes
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return [(min(x1), min(y1), max(x2), max(y2))]


def _rank(phrases: np.ndarray) -> np.ndarray:
    """(N,) phrases of boxes, the best box first -> (N,) int32: how many boxes of its phrase are before each."""
    order = np.argsort(phrases, kind="stable")
    ordered = phrases[order]
    rank = np.empty(len(phrases), np.int32)
    rank[order] = np.arange(len(phrases)) - np.searchsorted(ordered, ordered)
    return rank


def _name(key: SentenceId) -> str:
    return f"sentence {key[1]} of picture {key[0]}"


def _few(keys: Sequence[SentenceId]) -> str:
    return ", ".join(map(_name, keys[:SHOWN])) + (", ..." if len(keys) > SHOWN else "")
