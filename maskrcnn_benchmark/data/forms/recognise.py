"""Which form data are in: from a folder or file to the annotation files of each split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from maskrcnn_benchmark.data.check import read_json
from maskrcnn_benchmark.data.forms.model import ALL, SUFFIXES, Layout, Part, in_order
from maskrcnn_benchmark.errors import DataError

FORMS = ("coco", "voc", "yolo", "labelme")
DEPTH = 2  # folders below the one named that are searched for annotations
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLITS |= {"test": "test", "testing": "test", "trainval": "trainval"}
CLASS_LISTS = ("classes.txt", "labels.txt", "obj.names", "predefined_classes.txt")
PREFERRED = ("without_background", "instances")  # in names of files, where a split has several
LOOKED_AT = 5  # pictures that are looked for to find their folder


def recognise(path: str | Path, images: str | Path | None = None) -> Layout:
    """What a folder or file is.

    Args:
        path: A folder, or one annotation file (for YOLO: its YAML file).
        images: Folder of the pictures, where they are not found beside the annotations.

    Raises:
        DataError: it is missing, or no form that is known.
    """
    path = Path(path)
    if images is not None and not Path(images).is_dir():
        raise DataError(f"--images {str(images)!r} is not a folder")
    folder = Path(images) if images is not None else None
    if path.is_file():
        found = _file(path, folder)
    elif path.is_dir():
        found = next(filter(None, (search(path, folder) for search in _SEARCHES)), None)
    else:
        raise DataError(f"{path}: no such file or folder")
    if found is None:
        raise DataError(f"{path}: {_what_is_there(path)}; known forms are COCO, PASCAL VOC, YOLO and LabelMe")
    return found


def split_of(*names: str) -> str:
    """The split that the first name with such a word stands for: "instances_val2017" is "val"."""
    for name in names:
        for word in re.findall(r"[a-z]+", name.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return ALL


def pictures_below(folder: Path) -> list[Path]:
    """Every picture of a folder and of those in it, in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _file(path: Path, images: Path | None) -> Layout | None:
    if path.suffix == ".xml":
        return Layout("voc", path.parent, (Part(ALL, (path,), _folders(path.parent, images)),))
    if path.suffix in (".yaml", ".yml"):
        return _yolo_yaml(path)
    if path.suffix != ".json":
        return None
    data = read_json(path)
    form = json_form(data)
    if form == "labelme":
        return Layout("labelme", path.parent, (Part(ALL, (path,), _folders(path.parent, images)),))
    if form is None and isinstance(data, list):
        raise DataError(f"{path}: holds a list; this looks like results, give the annotation file")
    part = Part(split_of(path.stem, path.parent.name), (path,), _json_folders(path, data, images), data)
    return Layout(form or "coco", path.parent, (part,), roboflow=path.name.startswith("_annotations.coco"))


def json_form(data: Any) -> str | None:
    """ "coco", "lvis", "mdetr" or "labelme"; None: something else."""
    if not isinstance(data, dict):
        return None
    if isinstance(data.get("shapes"), list):
        return "labelme"
    images, rows = data.get("images"), data.get("annotations")
    if not isinstance(images, list) or not isinstance(rows, list):
        return None
    if any(isinstance(row, dict) and "tokens_positive" in row for row in rows[:LOOKED_AT]):
        return "mdetr"
    if any(isinstance(row, dict) and "neg_category_ids" in row for row in images[:LOOKED_AT]):
        return "lvis"
    return "coco" if isinstance(data.get("categories"), list) else None


def _yolo_yaml(path: Path) -> Layout | None:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(tree, dict) or "names" not in tree:
        return None
    names = tree["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{path}: names has the numbers {', '.join(map(str, names))}: they must be 0, 1, 2, ...")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names is {names!r:.60}: give a list of class names")
    if len(set(map(str, names))) < len(names):
        raise DataError(f"{path}: names has a name twice: give each class its own")
    if isinstance(tree.get("nc"), int) and tree["nc"] != len(names):
        raise DataError(f"{path}: nc is {tree['nc']} and there are {len(names)} names: mend one of them")
    parts = []
    for key in tree:
        if key in SPLITS or str(tree[key]).startswith("images/"):
            values = tree[key] if isinstance(tree[key], list) else [tree[key]]
            pictures = [
                file for value in values if value for file in _yolo_pictures(path, tree.get("path"), str(value), key)
            ]
            parts += [Part(SPLITS.get(key) or str(key), tuple(pictures))] if pictures else []
    if not parts:
        raise DataError(f"{path}: has none of train, val and test: name a folder of pictures for each")
    classes = tuple(str(name) for name in names)
    return Layout("yolo", path.parent, tuple(parts), classes=classes, roboflow="roboflow" in tree)


def _yolo_pictures(file: Path, base: object, value: str, key: str) -> list[Path]:
    """The pictures of a split: those of a folder, or those that a list names."""
    starts = [file.parent / str(base), Path(str(base))] if base else []
    starts += [file.parent]
    inside = Path(*[part for part in Path(value).parts if part != ".."])  # Roboflow writes ../train/images
    for place in [start / value for start in starts] + [file.parent / inside]:
        if place.is_dir():
            return pictures_below(place)
        if place.is_file():
            return [place.parent / line for line in _lines(place)]
    raise DataError(f"{file}: {key}: {value!r} is neither a folder nor a list of pictures: mend the path")


def _yolo_root(root: Path, images: Path | None) -> Layout | None:
    for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        if (found := _yolo_yaml(file)) is not None:
            return found
    return None


def _voc_root(root: Path, images: Path | None) -> Layout | None:
    """A folder with Annotations and ImageSets/Main, or one that has such a folder alone."""
    inside = [root, *sorted(root.glob("VOCdevkit/VOC*")), *sorted(root.glob("VOC*"))]
    base = next((folder for folder in inside if (folder / "Annotations").is_dir()), None)
    if base is None or not any((base / "Annotations").glob("*.xml")):
        return None
    folders = _voc_folders(base, images)
    lists = {file.stem: file for file in (base / "ImageSets" / "Main").glob("*.txt") if "_" not in file.stem}
    if {"train", "val"} & set(lists):
        lists.pop("trainval", None)  # which is both of them
    if len(lists) > 1:
        lists.pop(ALL, None)
    parts = []
    for name in in_order([*lists]):
        files = tuple(base / "Annotations" / f"{line.split()[0]}.xml" for line in _lines(lists[name]))
        parts.append(Part(SPLITS.get(name, name), files, folders))
    if not parts:
        parts = [Part(ALL, tuple(sorted((base / "Annotations").glob("*.xml"))), folders)]
    return Layout("voc", base, tuple(parts), classes=_class_list(base))


def _voc_folders(base: Path, images: Path | None) -> tuple[Path, ...]:
    """JPEGImages; or, where there is no picture in the whole folder, those beside it that have some."""
    if images is not None:
        return (images,)
    inside = [folder for folder in (base / "JPEGImages", base / "images", base) if folder.is_dir()]
    found = next((folder for folder in inside if pictures_below(folder)), None)
    if found:
        return (found,)
    return tuple(sorted(filter(_has_pictures, base.parent.iterdir()))) or (base / "JPEGImages",)


def _has_pictures(folder: Path) -> bool:
    try:
        return any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
    except OSError:  # no folder, or not to be looked into
        return False


def _jsons(root: Path, images: Path | None) -> Layout | None:
    """COCO-like files; where there are none, LabelMe's."""
    found: dict[str, list[Part]] = {}
    labelme: list[Path] = []
    for file in _below(root, ".json"):
        try:
            data = read_json(file)
        except DataError:
            if _named_annotations(file):
                raise
            continue
        form = json_form(data)
        if form == "labelme":
            labelme.append(file)
        elif form is not None:
            names = (file.stem, *(folder.name for folder in file.relative_to(root).parents if folder.name))
            split = split_of(*names)
            if split == ALL and file.stem == "annotations" and len(names) > 1:
                split = names[1]
            part = Part(split, (file,), _json_folders(file, data, images), data)
            found.setdefault(form, []).append(part)
    for form in ("coco", "lvis", "mdetr"):
        if form in found:
            rest = [part for other in found if other != form for part in found[other]]
            return _choose(form, root, found[form], rest)
    if labelme:
        return Layout("labelme", root, _by_folder(root, labelme, images), classes=_class_list(root))
    return None


def _named_annotations(file: Path) -> bool:
    return "annotation" in file.name.lower() or "instances" in file.name.lower()


def _choose(form: str, root: Path, parts: Sequence[Part], rest: Sequence[Part]) -> Layout:
    """One file for each split; raw exports give way to the cleaned file beside them."""
    best: dict[str, Part] = {}
    for part in sorted(parts, key=_rank):
        best.setdefault(part.split, part)
    if len(best) > 1 and ALL in best:
        del best[ALL]
    chosen = tuple(best[name] for name in in_order([*best]))
    others = tuple(part for part in parts if part not in chosen and part.split in best)
    roboflow = any(part.files[0].name.startswith("_annotations.coco") for part in parts)
    return Layout(form, root, chosen, others, roboflow=roboflow)


def _rank(part: Part) -> tuple[int, str]:
    name = part.files[0].name
    return next((i for i, word in enumerate(PREFERRED) if word in name), len(PREFERRED)), str(part.files[0])


def _json_folders(file: Path, data: Any, images: Path | None) -> tuple[Path, ...]:
    """Where the pictures of a JSON file lie: the first folder that has one of its first pictures."""
    if images is not None:
        return (images,)
    rows = data.get("images") if isinstance(data, dict) else None
    rows = rows if isinstance(rows, list) else []
    names = [str(row.get("file_name", "")) for row in rows[:LOOKED_AT] if isinstance(row, dict)]
    split, around = split_of(file.stem, file.parent.name), file.parent.parent
    near = sorted(folder for folder in around.iterdir() if folder.is_dir() and split_of(folder.name) == split != ALL)
    for folder in (
        file.parent,
        file.parent / "images",
        *near,
        *(n / "images" for n in near),
        around / "images",
        around,
    ):
        if any(name and (folder / name).is_file() for name in names):
            return (folder,)
    return (file.parent,)


def _xmls(root: Path, images: Path | None) -> Layout | None:
    """XML files beside their pictures, as Roboflow exports VOC."""
    files = _below(root, ".xml")
    if not files:
        return None
    roboflow = any(root.glob("README.roboflow*"))
    return Layout("voc", root, _by_folder(root, files, images), classes=_class_list(root), roboflow=roboflow)


def _labels(root: Path, images: Path | None) -> Layout | None:
    """YOLO's text files without a YAML file, with a list of class names."""
    classes = _class_list(root)
    texts = [file for file in _below(root, ".txt") if file.name not in CLASS_LISTS]
    pictures = pictures_below(images or root)
    stems = {file.stem for file in texts}
    if not classes or not any(picture.stem in stems for picture in pictures):
        return None
    splits: dict[str, list[Path]] = {}
    for picture in pictures:
        names = [folder.name for folder in picture.relative_to(images or root).parents]
        splits.setdefault(split_of(*names), []).append(picture)
    return Layout("yolo", root, tuple(Part(name, tuple(splits[name])) for name in in_order([*splits])), classes=classes)


def _by_folder(root: Path, files: Iterable[Path], images: Path | None) -> tuple[Part, ...]:
    """Files below "train", "valid" and so on are those splits."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        names = [folder.name for folder in file.relative_to(root).parents]
        splits.setdefault(split_of(*names), []).append(file)
    return tuple(Part(name, tuple(splits[name]), _folders(root, images)) for name in in_order([*splits]))


def _folders(folder: Path, images: Path | None) -> tuple[Path, ...]:
    return (images or folder,)


def _class_list(root: Path) -> tuple[str, ...]:
    for name in CLASS_LISTS:
        if (root / name).is_file():
            return tuple(line for line in _lines(root / name) if line not in ("__ignore__", "_background_"))
    return ()


def _lines(file: Path) -> list[str]:
    """The lines of a list that have something on them."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{file}: is no text in UTF-8; it should be a list")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _below(root: Path, suffix: str) -> list[Path]:
    patterns = ["/".join(["*"] * depth) for depth in range(1, DEPTH + 2)]
    return [file for pattern in patterns for file in sorted(root.glob(pattern + suffix)) if file.is_file()]


def _what_is_there(path: Path) -> str:
    if path.is_file():
        return "not an annotation file of a known form"
    if any(path.rglob("_annotations.csv")) or any(path.rglob("*.tfrecord")):
        return "an export to CSV or TFRecord, which is not read: export COCO, VOC or YOLO"
    count = len(pictures_below(path))
    return f"{count} pictures, and no annotations that are recognised" if count else "no annotations and no pictures"


_SEARCHES = (_yolo_root, _voc_root, _jsons, _xmls, _labels)
