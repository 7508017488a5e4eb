"""Keys of DECOLA and of the detectors it is measured against: BoxSup and Detic (Deformable DETR), CenterNet2.

Values are those of the original (https://github.com/janghyuncho/DECOLA); its names are accepted too, see
:mod:`~maskrcnn_benchmark.config.detectron2`.
"""

from __future__ import annotations

from typing import Any

ARCHITECTURES = ("DecolaDeformableDETR", "DeformableDETR", "CenterNet2RCNN")
"""The values of ``MODEL.META_ARCHITECTURE`` that these keys are for."""


def tree() -> dict[str, Any]:
    """What is added to the tree."""
    return {
        "MODEL": _model(),
        "INPUT": _input(),
        "DATASETS": {"WITH_IMAGE_LABELS": False},  # some training sets have names of classes but no boxes
        "DATALOADER": _loader(),
        "SOLVER": {
            "CUSTOM_LR_FACTOR": 1.0,  # of parameters whose name contains one of
            "CUSTOM_LR_NAMES": (),
        },
        "TEST": {
            "SCORE_THRESH": 0.0,  # detections have a higher score
            "DETECTIONS_PER_CLASS": -1,  # most of a class in a picture; -1: any number
            "CONDITIONED": {
                "ENABLED": False,  # DECOLA: queries of their own for each name that is asked for
                "USE_GT_NAMES": False,  # a picture is asked for the classes of its own objects: conditioned AP
                "ADAPTIVE_QUERIES": False,  # DeformableDETR: QUERIES_PER_CLASS for each of those classes
                "QUERIES_PER_CLASS": 0,
            },
            "SELF_LABEL": {
                "ENABLED": False,  # predict the best box of each image label, and store that instead of scoring
                "OUTPUT": "",  # name of the file, without ending; none: lvis_instances_results
            },
        },
        "WANDB": {
            "DISABLE_WANDB": True,
            "PROJECT": "",
            "GROUP": "",
            "RUN_NAME": "decola",
            "VIS_PERIOD": 0,  # steps from one picture of predictions and targets to the next; 0: none
        },
    }


def _model() -> dict[str, Any]:
    return {
        "MASK_ON": False,  # of CenterNet2RCNN: a mask head
        "BACKBONE": {"AMP_ONLY": False},  # with SOLVER.USE_AMP: the backbone alone has half precision
        "SWINT": {
            "SIZE": "T",  # of CONV_BODY SWIN and SWIN-FPN-P6P7: T S B B-22k B-22k-384 L-22k L-22k-384
            "OUT_FEATURES": (1, 2, 3),  # stages whose maps go on, from 0
        },
        "TIMM": {
            "BASE_NAME": "resnet50_in21k",  # of CONV_BODY TIMM-R50-IN21K and TIMM-R50-IN21K-FPN-P6P7
            "FREEZE_AT": 0,  # stages that do not train
        },
        "DEFORMABLE_DETR": _deformable(),
        "DECOLA": _decola(),
        "ZEROSHOT_CLS": _zero_shot(),
        "FED_LOSS": {
            "ENABLED": False,  # classes of a step: those of its objects and some of the others
            "NUM_CLASSES": 50,
            "FREQ_POWER": 0.5,  # classes are drawn in proportion to their pictures to the power of this
            "CAT_FREQ_PATH": "",  # JSON with image_count per class; none: that of the training annotations, or counted
        },
        "IMAGE_LABEL": {
            "LOSS": "max_size",  # max_size | max_score | first | min_loss | image | wsddn; none: no such loss
            "WEIGHT": 0.1,
            "NUM_PROPOSALS": 128,  # of CenterNet2RCNN: the best so many are chosen from
            "ADD_IMAGE_BOX": False,  # of CenterNet2RCNN: the whole picture is one more proposal
            "IMAGE_BOX_SIZE": 1.0,  # its sides, of the picture's
        },
        **_second_stage(),
    }


def _second_stage() -> dict[str, Any]:
    """Of CenterNet2RCNN."""
    return {
        "CENTERNET": _centernet(),
        "ROI_HEADS": {
            "NUM_CLASSES": 80,  # of CenterNet2RCNN, without background
            "MASK_WEIGHT": 1.0,
            "ONE_CLASS_PER_PROPOSAL": False,
        },
        "ROI_BOX_HEAD": {
            "MULT_PROPOSAL_SCORE": False,  # scores are the root of the class score times the proposal's
            "USE_SIGMOID_CE": False,
            "PRIOR_PROB": 0.01,
        },
        "ROI_BOX_CASCADE_HEAD": {
            "IOUS": (0.5, 0.6, 0.7),
            "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        },
        "ROI_MASK_HEAD": {
            "NUM_CONV": 4,
            "CONV_DIM": 256,
            "POOLER_RESOLUTION": 14,
            "CLS_AGNOSTIC_MASK": False,
        },
    }


def _deformable() -> dict[str, Any]:
    return {
        "NUM_CLASSES": 80,
        "HIDDEN_DIM": 256,
        "NHEADS": 8,
        "ENC_LAYERS": 6,
        "DEC_LAYERS": 6,
        "DIM_FEEDFORWARD": 1024,
        "DROPOUT": 0.1,
        "NUM_FEATURE_LEVELS": 4,
        "NUM_OBJECT_QUERIES": 300,
        "TWO_STAGE": True,
        "WITH_BOX_REFINE": True,
        "LOOK_FORWARD_TWICE": True,
        "MIXED_SELECTION": False,
        "DEEP_SUPERVISION": True,  # losses for every decoder layer
        "USE_CHECKPOINT": False,  # activations of encoder and decoder are computed again instead of kept
        "LOSS": {"CLS": 2.0, "L1": 5.0, "GIOU": 2.0, "FOCAL_ALPHA": 0.25},  # weights, and costs of the matcher
    }


def _decola() -> dict[str, Any]:
    return {
        "PROMPT_BIAS": False,  # a learned bias of the classifiers
        "QUERIES_PER_PROMPT": 300,
        "ENC_LOSS_TOPK": 10000,  # tokens per prompt in the loss of the first stage; -1: all
        "PIXEL_QUERY": False,  # queries begin with the feature of their token
        "PROMPT_QUERY": False,  # queries begin with the embedding of their prompt
        "PROB_OBJECT_PROMPT": 1.0,  # how often a step asks for "object": 0 in phase 1, 1 in phase 2
        "NORM_FIRST_STAGE": True,  # cosine logits
        "NORM_SECOND_STAGE": True,
        "MULTI_CLASS_SECOND_STAGE": False,  # conditioned queries keep the scores of all classes
        "LOSS_WITHIN_IMAGE": False,  # queries for classes that only other pictures of the batch have do not count
        "SELF_ATTN_GROUPING": "released",  # released | per_prompt, as in the paper; weights are of one or the other
        "SELF_LABEL": {
            "ENABLED": False,  # boxes for image labels, by a frozen copy of phase 1
            "SELECT": "max-score",  # max-score | max-size
            "BOX_LOSS": True,
            "MIN_AREA": 0.0,  # of boxes, of the picture's
            "MIN_SCORE": 0.0,
            "TEACHER_WEIGHT": "",  # file of phase 1; none: MODEL.WEIGHT
        },
    }


def _zero_shot() -> dict[str, Any]:
    return {
        "ENABLED": True,  # class scores are cosines with embeddings of the names
        "WEIGHT_PATH": "datasets/metadata/lvis_v1_clip_a+cname.npy",  # table of them (classes, DIM), or a class bank
        "OBJECT_WEIGHT_PATH": "datasets/metadata/lvis_v1_clip_a+object.npy",
        "NAMES_FILE": "",  # class names, one in a line, or COCO JSON: those of the rows of WEIGHT_PATH
        "PROMPT": "a {}",
        "TEXT_WEIGHT": "",  # of CLIP: embeds names that the table does not have
        "TEXT_TOKENIZER": "",  # file or folder of CLIP's vocabulary; none: it is looked for
        "TEXT_ACTIVATION": "quick_gelu",  # of CLIP: quick_gelu for OpenAI's weights, gelu for most others
        "DIM": 512,
        "NORM_WEIGHT": True,
        "NORM_TEMP": 50.0,
        "BIAS_INIT": 0.0,  # of a learned bias; 0: there is none
        "NORM_OVER": "queries",  # of DeformableDETR: queries, as the released weights need, or channels
    }


def _centernet() -> dict[str, Any]:
    return {
        "FPN_STRIDES": (8, 16, 32, 64, 128),
        "PRIOR_PROB": 0.01,
        "INFERENCE_TH": 0.05,
        "NMS_TH_TRAIN": 0.6,
        "NMS_TH_TEST": 0.6,
        "PRE_NMS_TOPK_TRAIN": 1000,  # per level
        "POST_NMS_TOPK_TRAIN": 100,
        "PRE_NMS_TOPK_TEST": 1000,
        "POST_NMS_TOPK_TEST": 100,
        "NUM_BOX_CONVS": 4,
        "SIGMOID_CLAMP": 1e-4,
        "HM_MIN_OVERLAP": 0.8,
        "MIN_RADIUS": 4,
        "SOI": ((0, 80), (64, 160), (128, 320), (256, 640), (512, 10000000)),  # sizes of interest per level, pixels
        "POS_WEIGHT": 1.0,
        "NEG_WEIGHT": 1.0,
        "REG_WEIGHT": 2.0,
        "HM_FOCAL_BETA": 4,
        "HM_FOCAL_ALPHA": 0.25,
        "LOSS_GAMMA": 2.0,
        "IGNORE_HIGH_FP": -1.0,  # negatives with a score from here on do not count; below 0: all count
    }


def _input() -> dict[str, Any]:
    return {
        "FORMAT": "",  # RGB: as in detectron2, from 0 to 255, sides rounded; none: INPUT.TO_BGR255 decides
        "AUG": "",  # DETR | ResizeShortestEdge | EfficientDetResizeCrop; none: flip and resize
        "MIN_SIZE_TRAIN_SAMPLING": "choice",  # choice of MIN_SIZE_TRAIN, or range from its first to its last
        "TRAIN_SIZE": 640,  # of EfficientDetResizeCrop: side of the crop, pixels
        "SCALE_RANGE": (0.1, 2.0),  # of EfficientDetResizeCrop
    }


def _loader() -> dict[str, Any]:
    return {
        "REPEAT_THRESHOLD": 0.0,  # classes in fewer pictures than this share of them are seen more often
        "FILTER_EMPTY_ANNOTATIONS": True,  # leave out training pictures without objects
        "PSEUDO_SCORE_THRESH": 0.0,  # training boxes that have a score need at least this one
        # of SAMPLER multi_dataset: one value per training set
        "DATASET_RATIO": (1, 1),  # how often pictures of each set are drawn
        "USE_RFS": (False, False),  # with REPEAT_THRESHOLD
        "DATASET_ANN": ("box", "box"),  # box | image: what is known of its pictures
        "USE_DIFF_BS_SIZE": False,  # batches of each set have a size of their own
        "DATASET_BS": (8, 32),  # pictures of a process
        "DATASET_INPUT_SIZE": (896, 384),  # TRAIN_SIZE of each set
        "DATASET_INPUT_SCALE": ((0.1, 2.0), (0.5, 1.5)),  # SCALE_RANGE of each set
        "DATASET_MIN_SIZES": ((640, 800), (320, 400)),  # range of the short side
        "DATASET_MAX_SIZES": (1333, 667),
    }


KINDS = {
    "MODEL.CENTERNET.SOI": "rows",
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": "rows",
    "SOLVER.CUSTOM_LR_NAMES": "names",
    "DATALOADER.DATASET_RATIO": "numbers",
    "DATALOADER.DATASET_INPUT_SCALE": "rows",
    "DATALOADER.DATASET_MIN_SIZES": "rows",
}

LIVE = (
    "MODEL.MASK_ON",
    *(f"MODEL.ROI_HEADS.{name}" for name in tree()["MODEL"]["ROI_HEADS"]),
    *(f"MODEL.ROI_BOX_HEAD.{name}" for name in tree()["MODEL"]["ROI_BOX_HEAD"]),
    *(f"MODEL.{name}" for name in ("ROI_BOX_CASCADE_HEAD", "ROI_MASK_HEAD")),
    "INPUT.FORMAT",
)
"""Keys, and groups of them, that released files of other architectures may set, where nothing reads them."""

OWN_DEFAULTS: dict[str, object] = {
    "INPUT.FORMAT": "RGB",
    "INPUT.PIXEL_MEAN": (123.675, 116.28, 103.53),
    "INPUT.PIXEL_STD": (58.395, 57.12, 57.375),
    "AUGMENT.CROP_PROB_TRAIN": 0.0,
    "DATASETS.LVIS_USE_NORMAL_AP": True,
    "MODEL.BACKBONE.CONV_BODY": "R-50",
    "MODEL.BACKBONE.AMP_ONLY": True,
    "MODEL.FED_LOSS.ENABLED": True,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_BIAS": 1e-4,
    "SOLVER.WARMUP_FACTOR": 1e-3,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.MIN_LR": 0.0,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "value",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
    "SOLVER.CHECKPOINT_PERIOD": 5000,
    "SOLVER.FIND_UNUSED_PARAMETERS": False,
    "TEST.EVAL_TASK": "detection",
    "TEST.DETECTIONS_PER_IMG": 300,
    "TEST.IMS_PER_BATCH": 1,
}
"""Defaults of the original where the key is shared with other architectures: those of detectron2."""

DEFAULTS_OF: dict[str, dict[str, object]] = {
    "DecolaDeformableDETR": {**OWN_DEFAULTS, "MODEL.ZEROSHOT_CLS.BIAS_INIT": -4.59511985013459},
    "DeformableDETR": {**OWN_DEFAULTS, "MODEL.ZEROSHOT_CLS.BIAS_INIT": -4.59511985013459},
    "CenterNet2RCNN": {
        **OWN_DEFAULTS,
        "MODEL.BACKBONE.OUT_CHANNELS": 256,
        "MODEL.FED_LOSS.ENABLED": False,
        "MODEL.ZEROSHOT_CLS.ENABLED": False,
        "MODEL.ROI_BOX_HEAD.POOLER_SCALES": (1 / 8, 1 / 16, 1 / 32),
        "DATALOADER.SIZE_DIVISIBILITY": 32,
    },
}

_CENTERNET_TEST = (
    "FPN_STRIDES",
    "PRIOR_PROB",
    "INFERENCE_TH",
    "NMS_TH_TEST",
    "NUM_BOX_CONVS",
    "PRE_NMS_TOPK_TEST",
    "POST_NMS_TOPK_TEST",
)

TRAINING_KEYS = (
    "MODEL.DEFORMABLE_DETR.DROPOUT",
    "MODEL.DEFORMABLE_DETR.DEEP_SUPERVISION",
    "MODEL.DEFORMABLE_DETR.USE_CHECKPOINT",
    "MODEL.DEFORMABLE_DETR.LOSS",
    "MODEL.DECOLA.ENC_LOSS_TOPK",
    "MODEL.DECOLA.PROB_OBJECT_PROMPT",
    "MODEL.DECOLA.LOSS_WITHIN_IMAGE",
    "MODEL.DECOLA.SELF_LABEL",
    "MODEL.TIMM.FREEZE_AT",
    "MODEL.FED_LOSS",
    "MODEL.IMAGE_LABEL",
    *(f"MODEL.CENTERNET.{name}" for name in _centernet() if name not in _CENTERNET_TEST),
    "MODEL.ROI_HEADS.MASK_WEIGHT",
    "INPUT.AUG",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING",
    "INPUT.TRAIN_SIZE",
    "INPUT.SCALE_RANGE",
    *(f"DATALOADER.{name}" for name in _loader()),
    "DATASETS.WITH_IMAGE_LABELS",
    "WANDB",
)
