"""``MODEL`` keys of Faster R-CNN and RetinaNet.

Names and values are those of maskrcnn-benchmark (https://github.com/facebookresearch/maskrcnn-benchmark). The released
configs of networks with a pyramid set some of them: four ``POOLER_SCALES``, five values of ``ANCHOR_STRIDE``.
"""

from __future__ import annotations

from typing import Any

ARCHITECTURE = "GeneralizedRCNN"
"""The ``MODEL.META_ARCHITECTURE`` that these keys are for."""


def tree() -> dict[str, Any]:
    """The ``MODEL`` group; of ``MODEL.RPN`` the part that grounding detectors do not have."""
    return {
        "RETINANET_ON": False,  # one stage: MODEL.RETINANET counts, and MODEL.RPN and MODEL.ROI_* do not
        "CLS_AGNOSTIC_BBOX_REG": False,  # one box per proposal, whatever its class
        "RESNETS": {
            "STEM_OUT_CHANNELS": 64,
            "RES2_OUT_CHANNELS": 256,  # doubled from stage to stage, and so is the width of a bottleneck
            "NUM_GROUPS": 1,  # of the 3x3 convolutions; above 1 it is a ResNeXt
            "WIDTH_PER_GROUP": 64,  # of the bottlenecks in the first stage
            "BACKBONE_OUT_CHANNELS": 1024,  # of the pyramid
            "STRIDE_IN_1X1": True,  # Caffe2 and MSRA weights; False: torchvision
            "STAGE_WITH_DCN": (False, False, False, False),
            "WITH_MODULATED_DCN": False,
            "DEFORMABLE_GROUPS": 1,
        },
        "RPN": _rpn(),
        "ROI_HEADS": {
            "FG_IOU_THRESHOLD": 0.5,
            "BG_IOU_THRESHOLD": 0.5,
            "BATCH_SIZE_PER_IMAGE": 512,  # proposals that a picture is trained on
            "POSITIVE_FRACTION": 0.25,  # most of them that may be objects
            "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
            "SCORE_THRESH": 0.05,
            "NMS": 0.5,
            "DETECTIONS_PER_IMG": 100,
        },
        "ROI_BOX_HEAD": {
            "NUM_CLASSES": 81,  # with the background
            "MLP_HEAD_DIM": 1024,
            "POOLER_RESOLUTION": 14,
            "POOLER_SCALES": (1.0 / 16,),  # one per level
            "POOLER_SAMPLING_RATIO": 0,
        },
        "RETINANET": _retinanet(),
    }


def _rpn() -> dict[str, Any]:
    return {
        "STRADDLE_THRESH": 0,  # pixels that an anchor may reach beyond its picture and still be trained; below 0: any
        "FG_IOU_THRESHOLD": 0.7,
        "BG_IOU_THRESHOLD": 0.3,
        "BATCH_SIZE_PER_IMAGE": 256,  # anchors that a picture is trained on
        "POSITIVE_FRACTION": 0.5,
        "PRE_NMS_TOP_N_TRAIN": 12000,  # per level and picture
        "PRE_NMS_TOP_N_TEST": 6000,
        "POST_NMS_TOP_N_TRAIN": 2000,
        "POST_NMS_TOP_N_TEST": 1000,
        "NMS_THRESH": 0.7,
        "MIN_SIZE": 0,
        "FPN_POST_NMS_TOP_N_TRAIN": 2000,  # over all levels
        "FPN_POST_NMS_TOP_N_TEST": 2000,
        "FPN_POST_NMS_PER_BATCH": True,  # in training: over all pictures of a process' batch together
    }


def _retinanet() -> dict[str, Any]:
    return {
        "NUM_CLASSES": 81,  # with the background, which has no channel
        "ANCHOR_SIZES": (32, 64, 128, 256, 512),
        "ANCHOR_STRIDES": (8, 16, 32, 64, 128),
        "ASPECT_RATIOS": (0.5, 1.0, 2.0),
        "OCTAVE": 2.0,
        "SCALES_PER_OCTAVE": 3,
        "USE_C5": True,  # P6 is made of C5; False: of P5
        "NUM_CONVS": 4,
        "PRIOR_PROB": 0.01,
        "FG_IOU_THRESHOLD": 0.5,
        "BG_IOU_THRESHOLD": 0.4,
        "LOSS_ALPHA": 0.25,
        "LOSS_GAMMA": 2.0,
        "BBOX_REG_WEIGHT": 4.0,  # what the loss of the boxes is divided by, beside their number
        "BBOX_REG_BETA": 0.11,
        "PRE_NMS_TOP_N": 1000,  # per level
        "INFERENCE_TH": 0.05,
        "NMS_TH": 0.4,
    }


LIVE = (
    *(f"MODEL.{name}" for name in ("RETINANET_ON", "CLS_AGNOSTIC_BBOX_REG")),
    *(f"MODEL.{group}" for group in ("RESNETS", "ROI_HEADS", "ROI_BOX_HEAD", "RETINANET")),
    *(f"MODEL.RPN.{name}" for name in _rpn()),
)
"""Keys, and groups of them, that only this architecture has. Files of other detectors may set them: they inherited the
tree, and nothing there reads it."""
