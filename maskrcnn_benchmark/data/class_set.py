"""Training sets of a detector that knows its classes by number, and reads no text."""

from __future__ import annotations

from pathlib import Path

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.data.catalog import Entry, find_path
from maskrcnn_benchmark.data.classes import check_classes, class_count
from maskrcnn_benchmark.data.collate import Item, Note
from maskrcnn_benchmark.data.datasets.coco_grounding import CocoGrounding
from maskrcnn_benchmark.data.datasets.image_folder import ImageFolder
from maskrcnn_benchmark.data.datasets.imagenet_binary import ImageNetBinary
from maskrcnn_benchmark.data.datasets.imagenet_tsv import ImageNetSplits
from maskrcnn_benchmark.data.datasets.voc import VocDataset
from maskrcnn_benchmark.data.draws import Draws
from maskrcnn_benchmark.data.sample import TrainPictures
from maskrcnn_benchmark.data.transforms import TrainTransform
from maskrcnn_benchmark.errors import DataError

ENTRY_KEYS = {
    "coco": {"augment", "copies"},
    "voc": {"augment", "copies", "split", "classes"},
    "imagenet": {"augment", "copies", "split", "boxes", "first_label", "memory"},
    "imagenet22k": {"augment", "copies", "boxes", "class_base", "order_seed"},
    "image_labels": {"augment", "copies", "boxes"},
}
"""Kind that such a detector can be trained with -> what an entry of the catalog may say besides its files."""

FROM_0_OR_1 = ("class_base", "first_label")
"""Keys that say from where numbers count."""


class ClassSet:
    """A data set whose boxes have labels, and nothing to read.

    Args:
        dataset: Pictures and boxes.
        transform: From pictures to pixels.
        classes: Names of the labels 1, 2, ...
    """

    def __init__(self, dataset: TrainPictures, transform: TrainTransform, classes: tuple[str, ...]):
        self.dataset, self.transform, self.classes = dataset, transform, classes

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, index: int, draws: Draws) -> Item:
        """A picture, with everything random taken from ``draws``; it may have no boxes.

        Raises:
            PictureError: it is missing or damaged.
        """
        sample = self.dataset[index]
        assert sample.target is not None
        pixels, target = self.transform(sample.image, sample.target, draws.python)
        odd = Note(f"{self.dataset.name}: odd pictures", f"{sample.meta.file}: {sample.note}")
        return Item(pixels, target, notes=(odd,) if sample.note else ())


def build_class_set(cfg: Cfg, entry: Entry, transform: TrainTransform) -> ClassSet:
    """The training set of a catalog entry.

    Raises:
        ConfigError: the network has another number of classes.
        DataError: files are missing or broken, or the entry is of another kind or has a key that nothing reads.
    """
    if entry.kind not in ENTRY_KEYS:
        raise DataError(
            f"data set {entry.name!r} is of kind {entry.kind!r}: a detector that reads no text can be trained with "
            f"{', '.join(ENTRY_KEYS)}"
        )
    for key in sorted(set(entry.options) - ENTRY_KEYS[entry.kind]):
        raise DataError(
            f"data set {entry.name!r}: nothing reads its key {key!r} when it is of kind {entry.kind!r}: give img_dir, "
            f"ann_file, and where needed {', '.join(sorted(ENTRY_KEYS[entry.kind]))}"
        )
    if entry.kind in ("coco", "voc"):
        dataset, classes = _annotated(cfg, entry)
    else:
        found = _labelled(entry)
        found.refuse_labels(class_count(cfg))
        dataset = found
        numbers = entry.kind == "imagenet"  # whose files have no names
        classes = tuple(map(str, range(class_count(cfg)))) if numbers else tuple(found.names.values())
    check_classes(cfg, entry.name, classes)
    return ClassSet(dataset, transform, classes)


def _annotated(cfg: Cfg, entry: Entry) -> tuple[TrainPictures, tuple[str, ...]]:
    """Pictures with boxes by hand, and their classes."""
    if entry.kind == "voc":
        voc = VocDataset.from_entry(entry, keep_difficult=False)
        return voc, voc.classes
    override = cfg.DATASETS.OVERRIDE_CATEGORY if cfg.DATASETS.USE_OVERRIDE_CATEGORY else None
    shots, seed = cfg.DATASETS.FEW_SHOT, cfg.DATASETS.SHUFFLE_SEED
    clipped = not cfg.DATASETS.DISABLE_CLIP_TO_IMAGE
    coco = CocoGrounding(entry.images, entry.annotations, entry.name, override, shots, seed, clipped)
    return coco, tuple(coco.names.values())


def _labelled(entry: Entry) -> ImageNetBinary | ImageNetSplits | ImageFolder:
    """Pictures of one class each, with boxes from a file."""
    boxes = str(entry.options.get("boxes") or "")
    if entry.kind == "imagenet":
        split, memory = str(entry.options.get("split", "train")), bool(entry.options.get("memory"))
        return ImageNetBinary(entry.images, split, entry.name, boxes, _number(entry, "first_label") or 0, memory)
    if entry.kind == "imagenet22k":
        base, seed = (_number(entry, key) for key in ("class_base", "order_seed"))
        return ImageNetSplits(entry.images, entry.name, boxes, base, seed)
    where: Path | None = find_path(boxes, f"data set {entry.name!r}: boxes") if boxes else None
    return ImageFolder(entry.images, entry.annotations, entry.name, where)


def _number(entry: Entry, key: str) -> int | None:
    value = entry.options.get(key)
    if value is not None and (type(value) is not int or value < 0 or (key in FROM_0_OR_1 and value > 1)):
        wanted = "0 or 1" if key in FROM_0_OR_1 else "a whole number from 0"
        raise DataError(f"data set {entry.name!r}: {key} is {value!r}, not {wanted}")
    return value
