"""The commands that do what the demonstration does, to be run by those who read its report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskrcnn_benchmark.demo.gallery import Gallery, Shown
from maskrcnn_benchmark.demo.measure import ZERO_SHOT, Subject, Tuned
from maskrcnn_benchmark.demo.sets import SHOTS, TUNED, DrawnSet

LINE = 92  # letters of a line, more or less


@dataclass(frozen=True)
class Command:
    """Something a reader may run."""

    title: str
    words: tuple[str, ...]

    def text(self) -> str:
        """For a shell, in lines of a readable length; an option or key stays with its value."""
        lines: list[str] = []
        for group in self._groups():
            if lines and len(lines[-1]) + len(group) < LINE:
                lines[-1] += f" {group}"
            else:
                lines.append(group)
        return " \\\n    ".join(lines)

    def _groups(self) -> list[str]:
        groups: list[list[str]] = [[]]
        for word in self.words:
            if groups[-1] and (word.startswith("-") or word.isupper()):
                groups.append([])
            groups[-1].append(word)
        return [shlex.join(group) for group in groups]


def command_lines(
    subject: Subject, sets: Sequence[DrawnSet], tasks: Mapping[str, Path], folder: Path, tuned: Tuned, gallery: Gallery
) -> list[Command]:
    """Every step, in order; what they write goes into ``folder``, each into a folder of its own."""
    files = ",".join(str(tasks[name]) for name in ZERO_SHOT)
    config = ("--config-file", subject.config)
    score = ("python", "tools/test_grounding_net.py", *config, "--weight", subject.weight, "--task_config", files)
    tune = ("python", "tools/finetune.py", *config, "--ft-tasks", str(tasks[TUNED]))
    tune_opts = (*subject.opts, "MODEL.WEIGHT", subject.weight, "OUTPUT_DIR", str(folder / "tuned"))
    first, phrase, (_, after) = gallery.seen[0], gallery.expressions[0], gallery.pairs[0]
    named = ("--labels", ", ".join(word.text for word in first.words))
    said = ("--caption", phrase.words[0].text, "--phrases", phrase.phrase)
    return [
        *(Command(f"Draw the set “{one.name}”", tuple(one.command(folder / "data"))) for one in sets),
        Command("Find things by name in a picture", (*_detect(subject, first), *named, *_to(subject, folder, "named"))),
        Command("Find what a sentence is about", (*_detect(subject, phrase), *said, *_to(subject, folder, "phrase"))),
        Command("Score it on the three sets", (*score, *subject.opts, "OUTPUT_DIR", str(folder / "scores"))),
        Command(f"Learn from {SHOTS} pictures, score before and after", (*tune, *tune_opts)),
        Command(
            "Find the new shape",
            (
                *_detect(Subject(subject.config, str(tuned.weight)), after),
                *("--labels", after.words[0].text),
                *_to(subject, folder, "new"),
            ),
        ),
    ]


def _detect(subject: Subject, shown: Shown) -> tuple[str, ...]:
    return ("mrb", "detect", str(shown.file), "--config-file", subject.config, "--weight", subject.weight)


def _to(subject: Subject, folder: Path, name: str) -> tuple[str, ...]:
    return ("--output", str(folder / name), *(("--set", *subject.opts) if subject.opts else ()))
