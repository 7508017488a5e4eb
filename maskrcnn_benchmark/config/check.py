"""How values must fit together. Each rule says what is wrong; all of them are told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskrcnn_benchmark.config.node import Cfg

CHOICES: dict[str, tuple[str | None, ...]] = {
    "DATALOADER.SAMPLER": ("shared", "chunks", "repeat_factor", "multi_dataset"),
    "INPUT.AUG": ("", "DETR", "ResizeShortestEdge", "EfficientDetResizeCrop"),
    "INPUT.FORMAT": ("", "RGB"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "DATASETS.FLICKR_GT_TYPE": ("separate", "merged"),
    "MODEL.BACKBONE.FUSION_VERSION": ("v1", "v2", "v3"),
    "MODEL.DECOLA.SELF_ATTN_GROUPING": ("released", "per_prompt"),
    "MODEL.DECOLA.SELF_LABEL.SELECT": ("max-score", "max-size"),
    "MODEL.IMAGE_LABEL.LOSS": ("", "max_size", "max_score", "first", "min_loss", "image", "wsddn"),
    "MODEL.ZEROSHOT_CLS.NORM_OVER": ("queries", "channels"),
    "MODEL.DYHEAD.FUSE_CONFIG.TYPE": ("", "NONE", "MHA-B"),
    "MODEL.DYHEAD.FUSE_CONFIG.SHALLOW_ANCHORS": ("positive", "reference"),
    "MODEL.DYHEAD.SCORE_AGG": ("MEAN", "MAX", "POWER", "ONEHOT"),
    "MODEL.MDETR.POS_EMBED": ("sine", "learned"),
    "MODEL.SWINT.VERSION": ("v1", "fusion"),
    "SOLVER.AMP_DTYPE": ("auto", "bf16", "fp16"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "value"),
    "SOLVER.MDETR_SCHEDULE": ("", "step", "multistep", "linear_with_warmup", "all_linear_with_warmup"),
    "SOLVER.ON_BAD_LOSS": ("stop", "skip", "rollback"),
    "SOLVER.OPTIMIZER": ("SGD", "ADAMW"),
    "SOLVER.TUNING_HIGHLEVEL_OVERRIDE": (
        None,
        "full",
        "linear_prob",
        *(f"language_prompt_v{i}" for i in range(1, 5)),
    ),
    "TEST.EVAL_ENGINE": ("auto", "hotcoco", "faster", "pycocotools"),
    "TEST.EVAL_TASK": ("", "detection", "grounding"),
    "TEST.ON_BAD_IMAGE": ("stop", "skip"),
}
"""Keys whose values are a closed list. Names of parts (``CONV_BODY``, ...) are not here: their registries know them."""

RANGES: dict[str, tuple[float, float]] = {
    **{f"INPUT.{size}": (1, float("inf")) for size in ("MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST")},
    "DATALOADER.NUM_WORKERS": (0, float("inf")),
    "DATALOADER.SIZE_DIVISIBILITY": (0, float("inf")),
    "AUGMENT.FLIP_PROB_TRAIN": (0, 1),
    "AUGMENT.VERTICAL_FLIP_PROB_TRAIN": (0, 1),
    "AUGMENT.CROP_PROB_TRAIN": (0, 1),
    **{f"AUGMENT.{part}": (0, float("inf")) for part in ("BRIGHTNESS", "CONTRAST", "SATURATION")},
    "AUGMENT.HUE": (0, 0.5),
    "MODEL.ATSS.INFERENCE_TH": (0, 1),
    "MODEL.ATSS.NMS_TH": (0, 1),
    "MODEL.ATSS.PRE_NMS_TOP_N": (1, float("inf")),
    "MODEL.ATSS.DETECTIONS_PER_IMG": (1, float("inf")),
    "MODEL.DYHEAD.NUM_CLASSES": (2, float("inf")),
    "MODEL.DYHEAD.NUM_CONVS": (1, float("inf")),
    "MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN": (3, float("inf")),
    "MODEL.SWINT.DROP_PATH_RATE": (0, 1),
    "SOLVER.ACCUMULATION": (1, float("inf")),
    "SOLVER.CHECKPOINTS_KEPT": (0, float("inf")),
    "SOLVER.GAMMA": (0, 1),
    "SOLVER.MDETR_LR_DROP": (1, float("inf")),
    "SOLVER.WARMUP_FRACTION": (0, 1),
    "SOLVER.IMS_PER_BATCH": (1, float("inf")),
    "SOLVER.LOG_PERIOD": (1, float("inf")),
    "SOLVER.PICTURES_PERIOD": (0, float("inf")),
    "SOLVER.WARMUP_ITERS": (0, float("inf")),
    "SOLVER.MODEL_EMA": (0, 1),
    "SOLVER.MAX_EPOCH": (0, float("inf")),
    "SOLVER.CHECKPOINT_EPOCH": (0, float("inf")),
    "SOLVER.TEST_PERIOD": (0, float("inf")),
    "TEST.EVAL_EPOCH_PERIOD": (0, float("inf")),
    "TEST.IMS_PER_BATCH": (1, float("inf")),
}

TOKENIZERS = {"bert": "bert-base-uncased", "roberta": "roberta-base"}
"""The tokenizer of a family of text encoders."""


def problems(cfg: Cfg, world_size: int = 1) -> list[str]:
    """What is wrong with a config, a line for each problem with the key, its value and who set it.

    Args:
        cfg: A config, frozen or not.
        world_size: Processes that share a batch.
    """
    return [*(text for rule in RULES for text in rule(cfg)), *_batches(cfg, world_size)]


def _told(cfg: Cfg, *keys: str) -> str:
    """``KEY value (source)`` of each key."""
    return " and ".join(f"{key} {cfg.peek(key)!r} ({cfg.source(key)})" for key in keys)


def _choices(cfg: Cfg) -> Iterator[str]:
    for key, allowed in CHOICES.items():
        if cfg.peek(key) not in allowed:
            yield f"{_told(cfg, key)} is not one of {', '.join(map(repr, allowed))}"


def _ranges(cfg: Cfg) -> Iterator[str]:
    for key, (low, high) in RANGES.items():
        if not low <= cfg.peek(key) <= high:
            limits = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
            yield f"{_told(cfg, key)} must be {limits}"


def _sizes(cfg: Cfg) -> Iterator[str]:
    for split in ("TRAIN", "TEST"):
        low, high = f"INPUT.MIN_SIZE_{split}", f"INPUT.MAX_SIZE_{split}"
        sides = cfg.peek(low) if isinstance(cfg.peek(low), tuple) else (cfg.peek(low),)
        if min(sides) < 1:
            yield f"{_told(cfg, low)} must be at least 1"
        if max(sides) > cfg.peek(high):
            yield f"{_told(cfg, low, high)}: the short side is longer than the long side"
    for key in ("INPUT.PIXEL_MEAN", "INPUT.TEST_PIXEL_MEAN", "INPUT.PIXEL_STD"):
        if len(cfg.peek(key)) != 3 and not (key == "INPUT.TEST_PIXEL_MEAN" and not cfg.peek(key)):
            yield f"{_told(cfg, key)} must have 3 values, one per colour"
    if any(value <= 0 for value in cfg.peek("INPUT.PIXEL_STD")):
        yield f"{_told(cfg, 'INPUT.PIXEL_STD')} must be above 0"


def _chunks(cfg: Cfg) -> Iterator[str]:
    for key in ("TEST.CHUNKED_EVALUATION", "TEST.MDETR_STYLE_AGGREGATE_CLASS_NUM"):
        if cfg.peek(key) < 1 and cfg.peek(key) != -1:
            yield f"{_told(cfg, key)} must be -1 (off) or at least 1"


def _register(cfg: Cfg) -> Iterator[str]:
    for name, entry in cfg.peek("DATASETS.REGISTER").items():
        for field in ("img_dir", "ann_file"):
            if not isinstance(entry.get(field, ""), str):
                key = f"DATASETS.REGISTER.{name}"
                yield f"{key}.{field} {entry[field]!r} ({cfg.source(key)}) must be a path"


def _swin(cfg: Cfg) -> Iterator[str]:
    if not cfg.peek("MODEL.BACKBONE.CONV_BODY").startswith("SWINT"):
        return
    keys = [f"MODEL.SWINT.{name}" for name in ("DEPTHS", "NUM_HEADS", "OUT_CHANNELS")]
    for key in keys:
        if len(cfg.peek(key)) != 4:
            yield f"{_told(cfg, key)} must have 4 values, one per stage"
            return
    width = cfg.peek("MODEL.SWINT.EMBED_DIM")
    widths = tuple(width * 2**stage for stage in range(4))
    given = cfg.MODEL.SWINT.OUT_CHANNELS  # not peeked at: this is its only reader, so it counts as read
    if given != widths:
        yield f"{_told(cfg, keys[2], 'MODEL.SWINT.EMBED_DIM')}: the channels must be {widths}"
    elif any(heads < 1 or channels % heads for channels, heads in zip(widths, cfg.peek(keys[1]), strict=True)):
        yield f"{_told(cfg, keys[1])} must divide the channels {widths}"


def _text(cfg: Cfg) -> Iterator[str]:
    model, tokenizer = "MODEL.LANGUAGE_BACKBONE.MODEL_TYPE", "MODEL.LANGUAGE_BACKBONE.TOKENIZER_TYPE"
    wanted = TOKENIZERS.get(cfg.peek(model).split("-")[0])
    if wanted and cfg.peek(tokenizer) in TOKENIZERS.values() and cfg.peek(tokenizer) != wanted:
        yield f"{_told(cfg, tokenizer, model)} do not go together: this encoder reads tokens of {wanted}"
    fused_text = "fused" in cfg.peek(model)
    if fused_text != (cfg.peek("MODEL.SWINT.VERSION") == "fusion"):
        yield f"{_told(cfg, 'MODEL.SWINT.VERSION', model)}: a fused backbone needs a fused encoder, and only it does"
    elif fused_text and cfg.peek("MODEL.BACKBONE.FUSION_VERSION") == "v1":
        yield f"{_told(cfg, 'MODEL.BACKBONE.FUSION_VERSION')}: no released network has it, use v2 or v3"
    heads, width = "MODEL.LANGUAGE_BACKBONE.NUM_HEADS", "MODEL.LANGUAGE_BACKBONE.LANG_DIM"
    if cfg.peek(heads) and cfg.peek(width) % cfg.peek(heads):
        yield f"{_told(cfg, heads)} must divide {_told(cfg, width)}"


def _head(cfg: Cfg) -> Iterator[str]:
    if cfg.peek("MODEL.RPN_ARCHITECTURE") != "VLDYHEAD":
        return
    sizes, strides = "MODEL.RPN.ANCHOR_SIZES", "MODEL.RPN.ANCHOR_STRIDE"
    if len(cfg.peek(sizes)) != len(cfg.peek(strides)):
        yield f"{_told(cfg, sizes, strides)} must have one value per level each"
    channels, groups = "MODEL.DYHEAD.CHANNELS", "MODEL.GROUP_NORM.NUM_GROUPS"
    if cfg.peek(groups) < 1 or cfg.peek(channels) % cfg.peek(groups):
        yield f"{_told(cfg, groups)} must divide {_told(cfg, channels)}"


def _schedule(cfg: Cfg) -> Iterator[str]:
    steps = cfg.peek("SOLVER.STEPS")
    told = _told(cfg, "SOLVER.STEPS")
    if any(step <= 0 for step in steps) or list(steps) != sorted(steps):
        yield f"{told} must grow, from above 0"
    elif any(step < 1 for step in steps) and any(step >= 1 for step in steps):
        yield f"{told} mixes fractions of the training with iterations: write one or the other"
    elif any(step >= 1 and step != int(step) for step in steps):
        yield f"{told} must be whole iterations, or fractions below 1"
    drops = cfg.peek("SOLVER.STEPS_EPOCH")
    if any(epoch <= 0 for epoch in drops) or list(drops) != sorted(drops):
        yield f"{_told(cfg, 'SOLVER.STEPS_EPOCH')} must grow, from above 0"
    for key in ("SOLVER.STEPS_EPOCH", "SOLVER.CHECKPOINT_EPOCH"):
        if cfg.peek(key) and not cfg.peek("SOLVER.MAX_EPOCH"):
            yield f"{_told(cfg, key)} counts epochs: set SOLVER.MAX_EPOCH too"
    if cfg.peek("SOLVER.USE_COSINE") and cfg.peek("SOLVER.USE_AUTOSTEP"):
        yield f"{_told(cfg, 'SOLVER.USE_COSINE', 'SOLVER.USE_AUTOSTEP')} exclude each other: leave one out"
    patience = "SOLVER.AUTO_TERMINATE_PATIENCE"
    if cfg.peek(patience) < 1 and cfg.peek(patience) != -1:
        yield f"{_told(cfg, patience)} must be -1 (off) or at least 1"
    if len(cfg.peek("DATASETS.CONTROL_PROB")) not in (0, 4):
        yield f"{_told(cfg, 'DATASETS.CONTROL_PROB')} must have 4 values"


def _batches(cfg: Cfg, world_size: int) -> Iterator[str]:
    for key in ("SOLVER.IMS_PER_BATCH", "TEST.IMS_PER_BATCH"):
        if cfg.peek(key) % world_size:
            yield f"{_told(cfg, key)} must be a multiple of the {world_size} processes that share a batch"


RULES: tuple[Callable[[Cfg], Iterator[str]], ...] = (
    _choices,
    _ranges,
    _sizes,
    _chunks,
    _register,
    _swin,
    _text,
    _head,
    _schedule,
)
