"""Training sets of MDETR: pictures with captions, changed together, and the tokens that each box owns."""

from __future__ import annotations

from dataclasses import replace

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.data.catalog import Entry, find_path
from maskrcnn_benchmark.data.collate import Item, ItemText, Note
from maskrcnn_benchmark.data.datasets.modulated import ModulatedDataset
from maskrcnn_benchmark.data.draws import Draws
from maskrcnn_benchmark.data.mdetr_transforms import MdetrTransform
from maskrcnn_benchmark.data.sample import Sample
from maskrcnn_benchmark.errors import DataError
from maskrcnn_benchmark.structures import Prompt, Target
from maskrcnn_benchmark.text.positive_map import WIDTH, entity_tokens
from maskrcnn_benchmark.text.tokenizer import TokenizedText, Tokenizer

ARCHITECTURES = {"MDETR": False, "MDETR_SEGM": True}
"""``MODEL.META_ARCHITECTURE`` of detectors that are trained with such sets -> whether they learn from masks."""
KINDS = ("mixed", "flickr", "refexp", "gqa", "phrasecut")
ENTRY_KEYS = {"copies", "vg_img_dir", "entities", "original", "split"}
"""What an entry of the catalog may say besides its files; most of it is for the evaluators."""


class ModulatedSet:
    """A data set with its transform.

    Args:
        dataset: Pictures, captions, boxes.
        transform: From pictures to pixels.
        tokenizer: The network's.
        length: Tokens that a caption may have; what is longer is cut, and noted.
    """

    def __init__(self, dataset: ModulatedDataset, transform: MdetrTransform, tokenizer: Tokenizer, length: int = WIDTH):
        self.dataset, self.transform = dataset, transform
        self.tokenizer, self.length = tokenizer, length

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, index: int, draws: Draws) -> Item:
        """A picture, with everything random taken from ``draws``; it may have no boxes.

        The target's positive map (N, 256) is 1 on every token of a box, as MDETR trains (it divides by the number of
        tokens first, and loses that in its batches). Captions are padded by the batch, to the longest one in it.

        Raises:
            PictureError: it is missing or damaged, or a mask is not of its size.
        """
        sample = self.dataset[index]
        assert sample.target is not None
        pixels, target = self.transform(sample.image, sample.target, draws)
        prompt = target.prompt
        assert prompt is not None
        text = self.tokenizer.encode([prompt.text], max_length=self.length)
        target = replace(target, positive_map=entity_tokens(text, 0, prompt.spans, WIDTH).float())
        tokens = entity_tokens(text, 0, prompt.spans)
        words = ItemText(text.input_ids[0], text.attention_mask[0], tokens, self.tokenizer.pad_id)
        return Item(pixels, target, words, notes=self._notes(sample, target, prompt, text))

    def _notes(self, sample: Sample, target: Target, prompt: Prompt, text: TokenizedText) -> tuple[Note, ...]:
        name, file, caption = self.dataset.name, sample.meta.file, f"{prompt.text[:60]!r}..."
        assert sample.target is not None
        assert target.positive_map is not None
        lost = len(sample.target) - len(target)
        wordless = int((target.positive_map.sum(dim=1) == 0).sum())
        found = {
            "pictures that do not fit their annotations": f"{file}: {sample.note}" if sample.note else "",
            "pictures whose crop left out boxes": f"{file}: {lost} of {len(sample.target)}" if lost else "",
            f"captions cut at {self.length} tokens": caption if text.encodings[0].overflowing else "",
            f"captions with boxes that none of the first {WIDTH} tokens names": caption if wordless else "",
        }
        return tuple(Note(f"{name}: {what}", example) for what, example in found.items() if example)


def build_modulated_set(cfg: Cfg, entry: Entry, tokenizer: Tokenizer) -> ModulatedSet:
    """The training set of a catalog entry.

    Raises:
        ConfigError: the sizes of the crops do not fit each other.
        DataError: files are missing or broken, or the entry is of another kind or has a key that nothing reads.
    """
    if entry.kind not in KINDS:
        raise DataError(
            f"data set {entry.name!r} is of kind {entry.kind!r}: MDETR is trained with captions, {', '.join(KINDS)}"
        )
    for key in sorted(set(entry.options) - ENTRY_KEYS):
        raise DataError(
            f"data set {entry.name!r}: nothing reads its key {key!r} when it is of kind {entry.kind!r}: give img_dir, "
            f"ann_file, and where needed {', '.join(sorted(ENTRY_KEYS))}"
        )
    vg = entry.options.get("vg_img_dir")
    vg_images = find_path(vg, f"data set {entry.name!r}: vg_img_dir") if vg else None
    masks = ARCHITECTURES[cfg.MODEL.META_ARCHITECTURE]
    dataset = ModulatedDataset(entry.images, entry.annotations, entry.name, vg_images, masks)
    return ModulatedSet(dataset, _transform(cfg), tokenizer, cfg.MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN)


def _transform(cfg: Cfg) -> MdetrTransform:
    sizes = cfg.AUGMENT.MULT_MIN_SIZE_TRAIN or cfg.INPUT.MIN_SIZE_TRAIN
    least, largest = cfg.AUGMENT.CROP_SIZES
    return MdetrTransform(
        sizes=sizes if isinstance(sizes, tuple) else (sizes,),
        max_size=cfg.INPUT.MAX_SIZE_TRAIN,
        crop=cfg.AUGMENT.CROP_PROB_TRAIN,
        crop_from=cfg.AUGMENT.CROP_FROM,
        crop_sizes=(least, largest),
    )
