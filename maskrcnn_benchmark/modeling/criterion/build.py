"""Losses from a config."""

from __future__ import annotations

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.modeling.criterion.grounding import GroundingCriterion
from maskrcnn_benchmark.modeling.criterion.shallow import ShallowSampling

SWITCHES = {  # losses that a config may have, and their keys in MODEL.DYHEAD.FUSE_CONFIG: switch, weight
    "loss_cls": ("USE_CLASSIFICATION_LOSS", None),
    "loss_token": ("USE_TOKEN_LOSS", "TOKEN_LOSS_WEIGHT"),
    "loss_contrastive_align": ("USE_CONTRASTIVE_ALIGN_LOSS", "CONTRASTIVE_ALIGN_LOSS_WEIGHT"),
    "loss_dot_product_token": ("USE_DOT_PRODUCT_TOKEN_LOSS", "DOT_PRODUCT_TOKEN_LOSS_WEIGHT"),
    "mlm_loss": ("MLM_LOSS", "MLM_LOSS_COEF"),
    "loss_shallow_contrastive": ("USE_SHALLOW_CONTRASTIVE_LOSS", "SHALLOW_CONTRASTIVE_LOSS_WEIGHT"),
}


def loss_weights(cfg: Cfg) -> dict[str, float]:
    """Weights of the losses that a grounding detector is trained with."""
    fuse = cfg.MODEL.DYHEAD.FUSE_CONFIG
    weights = {"loss_reg": cfg.MODEL.ATSS.REG_LOSS_WEIGHT, "loss_centerness": 1.0}
    for name, (switch, weight) in SWITCHES.items():
        if getattr(fuse, switch):
            weights[name] = getattr(fuse, weight) if weight else 1.0
    return weights


def build_criterion(cfg: Cfg) -> GroundingCriterion:
    """The losses of a grounding detector."""
    dyhead, language = cfg.MODEL.DYHEAD, cfg.MODEL.LANGUAGE_BACKBONE
    fuse, weights = dyhead.FUSE_CONFIG, loss_weights(cfg)
    options: dict[str, object] = {}
    if "loss_shallow_contrastive" in weights:
        options = {
            "shallow": ShallowSampling(
                most=fuse.SHALLOW_MAX_POSITIVE_ANCHORS,
                padding="none" if fuse.USE_SHALLOW_ZERO_PADS else "negatives",
                anchors=fuse.SHALLOW_ANCHORS,
            ),
            "shallow_dims": (dyhead.CHANNELS, language.LANG_DIM),
            "shallow_width": fuse.SHALLOW_CONTRASTIVE_HIDDEN_DIM,
            "shallow_log_scale": dyhead.SHALLOW_LOG_SCALE,
        }
    return GroundingCriterion(
        weights,
        topk=cfg.MODEL.ATSS.TOPK,
        token_alpha=fuse.TOKEN_ALPHA,
        token_gamma=fuse.TOKEN_GAMMA,
        num_tokens=language.MAX_QUERY_LEN,
        **options,  # type: ignore[arg-type]
    )
