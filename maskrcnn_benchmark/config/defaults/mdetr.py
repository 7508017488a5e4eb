"""``MODEL.MDETR``: keys of MDETR, with and without masks (https://github.com/ashkamath/mdetr), at its own values."""

from __future__ import annotations

from typing import Any


def tree() -> dict[str, Any]:
    """What is added to the ``MODEL`` group."""
    return {
        "MDETR": {
            "NUM_QUERIES": 100,
            "HIDDEN_DIM": 256,
            "NHEADS": 8,
            "ENC_LAYERS": 6,
            "DEC_LAYERS": 6,
            "FFN_DIM": 2048,
            "DROPOUT": 0.1,  # of the transformer; the text encoder has a key of its own
            "POS_EMBED": "sine",  # sine | learned
            "DILATION": False,  # of the last stage of the body: maps at stride 16 ("DC5")
            "CONTRASTIVE_ALIGN": True,  # compare queries with tokens; with a mask head this is off
            "CONTRASTIVE": False,  # compare whole pictures with whole texts
            "PROJ_DIM": 64,  # of the space of either comparison
            "TEMPERATURE": 0.07,
            # what it costs to give an object to a query
            "COST_CLASS": 1.0,
            "COST_BBOX": 5.0,
            "COST_GIOU": 2.0,
            # weights of losses
            "AUX_LOSS": True,  # losses for every decoder layer, not the last one alone
            "EOS_COEF": 0.1,  # of queries without object
            "CE_LOSS_COEF": 1.0,
            "BBOX_LOSS_COEF": 5.0,
            "GIOU_LOSS_COEF": 2.0,
            "CONTRASTIVE_ALIGN_LOSS_COEF": 1.0,
            "CONTRASTIVE_LOSS_COEF": 0.1,
            # of MDETR_SEGM
            "MASK_LOSS_COEF": 1.0,
            "DICE_LOSS_COEF": 1.0,
            "MASK_THRESH": 0.7,  # queries with a higher object score are kept and get a mask
            "FROZEN_WEIGHTS": "",  # detector that a mask head is trained on; it stays as it is
            "FROZEN_DROPOUT": True,  # as published; False: the frozen detector is in evaluation mode
            # files of classifiers and language models that a training begins with; MODEL.WEIGHT wins over them
            "BACKBONE_WEIGHT": "",
            "TEXT_WEIGHT": "",
        }
    }


TRAINING_KEYS = (
    "MODEL.MDETR.DROPOUT",
    "MODEL.MDETR.TEMPERATURE",
    "MODEL.MDETR.COST_CLASS",
    "MODEL.MDETR.COST_BBOX",
    "MODEL.MDETR.COST_GIOU",
    "MODEL.MDETR.AUX_LOSS",
    "MODEL.MDETR.EOS_COEF",
    "MODEL.MDETR.CE_LOSS_COEF",
    "MODEL.MDETR.BBOX_LOSS_COEF",
    "MODEL.MDETR.GIOU_LOSS_COEF",
    "MODEL.MDETR.CONTRASTIVE_ALIGN_LOSS_COEF",
    "MODEL.MDETR.CONTRASTIVE_LOSS_COEF",
    "MODEL.MDETR.MASK_LOSS_COEF",
    "MODEL.MDETR.DICE_LOSS_COEF",
    "MODEL.MDETR.FROZEN_WEIGHTS",
    "MODEL.MDETR.FROZEN_DROPOUT",
    "MODEL.MDETR.BACKBONE_WEIGHT",
    "MODEL.MDETR.TEXT_WEIGHT",
)
