"""The report of the demonstration: one HTML file that loads nothing, with pictures, numbers and commands."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from io import BytesIO
from string import Template

from PIL import Image

from maskrcnn_benchmark.data.drawn import NEW_SHAPE
from maskrcnn_benchmark.demo.command_lines import Command
from maskrcnn_benchmark.demo.gallery import MIN_SCORE, NEW, Gallery, Shown
from maskrcnn_benchmark.demo.measure import Absent, Tuned, precision_by_kind
from maskrcnn_benchmark.demo.sets import RETAINED, SHOTS

QUALITY = 88  # of the JPEG pictures

INTRO = (
    "A detector that is asked in words looks for whatever the words name: here a FIBER so small that a CPU is enough, "
    "in drawn pictures that were not in its training. Below is what it found without having seen an example, in pairs "
    f"of colour and shape that its training never had too, and what {SHOTS} examples taught it of a shape that was new."
)


@dataclass(frozen=True)
class Findings:
    """Everything that the report tells.

    Attributes:
        count: Pictures of each test set.
        scores: See :func:`~maskrcnn_benchmark.demo.measure.score`.
        absent: Where scores go when absent things are asked for.
        tuned: The fine-tuning.
        gallery: The pictures.
        chart: The losses of the fine-tuning, as SVG.
        commands: What does each step.
        seconds: Of each step.
        versions: What it ran with.
    """

    count: int
    scores: Mapping[str, Mapping[str, float]]
    absent: Absent
    tuned: Tuned
    gallery: Gallery
    chart: str
    commands: Sequence[Command]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]


def write_page(found: Findings) -> str:
    """The whole report."""
    head = f"<h1>Detection by words</h1>\n<p>{escape(INTRO)}</p>"
    parts = [head, _tiles(found), _zero_shot(found), _expressions(found), _absent(found), _tuning(found)]
    body = "\n".join([*parts, _commands(found), _details(found)])
    page = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    return Template(page).substitute(body=body)


def number(value: float | None) -> str:
    """Three digits after the point; a dash where nothing was measured."""
    return "-" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _tiles(found: Findings) -> str:
    tuned = found.tuned
    rows = [
        (number(found.scores[RETAINED]["AP50"]), "AP50, pairs that were in training"),
        (number(found.scores["never_seen"]["AP50"]), "AP50, pairs that were not"),
        (number(found.scores["expressions"]["P@1"]), "of referring expressions right at the first box"),
        (percent(found.absent.share), "of all scores for things that are not there"),
        (" → ".join(map(number, tuned.AP50)), f"AP50 of the {NEW_SHAPE}, before and after {SHOTS} examples"),
    ]
    items = "".join(f"<li><b>{value}</b><span>{escape(text)}</span></li>" for value, text in rows)
    return f'<ul class="tiles">{items}</ul>'


def _zero_shot(found: Findings) -> str:
    names = {RETAINED: "pairs that were in training", "never_seen": "pairs that were not"}
    rows = [
        [text, *(number(found.scores[key][name]) for name in ("AP50", "AP", "AR@100"))] for key, text in names.items()
    ]
    return f"""<h2>Found by name</h2>
<p>Each picture was asked for the names below it: what is in it, and one thing that is not. Boxes that score at least
{MIN_SCORE} are shown. These are the first pictures of the test set, not the best.</p>
{_cards(found.gallery.seen)}
<h3>Pairs that training never had</h3>
<p>It knows the colours and the shapes, each from other pairs. In training there was no picture with one of these
together, and no caption with them.</p>
{_cards(found.gallery.never_seen)}
{_table(("asked in " + str(found.count) + " pictures each", "AP50", "AP", "AR"), rows)}
<p class="soft">For these numbers each picture was asked for all 81 pairs of the training, in prompts of about 20 names,
or for all nine pairs that training never had.</p>"""


def _expressions(found: Findings) -> str:
    kinds = precision_by_kind(found.scores["expressions"])
    rows = [[kind, number(value)] for kind, value in kinds.items()]
    return f"""<h2>One thing among several</h2>
<p>A referring expression is about one thing only, by what it looks like (attribute), by where it is from another thing
(relation), or by its place in a row (ordinal). Asked for are the words that name it, in their sentence; the best box is
shown.</p>
{_cards(found.gallery.expressions)}
{_table(("expressions", "right at the first box (P@1)"), rows)}
<p class="soft">Right: a generalised IoU of at least 0.5 with the box of the thing.</p>"""


def _absent(found: Findings) -> str:
    absent = found.absent
    kinds = ("names of things in the picture", "names of things that are not")
    whole = sum(absent.mass)
    rows = [
        [kind, str(boxes), f"{mass:.1f}", percent(mass / whole if whole else None)]
        for kind, boxes, mass in zip(kinds, absent.boxes, absent.mass, strict=True)
    ]
    return f"""<h2>Asked for what is not there</h2>
<p>{absent.pictures} pictures were asked for the names of all that is in them and for as many names of things that are
not, in one list. Every box counts with its score, however low, down to the config's bound.</p>
{_table(("asked for", "boxes", "sum of scores", "share"), rows)}"""


def _tuning(found: Findings) -> str:
    tuned = found.tuned
    rows = [
        [f"{NEW_SHAPE}, {key}", *map(number, values), f"{values[1] - values[0]:+.3f}"]
        for key, values in (("AP50", tuned.AP50), ("AP", tuned.AP))
    ]
    rows += [
        [f"pairs of the training, {key}", *map(number, values), f"{values[1] - values[0]:+.3f}"]
        for key, values in (("AP50", tuned.retained_AP50), ("AP", tuned.retained_AP))
    ]
    pairs = "".join(
        f'<div class="pair">{_card(before, "before")}{_card(after, "after")}</div>'
        for before, after in found.gallery.pairs
    )
    return f"""<h2>A new shape from {SHOTS} pictures</h2>
<p>No picture of the training has an {NEW_SHAPE}, in any colour, and no caption the word. These {SHOTS} pictures are all
that it was shown of it. With them it saw others of what it knew before, without an {NEW_SHAPE}, so that it does not
forget:</p>
{_cards(found.gallery.examples)}
<h3>Asked for “{NEW_SHAPE}”, before and after</h3>
<div class="pairs">{pairs}</div>
{_table(("", "before", "after", "change"), rows)}
<p class="soft">The pictures above were asked for “{NEW_SHAPE}” alone; they are the first that have one. For the
numbers, all {found.count} pictures of the set, in which most things are other shapes, were asked for all ten shapes at
once.</p>
<h3>The training</h3>
{found.chart}"""


def _commands(found: Findings) -> str:
    blocks = "".join(f"<h3>{escape(one.title)}</h3>\n<pre>{escape(one.text())}</pre>\n" for one in found.commands)
    return f"""<h2>Do it yourself</h2>
<p>Every step above is one of these commands. They run as they are, from the folder in which the demonstration ran, and
write into folders of their own.</p>
{blocks}<p>With your own pictures in place of the drawn ones, and the weights of a released model
(<code>mrb models</code> lists them), the commands are the same.</p>"""


def _details(found: Findings) -> str:
    total = sum(found.seconds.values())
    seconds = [[step, f"{value:.0f}", f"{100 * value / total:.0f} %"] for step, value in found.seconds.items()]
    versions = [[name, version] for name, version in found.versions.items()]
    return f"""<h2>How it was made</h2>
{_table(("step", "seconds", "share"), [*seconds, ["all", f"{total:.0f}", ""]])}
{_table(("with", ""), versions)}"""


def _cards(pictures: Sequence[Shown]) -> str:
    return f'<div class="pictures">{"".join(_card(shown) for shown in pictures)}</div>'


def _card(shown: Shown, title: str = "") -> str:
    words = "".join(
        f'<li{" class=new" if word.mark == NEW else ""}><i style="background:{word.colour}"></i>'
        f"{escape(word.text)}{f' <small>{escape(word.mark)}</small>' if word.mark else ''}</li>"
        for word in shown.words
    )
    verdict = f'<span class="verdict{" right" if shown.right else ""}">{escape(shown.verdict)}</span>'
    asked = f'<ul class="words">{words}</ul>' if not title else f"<b>{escape(title)}</b>"
    alt = f"{', '.join(word.text for word in shown.words)}: {shown.verdict}"
    picture = f'<img src="{data_url(shown.image)}" alt="{escape(alt)}" loading="lazy">'
    return f'<figure class="card">{picture}<figcaption>{asked}{verdict}</figcaption></figure>'


def data_url(image: Image.Image) -> str:
    """The picture itself, as an address."""
    file = BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
