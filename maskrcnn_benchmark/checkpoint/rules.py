"""What is known about released checkpoints: names that may be absent, renaming tables, how to recognise a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from maskrcnn_benchmark.checkpoint.names import Rule

RECOMPUTED = ("*anchor_generator.cell_anchors.*", "*.position_ids", "*.relative_position_index")
"""Buffers that follow from the config. A file may lack them; one that holds them must hold our values."""

FIBER: Sequence[Rule] = ()  # our names are the released ones
GLIP: Sequence[Rule] = ()

FASTER_RCNN = tuple(Rule(f"backbone.body.stem.{part}", f"backbone.body.{part}") for part in ("conv1", "bn1"))
"""maskrcnn-benchmark ResNets (DAP) keep the first convolution apart; ours are named as in torchvision."""


def detectron2_resnet(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A detectron2 ResNet below the prefix ``theirs``, as a torchvision one below ``ours``."""
    rules = [Rule(f"{theirs}.stem.conv1.norm", f"{ours}.bn1"), Rule(f"{theirs}.stem.conv1", f"{ours}.conv1")]
    for stage in range(1, 5):
        old, new = f"{theirs}.res{stage + 1}", f"{ours}.layer{stage}"
        rules += [
            Rule(f"{old}.{{a}}.shortcut.norm", f"{new}.{{a}}.downsample.1"),
            Rule(f"{old}.{{a}}.shortcut", f"{new}.{{a}}.downsample.0"),
            *(Rule(f"{old}.{{a}}.conv{i}.norm", f"{new}.{{a}}.bn{i}") for i in (1, 2, 3)),
            Rule(old, new),
        ]
    return tuple(rules)


CENTERNET2 = (
    *(
        rule
        for level in (3, 4, 5)
        for rule in (
            Rule(f"backbone.fpn_lateral{level}", f"backbone.fpn.fpn_inner{level - 1}"),
            Rule(f"backbone.fpn_output{level}", f"backbone.fpn.fpn_layer{level - 1}"),
        )
    ),
    Rule("backbone.top_block", "backbone.fpn.top_blocks"),
    Rule("backbone.bottom_up", "backbone.body"),
)
"""CenterNet2 in detectron2 (Detic, DECOLA)."""

DETR = detectron2_resnet("detr.backbone.0.backbone", "detr.backbone.0.backbone")
"""Deformable DETR and DECOLA with detectron2's ResNet; with other backbones our names are the released ones."""

RELEASED = (*FASTER_RCNN, *CENTERNET2, *DETR)
"""The tables of all detectors; a name that has to be changed is in one of them alone."""

COPIES = tuple(Rule(f"detr.transformer.decoder.{part}", f"detr.{part}") for part in ("class_embed", "bbox_embed"))
"""Names under which files of Deformable DETR and DECOLA hold tensors a second time: the shorter name counts."""

UNUSED: Mapping[str, str] = {
    "*.num_batches_tracked": "counters of normalisation layers, which have no part in what frozen ones do",
    "*fed_loss_weight": "how often classes are drawn in training, which the config says",
    "*freq_weight": "how often classes are drawn in training, which the config says",
    "pseudo_detr.*": "the teacher of an on-line phase 2 of DECOLA",
}
"""What a file may hold for nothing, and what it is."""

TABLES = ("*.zs_weight", "*.freq_weight")
"""Embeddings of class names, and how often classes are drawn in training: a model that was built with some keeps them.
Those of the file are then in :attr:`Report.replaced <maskrcnn_benchmark.checkpoint.io.Report>`, to compare with."""


_SIGNS = (  # the first one that any name matches (from its beginning) tells the kind of model
    (r"fusion_backbone\.", "FIBER"),
    (r"rpn\.head\.dyhead_tower\.", "GLIP"),
    (r"(text_transformer|vit_model)\.", "a coarse-grained FIBER"),
    (r"bbox_attention\.", "MDETR with its PhraseCut mask head"),
    (r"transformer\.text_encoder\.", "MDETR"),
    (r"detr\.transformer\.", "DECOLA or Deformable DETR"),
    (r"backbone\.bottom_up\.|proposal_generator\.centernet_head\.", "CenterNet2"),
    (r"roi_heads\.box\.", "Faster R-CNN"),
    (r"rpn\.head\.cls_tower\.", "RetinaNet"),
    (r"(patch_embed\.proj|layers\.0\.blocks)\.", "a Swin trained on ImageNet, a backbone without its detector"),
    (r"layer1\.0\.conv1\.", "a ResNet trained on ImageNet, a backbone without its detector"),
    (r"(roberta|bert|distilbert)\.|embeddings\.word_embeddings\.", "a BERT or RoBERTa text encoder alone"),
)
_FIBER_WIDTHS = {128: "FIBER-B"}
_GLIP_WIDTHS = {96: "GLIP-T", 192: "GLIP-L"}


def describe(shapes: Mapping[str, Sequence[int]]) -> str:
    """The kind of model that a list of tensors looks like: "GLIP-T (with deep fusion)"; "an unknown model" otherwise.

    Args:
        shapes: Name -> shape, without the ``module.`` of a wrapped model.
    """
    kind = next((kind for sign, kind in _SIGNS if any(re.match(sign, name) for name in shapes)), "an unknown model")
    if kind not in ("FIBER", "GLIP"):
        return kind
    stem = next((shape for name, shape in shapes.items() if name.endswith("body.patch_embed.proj.weight")), (0,))
    title = (_FIBER_WIDTHS if kind == "FIBER" else _GLIP_WIDTHS).get(stem[0], f"a {kind} of width {stem[0]}")
    return f"{title} ({', '.join(_features(kind, shapes))})"


def _features(kind: str, names: Mapping[str, object]) -> list[str]:
    def has(part: str) -> bool:
        return any(part in name for name in names)

    if kind == "GLIP":
        return ["with deep fusion" if has(".b_attn.") else "without deep fusion"]
    features = ["fusion v3" if has(".norm_i2t_") else "fusion v2"]
    return features + (["tunable linear layer"] if has("tunable_linear") else [])
