"""``MODEL`` keys of FIBER and GLIP: Swin, BERT or RoBERTa, FPN, DyHead, ATSS.

Values are those of the two repositories (https://github.com/microsoft/GLIP, https://github.com/microsoft/FIBER).
"""

from __future__ import annotations

from typing import Any


def tree() -> dict[str, Any]:
    """The ``MODEL`` group."""
    return {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "RPN_ARCHITECTURE": "RPN",
        "WEIGHT": "",
        "DEVICE": "auto",
        "IMPORTS": (),  # modules of a user to be imported first; they register parts of their own
        "LINEAR_PROB": False,
        **_backbones(),
        "RPN": {
            "ANCHOR_SIZES": (32, 64, 128, 256, 512),  # pixels, one per level
            "ANCHOR_STRIDE": (16,),
            "ASPECT_RATIOS": (0.5, 1.0, 2.0),
            "SCALES_PER_OCTAVE": 3,
            "FREEZE": False,
        },
        "ATSS": {
            "INFERENCE_TH": 0.05,
            "PRE_NMS_TOP_N": 1000,  # per level
            "NMS_TH": 0.6,
            "DETECTIONS_PER_IMG": 100,
            "TOPK": 9,
            "REG_LOSS_WEIGHT": 2.0,
        },
        "DYHEAD": {
            "NUM_CLASSES": 81,  # one more than the channels of cls_logits
            "CHANNELS": 128,
            "NUM_CONVS": 4,
            "SCORE_AGG": "MEAN",
            "PRIOR_PROB": 0.01,
            "LOG_SCALE": 0.0,
            "SHALLOW_LOG_SCALE": 0.0,
            "USE_CHECKPOINT": False,
            "FUSE_CONFIG": _fuse_config(),
        },
    }


def _backbones() -> dict[str, Any]:
    return {
        "BACKBONE": {
            "CONV_BODY": "R-50-C4",
            "OUT_CHANNELS": 1024,
            "FUSION_VERSION": "v1",
            "FREEZE_CONV_BODY_AT": 2,
            "FREEZE": False,
            "USE_CHECKPOINT": False,
        },
        "SWINT": {
            "VERSION": "v1",  # "fusion": text is mixed in (FIBER)
            "EMBED_DIM": 96,
            "DEPTHS": (2, 2, 6, 2),
            "NUM_HEADS": (3, 6, 12, 24),
            "OUT_CHANNELS": (96, 192, 384, 768),
            "WINDOW_SIZE": 7,
            "DROP_PATH_RATE": 0.2,
        },
        "FPN": {"FREEZE": False, "DROP_BLOCK": True, "DROP_PROB": 0.3, "DROP_SIZE": 3},
        "GROUP_NORM": {"NUM_GROUPS": 16},
        "LANGUAGE_BACKBONE": {
            "MODEL_TYPE": "bert-base-uncased",
            "TOKENIZER_TYPE": "bert-base-uncased",
            "LANG_DIM": 768,
            "NUM_LAYERS": 0,  # here and in the next three, 0: what MODEL_TYPE says
            "NUM_HEADS": 0,
            "INTERMEDIATE_SIZE": 0,
            "VOCAB_SIZE": 0,
            "MAX_QUERY_LEN": 256,
            "DROPOUT": 0.1,
            "N_LAYERS": 1,  # last hidden states that are averaged
            "MASK_SPECIAL": False,
            "FREEZE": False,
            "USE_CHECKPOINT": False,
        },
    }


def _fuse_config() -> dict[str, Any]:
    return {
        "EARLY_FUSE_ON": False,
        "TYPE": "",
        "USE_FUSED_FEATURES_DOT_PRODUCT": False,
        "JOINT_EMB_SIZE": 256,
        "ADD_LINEAR_LAYER": False,
        # losses
        "USE_CLASSIFICATION_LOSS": False,
        "USE_TOKEN_LOSS": False,
        "TOKEN_LOSS_WEIGHT": 1.0,
        "TOKEN_ALPHA": 0.25,
        "TOKEN_GAMMA": 2.0,
        "USE_DOT_PRODUCT_TOKEN_LOSS": False,
        "DOT_PRODUCT_TOKEN_LOSS_WEIGHT": 1.0,
        "USE_CONTRASTIVE_ALIGN_LOSS": False,
        "CONTRASTIVE_ALIGN_LOSS_WEIGHT": 1.0,
        "CONTRASTIVE_HIDDEN_DIM": 64,
        "MLM_LOSS": False,
        "MLM_LOSS_COEF": 1.0,
        "MLM_LOSS_FOR_ONLY_POSITIVES": True,
        "NO_MASK_FOR_OD": False,
        "NO_MASK_FOR_GOLD": False,
        "USE_SHALLOW_CONTRASTIVE_LOSS": False,
        "SHALLOW_CONTRASTIVE_LOSS_WEIGHT": 1.0,
        "SHALLOW_CONTRASTIVE_HIDDEN_DIM": 64,
        "SHALLOW_MAX_POSITIVE_ANCHORS": 100,
        "USE_SHALLOW_ZERO_PADS": False,
        "SHALLOW_ANCHORS": "positive",  # "reference": without those of the first object of a picture
    }


KINDS = {"MODEL.IMPORTS": "names"}

_FUSE = "MODEL.DYHEAD.FUSE_CONFIG"
TRAINING_KEYS = (
    "MODEL.WEIGHT",  # in a file: where a training starts; an evaluation is told its weights, or reads this
    "MODEL.LINEAR_PROB",
    "MODEL.BACKBONE.FREEZE_CONV_BODY_AT",
    "MODEL.BACKBONE.FREEZE",
    "MODEL.BACKBONE.USE_CHECKPOINT",
    "MODEL.SWINT.DROP_PATH_RATE",
    "MODEL.FPN",
    "MODEL.LANGUAGE_BACKBONE.DROPOUT",
    "MODEL.LANGUAGE_BACKBONE.FREEZE",
    "MODEL.LANGUAGE_BACKBONE.USE_CHECKPOINT",
    "MODEL.RPN.FREEZE",
    "MODEL.ATSS.TOPK",
    "MODEL.ATSS.REG_LOSS_WEIGHT",
    "MODEL.DYHEAD.SHALLOW_LOG_SCALE",
    "MODEL.DYHEAD.USE_CHECKPOINT",
    f"{_FUSE}.USE_CLASSIFICATION_LOSS",
    f"{_FUSE}.USE_TOKEN_LOSS",
    f"{_FUSE}.TOKEN_LOSS_WEIGHT",
    f"{_FUSE}.TOKEN_ALPHA",
    f"{_FUSE}.TOKEN_GAMMA",
    f"{_FUSE}.DOT_PRODUCT_TOKEN_LOSS_WEIGHT",
    f"{_FUSE}.USE_CONTRASTIVE_ALIGN_LOSS",
    f"{_FUSE}.CONTRASTIVE_ALIGN_LOSS_WEIGHT",
    f"{_FUSE}.CONTRASTIVE_HIDDEN_DIM",
    f"{_FUSE}.MLM_LOSS",
    f"{_FUSE}.MLM_LOSS_COEF",
    f"{_FUSE}.MLM_LOSS_FOR_ONLY_POSITIVES",
    f"{_FUSE}.NO_MASK_FOR_OD",
    f"{_FUSE}.NO_MASK_FOR_GOLD",
    f"{_FUSE}.USE_SHALLOW_CONTRASTIVE_LOSS",
    f"{_FUSE}.SHALLOW_CONTRASTIVE_LOSS_WEIGHT",
    f"{_FUSE}.SHALLOW_CONTRASTIVE_HIDDEN_DIM",
    f"{_FUSE}.SHALLOW_MAX_POSITIVE_ANCHORS",
    f"{_FUSE}.USE_SHALLOW_ZERO_PADS",
    f"{_FUSE}.SHALLOW_ANCHORS",
)
