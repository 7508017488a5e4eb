"""Captions as MDETR is asked about them: whatever a caption names, and in Flickr30k each of its phrases too."""

from __future__ import annotations

from maskrcnn_benchmark.data.datasets.captions import CaptionSet
from maskrcnn_benchmark.structures import Prompt
from maskrcnn_benchmark.structures.prompt import ANYTHING


class ModulatedCaptions(CaptionSet):
    """As :class:`CaptionSet`; every caption is asked about, also one without a phrase to look for.

    MDETR tells for each of its boxes whether the caption names it at all. A prompt without entities asks for that
    alone; one of Flickr30k does so with an entity of the id 0 before its phrases, which count from 1.
    """

    def _asked(self, kind: str, number: int) -> Prompt:
        phrases = self._prompt_of(kind, number)
        if kind != "flickr":
            return Prompt(phrases.text, (), ())
        whole = ((0, len(phrases.text)),)
        return Prompt(phrases.text, (whole, *phrases.spans), (ANYTHING, *phrases.ids))
