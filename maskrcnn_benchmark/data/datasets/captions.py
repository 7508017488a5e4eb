"""Pictures with captions to be grounded: Flickr30k, referring expressions, GQA and PhraseCut, in MDETR's JSON."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_benchmark.data.catalog import Entry, find_path
from maskrcnn_benchmark.data.datasets.mdetr import MdetrDataset
from maskrcnn_benchmark.data.pictures import Size
from maskrcnn_benchmark.data.sample import Sample
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import ImageMeta, Prompt
from maskrcnn_benchmark.structures.prompt import Span
from maskrcnn_benchmark.text.prompts import grounding_prompt

logger = logging.getLogger(__name__)

ENTRY_KEYS = {
    "flickr": {"augment", "copies", "vg_img_dir", "entities", "split"},  # the last two are for the evaluator
    "gqa": {"copies", "vg_img_dir"},
    "phrasecut": {"copies", "vg_img_dir", "original", "split"},  # likewise
    "refexp": {"augment", "copies", "vg_img_dir"},
}
"""Kind -> what an entry of the catalog may say besides its files."""


class CaptionSet:
    """The pictures of a file of captions, each with all of its captions, so that it is read and encoded once.

    An *entry* is a caption. Entries are numbered from 0 by ascending id, pictures by their first entry.

    Args:
        images: Folder of the pictures.
        annotations: MDETR JSON.
        name: What the data set is called.
        kind: What is looked for: "flickr", the phrases in ``tokens_positive_eval`` of the caption, in that order;
            "refexp", the one thing that the expression is about, by ``tokens_positive`` of its only annotation; "gqa"
            and "phrasecut", what the caption as a whole names.
        vg_images: Folder of the pictures whose ``data_source`` is not "coco"; None: they are in ``images``.

    Attributes:
        num_entries: How many captions there are.
        notes: What was mended or left out.

    Raises:
        DataError: the file is missing or broken, or does not say which words to look for.
    """

    def __init__(
        self, images: Path, annotations: Path, name: str = "", kind: str = "flickr", vg_images: Path | None = None
    ):
        if kind not in ENTRY_KEYS:
            raise ValueError(f"kind must be {' or '.join(ENTRY_KEYS)}, got {kind!r}")
        self._captions = MdetrDataset(images, annotations, name, vg_images, every=True)
        self.name, self.annotations = self._captions.name, self._captions.annotations
        self.notes = list(self._captions.notes)
        prompts = [self._asked(kind, number) for number in range(len(self._captions))]
        self._numbers = [number for number, prompt in enumerate(prompts) if prompt is not None]
        self._prompts = [prompt for prompt in prompts if prompt is not None]
        self._pictures = self._by_file()
        if without := len(prompts) - len(self._prompts):
            self.notes.append(f"{without} of {len(prompts)} captions have no phrase to look for: left out")
        if not self._prompts:
            raise DataError(f"{annotations}: none of the {len(prompts)} captions has a phrase to look for")
        for note in self.notes:
            logger.warning("%s: %s", self.annotations, note)

    @classmethod
    def from_entry(cls, entry: Entry) -> CaptionSet:
        """The data set of a catalog entry of one of these kinds.

        Raises:
            DataError: see the class; also when the entry has a key that nothing reads.
        """
        for key in sorted(set(entry.options) - ENTRY_KEYS[entry.kind]):
            raise DataError(
                f"data set {entry.name!r}: nothing reads its key {key!r} when it is of kind {entry.kind!r}: give "
                f"img_dir, ann_file, and where needed {', '.join(sorted(ENTRY_KEYS[entry.kind]))}"
            )
        vg = entry.options.get("vg_img_dir")
        vg_images = find_path(vg, f"data set {entry.name!r}: vg_img_dir") if vg else None
        return cls(entry.images, entry.annotations, entry.name, entry.kind, vg_images)

    @property
    def num_entries(self) -> int:
        return len(self._prompts)

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        """A picture, with the boxes of its first caption.

        Raises:
            PictureError: it is missing or damaged.
        """
        return self._captions[self._first(index)]

    def file(self, index: int) -> Path:
        return self._captions.file(self._first(index))

    def size(self, index: int) -> Size | None:
        """(h, w) that the annotations give; None when they do not."""
        return self._captions.size(self._first(index))

    def entries(self, index: int) -> list[int]:
        """The captions of a picture."""
        return list(self._pictures[index])

    def prompts(self, index: int) -> tuple[Prompt, ...]:
        """One for each caption of a picture; phrase ``i`` of a caption has the id ``i``, from 1."""
        return tuple(self._prompts[entry] for entry in self._pictures[index])

    def meta(self, entry: int, orig_size: Size) -> ImageMeta:
        """What is known about a caption, whose picture is (h, w) on disk; the id is that of the caption."""
        return self._captions.meta(self._numbers[entry], orig_size)

    def _first(self, index: int) -> int:
        """The first caption of a picture, as the file counts them."""
        return self._numbers[self._pictures[index][0]]

    def _by_file(self) -> list[list[int]]:
        groups: dict[Path, list[int]] = {}
        for entry, number in enumerate(self._numbers):
            groups.setdefault(self._captions.file(number), []).append(entry)
        return list(groups.values())

    def _asked(self, kind: str, number: int) -> Prompt | None:
        """What is asked about a caption; None when it has no phrase to look for."""
        prompt = self._prompt_of(kind, number)
        return prompt if len(prompt) else None

    def _prompt_of(self, kind: str, number: int) -> Prompt:
        """The phrases of a caption."""
        if kind == "flickr":
            return self._flickr_prompt(number)
        if kind == "refexp":
            return self._refexp_prompt(number)
        if kind == "phrasecut" and "task_id" not in self._captions.meta(number, (0, 0)).extra:
            raise DataError(f"{self._place(number)}: no task_id, which says what phrase of PhraseCut it is")
        caption = self._captions.caption(number)
        return evaluation_prompt(caption, [[[0, len(caption)]]])

    def _flickr_prompt(self, number: int) -> Prompt:
        extra = self._captions.meta(number, (0, 0)).extra
        if "tokens_positive_eval" not in extra:
            raise DataError(
                f"{self._place(number)}: no tokens_positive_eval, the characters of the phrases to look for: "
                "evaluation on Flickr30k Entities needs MDETR's final_flickr files"
            )
        where = f"{self._place(number)}: tokens_positive_eval"
        return evaluation_prompt(self._captions.caption(number), extra["tokens_positive_eval"], where)

    def _refexp_prompt(self, number: int) -> Prompt:
        spans = self._captions.spans(number)
        if len(spans) != 1:
            raise DataError(
                f"{self._place(number)}: {len(spans)} annotations; a referring expression has exactly one, the box "
                "that it is about"
            )
        where = f"{self._place(number)}: tokens_positive of its annotation"
        return evaluation_prompt(self._captions.caption(number), spans, where)

    def _place(self, number: int) -> str:
        return f"{self.annotations}: images (id {self._captions.image_id(number)!r})"


def evaluation_prompt(caption: str, phrases: object, where: str = "phrases") -> Prompt:
    """The prompt that a caption is evaluated with.

    Args:
        caption: The sentence.
        phrases: What to look for: for each phrase the characters [begin, end) that it consists of, one or several
            pairs. Phrase ``i`` gets the id ``i``, from 1; phrases of the same words stay apart.
        where: What ``phrases`` are called in messages.

    Raises:
        DataError: they are no such lists, or characters are not in the caption.
    """
    if not isinstance(phrases, Sequence) or isinstance(phrases, str):
        raise DataError(f"{where} is {phrases!r:.60}, not a list of phrases")
    return grounding_prompt(caption, [_spans(phrase, f"{where}[{i}]", caption) for i, phrase in enumerate(phrases)])


def _spans(phrase: object, where: str, caption: str) -> list[Span]:
    if not isinstance(phrase, Sequence) or isinstance(phrase, str) or not phrase:
        raise DataError(f"{where} is {phrase!r:.60}, not a list of [begin, end)")
    spans = []
    for span in phrase:
        if not (isinstance(span, Sequence) and len(span) == 2 and all(type(end) is int for end in span)):
            raise DataError(f"{where} holds {span!r:.60}, not two whole numbers [begin, end)")
        if not 0 <= span[0] < span[1] <= len(caption):
            raise DataError(
                f"{where} holds {list(span)}, but the caption {caption!r:.60} has {len(caption)} characters"
            )
        spans.append((span[0], span[1]))
    return spans
