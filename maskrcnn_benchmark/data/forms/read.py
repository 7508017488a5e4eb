"""From files of any form to one model, with every problem on the way."""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn_benchmark.data.forms import json_forms, picture_forms
from maskrcnn_benchmark.data.forms.model import ALL, ERROR, DataSet, Layout, Part, Picture, Problems
from maskrcnn_benchmark.errors import DataError

Reader = Callable[[Part, DataSet, Problems], list[Picture]]
READERS: dict[str, Reader] = {
    "coco": json_forms.read_coco,
    "lvis": json_forms.read_lvis,
    "mdetr": json_forms.read_mdetr,
    "voc": picture_forms.read_voc,
    "yolo": picture_forms.read_yolo,
    "labelme": picture_forms.read_labelme,
}
SORTED = ("voc", "labelme")  # forms whose classes have no order of their own


def read(layout: Layout, problems: Problems) -> DataSet:
    """All splits of a layout.

    Args:
        layout: From :func:`maskrcnn_benchmark.data.forms.recognise.recognise`.
        problems: Gets what is wrong; what an error is about is left out of the result.
    """
    found = DataSet(layout.form, layout.root, classes=list(layout.classes))
    for part in layout.parts:
        found.splits[part.split] = _part(part, found, problems)
    names = {thing.name for picture in found.pictures for thing in picture.things}
    if layout.form in SORTED:
        found.classes += sorted(names - set(found.classes))
    return found


def usable(layout: Layout) -> DataSet:
    """A data set without errors.

    Raises:
        DataError: there are errors; names the first.
    """
    problems = Problems()
    found = read(layout, problems)
    if problems.errors:
        more = f" (and {len(problems.errors) - 1} more errors)" if len(problems.errors) > 1 else ""
        told = str(problems.errors[0]).removeprefix(f"{ERROR}: ")
        raise DataError(f"{told}{more}: `mrb data check {layout.root}` lists them all")
    return found


def _part(part: Part, found: DataSet, problems: Problems) -> list[Picture]:
    pictures = READERS[found.form](part, found, problems)
    if not pictures:
        what = "" if part.split == ALL else f" of the split {part.split!r}"
        file = part.files[0] if len(part.files) == 1 else found.root
        problems.add(ERROR, file, "", f"no picture{what} can be used", "mend the errors above, or take the split out")
    return pictures
