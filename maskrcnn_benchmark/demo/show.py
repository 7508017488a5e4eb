"""The demonstration: drawn scenes through the same tools that evaluate a released checkpoint."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import torch
import yaml
from PIL import Image

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.checkpoint.io import save_weights
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import CLASSES, World, write_coco
from maskrcnn_benchmark.demo.draw import draw
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.build import build_detector
from maskrcnn_benchmark.structures import Detections, ImageMeta
from maskrcnn_benchmark.text.train_tokenizer import train_tokenizer
from maskrcnn_benchmark.zero_shot import zero_shot

CONFIG = "configs/demo/fiber_narrow.yaml"
MARK = ".demo"  # file that says that a folder may be emptied
SHOWN = 5  # boxes drawn in a picture
RANDOM = (
    "The weights are random: the boxes mean nothing. What runs is the whole way from words and pictures to a score."
)
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Detection by words: demonstration</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}
figure{{display:inline-block;width:31%;margin:.5%;vertical-align:top}}img{{width:100%}}
table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem;border-bottom:1px solid #ccc;text-align:right}}
.note{{background:#fff3cd;padding:.6rem 1rem}}</style>
<h1>Detection by words</h1><p class="note">{note}</p>
<p>Prompt: <b>{prompt}</b></p><h2>Drawn, with the right answers</h2>{truth}<h2>Found by the network</h2>{found}
<h2>Scores</h2><table><tr>{names}</tr><tr>{values}</tr></table><p>Evaluated with</p><pre>{command}</pre></html>
"""


def show(folder: Path, pictures: int, seed: int) -> Path:
    """Draw scenes, evaluate a narrow FIBER with seeded random weights on them, write a page; returns the page.

    What an earlier call left in ``folder`` is made anew.

    Raises:
        ConfigError: the folder holds other files.
    """
    _empty(folder)
    annotations = write_coco(folder / "scenes", World(seed, size=(240, 320), classes=CLASSES), pictures).annotations
    truth = json.loads(annotations.read_text(encoding="utf-8"))
    names = [category["name"] for category in truth["categories"]]
    opts = _settings(folder, names)
    weights = _random_weights(folder / "fiber_narrow_random.pth", opts, seed)
    task = _task_file(folder, annotations)
    print(f"NOTE: {RANDOM}")
    numbers = zero_shot(CONFIG, str(weights), [str(task)], opts)["drawn"]
    results = folder / "eval" / weights.stem / "inference" / "drawn"
    found = json.loads((results / "bbox.json").read_text(encoding="utf-8"))
    shown = {
        "truth": _draw_all(truth, truth["annotations"], annotations.parent, folder / "truth"),
        "found": _draw_all(truth, found, annotations.parent, folder / "found"),
    }
    command = [
        "python tools/test_grounding_net.py",
        f"--config-file {CONFIG}",
        f"--weight {weights}",
        f"--task_config {task}",
    ]
    command += [
        f"{key} {value!r}" if " " in value else f"{key} {value}"
        for key, value in zip(opts[::2], opts[1::2], strict=True)
    ]
    page = folder / "index.html"
    page.write_text(_page(shown, ". ".join(names), numbers, " \\\n    ".join(command)), encoding="utf-8")
    return page


def _empty(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise ConfigError(f"--output {str(folder)!r} holds files of another kind: choose another folder")
    shutil.rmtree(folder, ignore_errors=True)
    cli.output_folder(str(folder), "--output")
    (folder / MARK).touch()


def _settings(folder: Path, names: list[str]) -> list[str]:
    """Config keys of the demonstration: its own tokenizer and folder, small pictures, no score too low to be shown."""
    tokenizer = train_tokenizer([f"{name}. " for name in names] * 2, folder / "tokenizer")
    vocab = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    keys = {
        "MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE": str(tokenizer),
        "MODEL.LANGUAGE_BACKBONE.VOCAB_SIZE": str(vocab),
        "MODEL.ATSS.INFERENCE_TH": "0.0",
        "INPUT.MIN_SIZE_TEST": "240",
        "INPUT.MAX_SIZE_TEST": "400",
        "TEST.EVAL_TASK": "detection",
        "TEST.IMS_PER_BATCH": "2",
        "DATALOADER.NUM_WORKERS": "0",
        "OUTPUT_DIR": str(folder),
    }
    return [part for pair in keys.items() for part in pair]


def _random_weights(path: Path, opts: list[str], seed: int) -> Path:
    torch.manual_seed(seed)
    save_weights(build_detector(load_cfg(CONFIG, opts=opts)).state_dict(), path)
    return path


def _task_file(folder: Path, annotations: Path) -> Path:
    entry = {"ann_file": str(annotations), "img_dir": str(annotations.parent)}
    path = folder / "drawn.yaml"
    path.write_text(yaml.safe_dump({"DATASETS": {"REGISTER": {"drawn": entry}, "TEST": ["drawn"]}}), encoding="utf-8")
    return path


def _draw_all(data: dict, rows: list[dict], scenes: Path, folder: Path) -> list[Path]:
    """Every picture with its rows (annotations, or results with scores) drawn on it."""
    folder.mkdir(parents=True)
    names = {category["id"]: category["name"] for category in data["categories"]}
    paths = []
    for image in data["images"]:
        mine = [row for row in rows if row["image_id"] == image["id"]]
        boxes = torch.tensor([row["bbox"] for row in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        size = (image["height"], image["width"])
        detections = Detections(
            boxes,
            torch.tensor([row.get("score", 1.0) for row in mine]),
            torch.tensor([row["category_id"] for row in mine], dtype=torch.int64),
            ImageMeta(image["id"], size, size, image["file_name"]),
            names=names,
        )
        path = folder / f"{Path(image['file_name']).stem}.png"
        draw(Image.open(scenes / image["file_name"]), detections, top=None if folder.name == "truth" else SHOWN).save(
            path
        )
        paths.append(path)
    return paths


def _page(shown: dict[str, list[Path]], prompt: str, numbers: dict[str, float], command: str) -> str:
    figures = {
        kind: "".join(f'<figure><img src="{kind}/{path.name}" alt="{kind} {path.stem}"></figure>' for path in paths)
        for kind, paths in shown.items()
    }
    return PAGE.format(
        note=html.escape(RANDOM),
        prompt=html.escape(prompt),
        names="".join(f"<th>{html.escape(name)}</th>" for name in numbers),
        values="".join(f"<td>{value:.3f}</td>" for value in numbers.values()),
        command=html.escape(command),
        **figures,
    )
