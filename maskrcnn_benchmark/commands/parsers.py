"""Names and options of the sub-commands; what they do is imported when one of them runs, as it takes seconds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any

from maskrcnn_benchmark import cli
from maskrcnn_benchmark.data.forms.recognise import FORMS

Run = Callable[[argparse.Namespace], None]

GPUS = "--gpus"
IMAGES = "folder of the pictures, where they are not found beside the annotations"
MODELS_USAGE = "mrb models | mrb models NAME | mrb models get NAME [--output DIR]"


def add(commands: Any) -> None:
    """Add all sub-commands but detect, serve and doctor to those of a parser."""
    _add_eval(commands)
    _add_train(commands)
    _add_finetune(commands)
    _add_export(commands)
    _add_pseudo_boxes(commands)
    _add_label(commands)
    _add_self_label(commands)
    _add_bank(commands)
    _add_data(commands)
    _add_models(commands)


def _late(module: str, name: str) -> Run:
    """The function of that name, imported when it is called."""

    def run(args: argparse.Namespace) -> None:
        getattr(import_module(f"{__package__}.{module}"), name)(args)

    return run


def add_model_options(parser: argparse.ArgumentParser, weight_help: str) -> None:
    """``--model``, ``--config-file``, ``--weight``."""
    parser.add_argument("--model", metavar="NAME", help="one of `mrb models`: its config, and its weights in MODEL/")
    parser.add_argument("--config-file", metavar="FILE", help="config of the model (default: FIBER-B)")
    parser.add_argument("--weight", metavar="FILE", help=weight_help)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(GPUS, type=int, metavar="N", help="that many processes on this machine")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, and stop")
    parser.add_argument("--strict-config", action="store_true", help="a key that nothing reads is an error")
    parser.add_argument("--set", nargs="+", default=[], dest="opts", metavar="KEY VALUE", help="config keys and values")


def _add_eval(commands: Any) -> None:
    told = "Score a checkpoint on the data sets of task files, or of the config; see also tools/test_grounding_net.py."
    parser = commands.add_parser("eval", help="score a checkpoint on data sets", description=told)
    add_model_options(parser, "checkpoint: a path, or a name in MODEL/ (default MODEL.WEIGHT)")
    parser.add_argument("--tasks", default="", metavar="A.yaml,DIR", help="task files, folders of them, quoted globs")
    parser.add_argument("--output", metavar="DIR", help="folder for results, in place of OUTPUT_DIR")
    _add_run_options(parser)
    parser.set_defaults(run=_late("runs", "evaluate"))


def _add_train(commands: Any) -> None:
    told = "Train on DATASETS.TRAIN; run again after an interruption, it goes on; see also tools/train_net.py."
    parser = commands.add_parser("train", help="train a detector as a config says", description=told)
    add_model_options(parser, "weights to begin with: a path, or a name in MODEL/ (default MODEL.WEIGHT)")
    parser.add_argument("--task", metavar="FILE", help="task file with data sets")
    parser.add_argument("--output", metavar="DIR", help="folder for checkpoints, in place of OUTPUT_DIR")
    parser.add_argument("--no-test", action="store_true", help="do not score the final weights on DATASETS.TEST")
    cli.add_board_options(parser)
    _add_run_options(parser)
    parser.set_defaults(run=_late("runs", "train"))


def _add_finetune(commands: Any) -> None:
    told = (
        "Tune a detector on COCO, VOC, YOLO or LabelMe data: finds out the form, converts, splits, chooses prompts and "
        "settings, and tells how long it will take. Run again, it goes on where it was interrupted."
    )
    parser = commands.add_parser("finetune", help="tune a detector on your own data", description=told)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", metavar="PATH", help="a folder, or an annotation file")
    what.add_argument("--task", metavar="FILE", help="a task file, such as an earlier call wrote")
    add_model_options(parser, "weights to begin with: a path, or a name in MODEL/ (default MODEL.WEIGHT)")
    parser.add_argument("--output", metavar="DIR", help="folder for everything (default OUTPUT/finetune/NAME)")
    parser.add_argument("--images", metavar="DIR", help=IMAGES)
    parser.add_argument("--epochs", type=_count, metavar="N", help="default 12, with --shots 200")
    parser.add_argument("--shots", type=_count, metavar="K", help="train on about K pictures of each class")
    parser.add_argument("--seed", type=int, default=3, metavar="N", help="of the choice of pictures (default 3)")
    parser.add_argument(
        "--val", type=_part, default=0.2, metavar="PART", help="of the pictures, where there is no val (default 0.2)"
    )
    parser.add_argument("--batch", type=_count, metavar="N", help="pictures in a step (default 4, on a CPU 2)")
    parser.add_argument("--names", default="", help='other words for classes: "RBC=red blood cell, WBC=leucocyte"')
    parser.add_argument("--caption-prompt", metavar="FILE", help="YAML: a list of prefix, name, suffix for each class")
    parser.add_argument("--no-estimate", action="store_true", help="do not measure a step first")
    _add_run_options(parser)
    parser.set_defaults(run=_late("finetune", "finetune"))


def _add_export(commands: Any) -> None:
    told = "Write the weights of a training alone, as a .safetensors file, which holds no code and loads fast."
    parser = commands.add_parser("export", help="the weights of a checkpoint alone", description=told)
    parser.add_argument("checkpoint", metavar="FILE", help="a path, or a name in MODEL/")
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="a file, replaced where it is there")
    parser.add_argument("--ema", action="store_true", help="the averaged weights (SOLVER.MODEL_EMA)")
    parser.set_defaults(run=_late("export", "export"))


def _add_pseudo_boxes(commands: Any) -> None:
    told = (
        "Boxes from the class activation maps of a classifier, for pictures of which only the class is known: a folder "
        "with a folder for each class, or a JSON with pos_category_ids. Run again after an interruption, it goes on."
    )
    parser = commands.add_parser("pseudo-boxes", help="boxes for pictures with a class each", description=told)
    parser.add_argument("source", metavar="DIR", help="the folder, or the JSON")
    parser.add_argument("--images", metavar="DIR", help="folder of the pictures of a JSON (default: its own)")
    parser.add_argument("--classes", metavar="FILE", help="the classifier's classes in order, one a line")
    parser.add_argument(
        "--out", default="OUTPUT/pseudo_boxes", metavar="DIR", help="for the boxes (default %(default)s)"
    )
    add_classifier_options(parser, "resnet101")
    parser.set_defaults(run=_late("pseudo_boxes", "pseudo_boxes"))


def _add_label(commands: Any) -> None:
    told = (
        "Find things named in words in pictures, and write them as COCO JSON, to look through and to train on. Run "
        "again after an interruption, it goes on. Pictures that cannot be read are counted and listed."
    )
    parser = commands.add_parser("label", help="pictures to COCO JSON, by any detector", description=told)
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURES", help="files, folders or quoted patterns like 'shots/*.jpg'"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--labels", help="names of things, separated by commas (default: all classes, where it has a list)"
    )
    what.add_argument("--labels-file", metavar="FILE", help="the same: one a line, or the categories of COCO JSON")
    add_model_options(parser, "checkpoint: a path, or a name in MODEL/")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps ... (default %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], dest="opts", metavar="KEY VALUE", help="config keys and values")
    parser.add_argument("--output", default="OUTPUT/label/annotations.json", metavar="FILE", help="default %(default)s")
    parser.add_argument(
        "--min-score", type=float, default=0.3, help="leave out what scores lower (default %(default)s)"
    )
    parser.add_argument("--top", type=_count, default=100, help="at most so many a picture (default %(default)s)")
    parser.set_defaults(run=_late("label", "label"))


def _add_self_label(commands: Any) -> None:
    told = (
        "Find the best box of each name that a picture has (pos_category_ids), by phase 1 of DECOLA, at several sizes "
        "of the network's input, each with its own file. Run again after an interruption, it goes on."
    )
    parser = commands.add_parser("self-label", help="boxes for pictures that have names only", description=told)
    add_model_options(parser, "weights of phase 1: a path, or a name in MODEL/ (default MODEL.WEIGHT)")
    parser.add_argument(
        "--sizes", type=_count, nargs="+", default=(), metavar="N", help="short sides (default INPUT.MIN_SIZE_TEST)"
    )
    parser.add_argument("--output", metavar="DIR", help="folder for predictions, in place of OUTPUT_DIR")
    parser.add_argument("--join", metavar="FILE.json", help="also write annotations of all sizes, without duplicates")
    parser.add_argument(
        "--iou-thres", type=float, default=0.9, metavar="IOU", help="of duplicates (default %(default)s)"
    )
    parser.add_argument(
        "--boxes", default="released", choices=("released", "xywh"), help="how they compare (default %(default)s)"
    )
    _add_run_options(parser)
    parser.set_defaults(run=_late("self_label", "self_label"))


def _add_bank(commands: Any) -> None:
    told = (
        "Embed class names by CLIP's text encoder, for detectors with MODEL.ZEROSHOT_CLS.WEIGHT_PATH (DECOLA, Detic)."
    )
    parser = commands.add_parser("bank", help="embeddings of class names", description=told)
    parser.add_argument("names", metavar="FILE", help="names, one a line, or the categories of COCO JSON")
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="a file, replaced where it is there")
    parser.add_argument("--template", default="a {}", help="what is read, {} for the name (default %(default)r)")
    parser.add_argument(
        "--weight", default="clip-vit-b-32-openai.safetensors", metavar="FILE", help="of CLIP (default %(default)s)"
    )
    parser.add_argument("--tokenizer", default="", metavar="PATH", help="CLIP's vocabulary (default: looked for)")
    parser.add_argument(
        "--activation", default="quick_gelu", choices=("quick_gelu", "gelu"), help="of CLIP (default %(default)s)"
    )
    parser.set_defaults(run=_late("label", "bank"))


def add_classifier_options(parser: argparse.ArgumentParser, model: str, weight: str = "") -> None:
    """Which classifier makes the maps, and how."""
    parser.add_argument(
        "--model", default=model, metavar="NAME", help="of torchvision, or timm/NAME of timm (default %(default)s)"
    )
    told = weight or "torchvision's file of IMAGENET1K_V1"
    parser.add_argument(
        "--weight", default=weight, metavar="FILE", help=f"a path, or a name in MODEL/ (default {told})"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps ... (default %(default)s)")
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "bfloat16"), help="of the network (default %(default)s)"
    )
    parser.add_argument(
        "--batch", type=_count, default=0, metavar="N", help="pictures at a time (default 2 on a CPU, 32)"
    )
    parser.add_argument("--workers", type=int, default=-1, metavar="N", help="processes that read pictures")
    told = "short sides at which the network sees a picture, pixels (default 288 576)"
    parser.add_argument("--scales", type=_count, nargs="+", default=(288, 576), metavar="N", help=told)
    parser.add_argument(
        "--pictures", type=int, default=0, metavar="N", help="draw maps and boxes of so many on a sheet"
    )
    parser.add_argument("--coco", action="store_true", help="write COCO JSON too (always for a folder)")


def _add_data(commands: Any) -> None:
    parser = commands.add_parser("data", help="check, convert or draw from detection data")
    below = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    told = (
        "List every problem of COCO, LVIS, MDETR, VOC, YOLO or LabelMe data with file, field and remedy, count the "
        "classes and draw pictures with boxes. Exit code 1 when there are errors: what training or evaluation stops at."
    )
    check = below.add_parser("check", help="list every problem, count classes, draw a sheet", description=told)
    check.add_argument("data", metavar="PATH", help="a folder, or an annotation file")
    check.add_argument("--images", metavar="DIR", help=IMAGES)
    check.add_argument("--output", metavar="DIR", default="OUTPUT/check", help="for the results (default %(default)s)")
    check.add_argument("--pictures", type=int, default=24, metavar="N", help="on the sheet, 0: no sheet (default 24)")
    check.add_argument("--fast", action="store_true", help="do not read the pictures, only see that they are there")
    check.add_argument("--strict", action="store_true", help="warnings count as errors")
    check.set_defaults(run=_late("data", "check"))
    told = "Write COCO, LVIS, VOC, YOLO or LabelMe data in another form; tells what that form cannot hold."
    convert = below.add_parser("convert", help="write data in another form", description=told)
    convert.add_argument("data", metavar="SRC", help="a folder, or an annotation file")
    convert.add_argument("folder", metavar="DST", help="a new folder")
    convert.add_argument("--to", required=True, choices=FORMS, help="the form")
    convert.add_argument("--images", metavar="DIR", help=IMAGES)
    convert.add_argument("--link", action="store_true", help="link the pictures instead of copying them")
    convert.set_defaults(run=_late("data", "convert"))
    told = (
        "Draw some pictures of COCO, LVIS, VOC, YOLO or LabelMe data, and write COCO JSON: N pictures of each class, "
        "or a part of all. Equal seeds give equal pictures; a smaller part is in a larger one."
    )
    split = below.add_parser("split", help="draw a few pictures for training with little data", description=told)
    split.add_argument("data", metavar="SRC", help="a folder, or an annotation file")
    split.add_argument("file", metavar="OUT.json", help="a new file")
    share = split.add_mutually_exclusive_group(required=True)
    share.add_argument("--per-class", type=_count, metavar="N", help="pictures of each class")
    share.add_argument("--fraction", type=_part, metavar="PART", help="of the pictures with boxes, such as 0.1")
    split.add_argument("--seed", type=int, default=1, metavar="N", help="of the draw (default %(default)s)")
    split.add_argument("--split", nargs="+", metavar="NAME", help="which splits, where there are several")
    split.add_argument("--images", metavar="DIR", help=IMAGES)
    split.set_defaults(run=_late("data", "split"))
    told = (
        "Write NAME_norare.json, LVIS without the boxes of rare classes, and NAME_cat_info.json, in how many pictures "
        "each class is: what DECOLA and Detic are trained with."
    )
    lvis = below.add_parser("lvis", help="LVIS without rare classes, and counts of classes", description=told)
    lvis.add_argument("data", metavar="NAME.json", help="annotations of LVIS v1, such as lvis_v1_train.json")
    lvis.add_argument("--output", metavar="DIR", help="folder of the new files (default: that of NAME.json)")
    lvis.set_defaults(run=_late("data", "lvis"))


def _add_models(commands: Any) -> None:
    told = "List released checkpoints, tell all about one, or download one; nothing is downloaded unless asked for."
    parser = commands.add_parser("models", help="released checkpoints", description=told, usage=MODELS_USAGE)
    parser.add_argument("words", nargs="*", metavar="[get] NAME", help="one of them; with get, it is downloaded")
    parser.add_argument("--output", metavar="DIR", help="where to, in place of $MODEL or MODEL/")
    parser.set_defaults(run=_late("models", "models"))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _part(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {number:g}")
    return number
