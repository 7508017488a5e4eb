"""One training set: a picture by number becomes pixels, boxes and the tokens that each box owns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskrcnn_benchmark.data.collate import Item, ItemText, Note
from maskrcnn_benchmark.data.draws import Draws
from maskrcnn_benchmark.data.sample import Sample, TrainPictures
from maskrcnn_benchmark.data.transforms import TrainTransform
from maskrcnn_benchmark.data.wording import Worded, Wording
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.text.masking import hide_words
from maskrcnn_benchmark.text.positive_map import entity_tokens, greenlight_map, od_label_map
from maskrcnn_benchmark.text.tokenizer import TokenizedText, Tokenizer

NO_CLASS = -10  # Target.token_labels of a box whose label means nothing in other pictures
UNTOUCHED = (-1, -1, -1)  # a span that keeps a whole text from being masked


@dataclass(frozen=True)
class TextSettings:
    """What becomes of a text.

    Attributes:
        tokenizer: The network's.
        length: Tokens of every text: a shorter one is padded, a longer one cut.
        hide: Hide words for masked language modelling.
        label_tokens: Say which tokens name which class, for the shallow contrastive loss.
    """

    tokenizer: Tokenizer
    length: int
    hide: bool = False
    label_tokens: bool = False


class TrainSet:
    """A data set with its way of wording.

    Args:
        dataset: Pictures and boxes; a grounding set also has the captions.
        wording: From boxes to text.
        transform: From pictures to pixels.
        text: From text to tokens.
        keep_words: Nothing of a text is hidden, even where ``text.hide`` is set.
    """

    def __init__(
        self,
        dataset: TrainPictures,
        wording: Wording,
        transform: TrainTransform,
        text: TextSettings,
        keep_words: bool = False,
    ):
        self.dataset, self.wording, self.transform = dataset, wording, transform
        self.text, self.keep_words = text, keep_words

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, index: int, draws: Draws) -> Item:
        """A picture, with everything random taken from ``draws``.

        Raises:
            PictureError: it is missing or damaged.
        """
        sample = self.dataset[index]
        if sample.target is None:
            raise DataError(f"{self.dataset.name}: has no boxes to train on")
        worded = self.wording(sample.target, draws)
        pixels, target = self.transform(sample.image, worded.target, draws.python)
        length = self.text.length
        text = self.text.tokenizer.encode([worded.prompt.text], max_length=length, pad_to=length)
        input_ids, maskable, word_labels = self._words(text, worded, draws)
        labels = self._classes(worded) if self.text.label_tokens else None
        target = replace(
            target,
            prompt=worded.prompt,
            positive_map=entity_tokens(text, 0, worded.spans, length).float(),
            token_labels=labels,
        )
        return Item(
            pixels,
            target,
            ItemText(input_ids, text.attention_mask[0], entity_tokens(text, 0, worded.prompt.spans, length)),
            maskable=maskable,
            word_labels=word_labels,
            token_labels=None if labels is None else od_label_map(text, 0, worded.labels, length),
            notes=self._notes(sample, worded, text),
        )

    def _words(self, text: TokenizedText, worded: Worded, draws: Draws) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Token ids (L,), and, if words are hidden in them, which might have been and which have to be guessed."""
        if not self.text.hide:
            return text.input_ids[0], None, None
        spans = [*worded.maskable, *([UNTOUCHED] if self.keep_words else [])]
        maskable = greenlight_map(text, 0, spans, self.text.length)
        words = self.text.tokenizer
        ids, labels = hide_words(
            text.input_ids, draws.python, words.mask_id, words.pad_id, words.vocab_size, maskable[None]
        )
        return ids[0], maskable, labels[0]

    @staticmethod
    def _classes(worded: Worded) -> Tensor:
        """(N,) what Target.token_labels are."""
        return worded.target.labels if worded.labels else torch.full_like(worded.target.labels, NO_CLASS)

    def _notes(self, sample: Sample, worded: Worded, text: TokenizedText) -> tuple[Note, ...]:
        name, file = self.dataset.name, sample.meta.file
        notes = []
        if sample.note:
            notes.append(Note(f"{name}: pictures that do not fit their annotations", f"{file}: {sample.note}"))
        if worded.lost:
            reason = "the names of their classes do not fit into the prompt"
            notes.append(Note(f"{name}: pictures without some of their boxes", f"{file}: {worded.lost}, {reason}"))
        if text.encodings[0].overflowing:
            notes.append(Note(f"{name}: texts cut at {self.text.length} tokens", f"{worded.prompt.text[:60]!r}..."))
        return tuple(notes)
