"""Two-way renaming between our parameter names and those of a released checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from maskrcnn_benchmark.errors import WeightsError


@dataclass(frozen=True)
class Rule:
    """Renames the beginning of a dotted name, whole segments at a time.

    Both sides are templates: text, in which ``{a}`` stands for any one segment and must occur on both sides.
    ``Rule("stem.{a}.norm", "layer0.{a}.bn")`` turns ``stem.3.norm.weight`` into ``layer0.3.bn.weight``, and back.
    """

    theirs: str
    ours: str

    @cached_property
    def inward(self) -> Callable[[str], str | None]:
        """Checkpoint name to our name; None where the rule does not apply."""
        return _renamer(self.theirs, self.ours)

    @cached_property
    def outward(self) -> Callable[[str], str | None]:
        """Our name to checkpoint name; None where the rule does not apply."""
        return _renamer(self.ours, self.theirs)


def _renamer(old: str, new: str) -> Callable[[str], str | None]:
    parts = re.split(r"\{(\w)\}", old)  # text and letters in turn
    pattern = "".join(re.escape(part) if i % 2 == 0 else f"(?P<{part}>[^.]+)" for i, part in enumerate(parts))
    begin = re.compile(pattern + r"(?=\.|$)")

    def apply(name: str) -> str | None:
        match = begin.match(name)
        return new.format(**match.groupdict()) + name[match.end() :] if match else None

    return apply


def rename(names: Iterable[str], rules: Sequence[Rule], outward: bool = False) -> dict[str, str]:
    """``{old name: new name}`` in the given order; of several rules that apply, the first counts.

    Args:
        names: Checkpoint names, or ours when ``outward``.
        rules: A table of :mod:`~maskrcnn_benchmark.checkpoint.rules`; none leaves every name as it is.
        outward: Go from our names to the checkpoint's.

    Raises:
        WeightsError: two names would become one.
    """
    apply = [rule.outward if outward else rule.inward for rule in rules]
    renamed: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name in names:
        new = next((found for one in apply if (found := one(name)) is not None), name)
        if new in owner:
            raise WeightsError(
                f"two tensors, {owner[new]} and {name}, would both be called {new}: check the rename rules"
            )
        renamed[name], owner[new] = new, name
    return renamed
