"""Keys of the original repositories that are not in our tree: renamed, without effect, or with one value that we have.

With this table the YAML files published with GLIP, FIBER and maskrcnn-benchmark load unchanged. Each key was looked up
in their code. Some are in the tree for Faster R-CNN and RetinaNet; what is said of them here holds for other detectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maskrcnn_benchmark.config.values import coerce, show
from maskrcnn_benchmark.errors import ConfigError


@dataclass(frozen=True)
class Renamed:
    """Called otherwise here."""

    key: str


@dataclass(frozen=True)
class NoEffect:
    """Nothing in the original read it, or nothing that a network of ours has."""

    reason: str


@dataclass(frozen=True)
class Fixed:
    """An option of which only one value is offered, the one of every released file."""

    value: object
    reason: str
    kind: str | None = None

    def check(self, key: str, value: object, source: str) -> None:
        """Accept the one value.

        Raises:
            ConfigError: another value, or one of another type.
        """
        try:
            value = coerce(value, self.value, self.kind)
        except ValueError as error:
            raise ConfigError(f"{source}: {key} {error}, got {show(value)}") from None
        if value != self.value:
            raise ConfigError(f"{source}: {key} {show(value)} is not offered ({self.reason}): take it out")


@dataclass(frozen=True)
class Mapped:
    """Called otherwise here, and so are its values."""

    key: str
    values: Mapping[str, object]

    def value(self, key: str, value: object, source: str) -> object:
        """The value here.

        Raises:
            ConfigError: there is none for it.
        """
        if str(value) not in self.values:
            known = ", ".join(map(repr, self.values))
            raise ConfigError(f"{source}: {key} {show(value)} is not offered, only {known}: see {self.key}")
        return self.values[str(value)]


Alias = Renamed | NoEffect | Fixed | Mapped


def find(key: str, table: Mapping[str, Alias] | None = None) -> Alias | None:
    """What has become of a key, or of the group it is in; None for a key of the tree and for an unknown one."""
    table = TABLE if table is None else table
    while key:
        if key in table:
            return table[key]
        key = key.rpartition(".")[0]
    return None


def all_of(alias: Alias, prefix: str, names: str) -> dict[str, Alias]:
    return {f"{prefix}.{name}": alias for name in names.split()}


_RENAMED = {
    "MODEL.WEIGHTS": "MODEL.WEIGHT",
    "INPUT.HORIZONTAL_FLIP_PROB_TRAIN": "AUGMENT.FLIP_PROB_TRAIN",
    "INPUT.VERTICAL_FLIP_PROB_TRAIN": "AUGMENT.VERTICAL_FLIP_PROB_TRAIN",
    **{f"INPUT.{part}": f"AUGMENT.{part}" for part in ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE")},
}

_CLASSES = NoEffect("the data set says how many classes it has")
_OTHER_HEAD = NoEffect("of another detector")
_OTHER_BACKBONE = NoEffect("of another backbone")
_UNREAD = NoEffect("nothing reads it")
_CAPTIONS = NoEffect("of captions from the web and of training data that was not published")
_VARIANT = "no released network has it"

_NO_EFFECT: dict[str, Alias] = {
    "MODEL.ATSS.NUM_CLASSES": _CLASSES,
    **all_of(_CLASSES, "MODEL", "FCOS.NUM_CLASSES ROI_BOX_HEAD.NUM_CLASSES RETINANET.NUM_CLASSES"),
    **all_of(
        _OTHER_HEAD, "MODEL", "FCOS RETINANET FOCAL ROI_HEADS ROI_BOX_HEAD ROI_MASK_HEAD ROI_KEYPOINT_HEAD DYDETR"
    ),
    **all_of(_OTHER_HEAD, "MODEL", "BIFPN EVO_NORM RESNETS SPEC CLIP MULTITASK"),
    **all_of(
        _OTHER_HEAD,
        "MODEL.RPN",
        "STRADDLE_THRESH FG_IOU_THRESHOLD BG_IOU_THRESHOLD BATCH_SIZE_PER_IMAGE POSITIVE_FRACTION PRE_NMS_TOP_N_TRAIN "
        "PRE_NMS_TOP_N_TEST POST_NMS_TOP_N_TRAIN POST_NMS_TOP_N_TEST NMS_THRESH MIN_SIZE FPN_POST_NMS_TOP_N_TRAIN "
        "FPN_POST_NMS_TOP_N_TEST",
    ),
    "MODEL.RETINANET.STRADDLE_THRESH": _UNREAD,
    **all_of(
        _OTHER_HEAD,
        "MODEL.ATSS",
        "PRIOR_PROB NUM_CONVS CHANNELS USE_DFCONV USE_GN USE_BN USE_DYRELU USE_SE INFERENCE_TH_TRAIN "
        "PRE_NMS_TOP_N_TRAIN POST_NMS_TOP_N_TRAIN",
    ),
    "MODEL.DYHEAD.TOPK": NoEffect("MODEL.ATSS.TOPK counts"),
    **all_of(
        NoEffect("of another kind of fusion"),
        "MODEL.DYHEAD.FUSE_CONFIG",
        "USE_LAYER_SCALE JOINT_OUT_SIZE JOINT_EMB_DROPOUT JOINT_MLP_LAYERS DO_LANG_PROJ_OUTSIDE_CHECKPOINT "
        "MLM_OBJ_FOR_ONLY_POSITIVE",
    ),
    "MODEL.LANGUAGE_BACKBONE.PAD_MAX": NoEffect("padding of the text changes no result; TEST.PAD_TEXT pads as it did"),
    **all_of(
        NoEffect("of another text encoder"),
        "MODEL.LANGUAGE_BACKBONE",
        "UNUSED_TOKEN RNN_TYPE VARIABLE_LENGTH WORD_EMBEDDING_SIZE WORD_VEC_SIZE HIDDEN_SIZE BIDIRECTIONAL "
        "INPUT_DROPOUT_P DROPOUT_P CORPUS_PATH WEIGHT",
    ),
    **all_of(
        _OTHER_BACKBONE,
        "MODEL.BACKBONE",
        "RESET_BN NORM_LEVEL USE_BN USE_SYNCBN USE_NSYNCBN USE_GN USE_EN USE_DFCONV USE_DYRELU USE_SE LAYER_SETUP "
        "LAYER_SEARCH OUT_FEATURES FPN_LAYER EFFICIENT_DET_START_FROM EFFICIENT_DET_COMPOUND "
        "EFFICIENT_DET_BIFPN_VERSION GROUP",
    ),
    **all_of(_OTHER_BACKBONE, "MODEL.SWINT", "OUT_NORM LAYER_SCALE"),
    **all_of(_OTHER_HEAD, "MODEL", "ONNX GROUP_NORM.DIM_PER_GP GROUP_NORM.EPSILON"),
    **all_of(_UNREAD, "MODEL", "DEBUG PRETRAIN_NAME"),
    **all_of(NoEffect("it was never wired"), "AUGMENT", "USE_RA CROP_PROB CROP_MIN_IOUS CROP_MIN_SIZE"),
    "DATALOADER.DISTRIBUTE_CHUNK_AMONG_NODE": _UNREAD,
    "DATALOADER.MIN_KPS_PER_IMS": _OTHER_HEAD,
    **all_of(_UNREAD, "DATASETS", "ADD_DET_PROMPT_ADVANCED PREDEFINED_TEXT"),
    **all_of(
        _CAPTIONS,
        "DATASETS",
        "BING_INDEX_LIST BOX_THRESHOLD CAPTION_CONF CAPTION_FORMAT_VERSION CAPTION_MIN_BOX CAPTION_NMS "
        "DIVER_BOX_FOR_VQA FULL_QUESTION_PROB FURTHER_SCREEN INFERENCE_CAPTION IN_COPY LOCAL_DEBUG NEG_QUESTION_PROB "
        "NO_RANDOM_PACK_PROBABILITY OI_COPY PACK_RANDOM_CAPTION_NUMBER POS_QUESTION_PROB PREDOWNLOAD_BING "
        "PREDOWNLOAD_WITH_AZCOPY PROMPT_LIMIT_NEG RANDOM_PACK_PROB REPLACE_CLEAN_LABEL SAFEGUARD_POSITIVE_CAPTION "
        "SAMPLE_NEGATIVE_FOR_GROUNDING_DATA USE_COCO_FORMAT USE_OD_AUG VG_COPY",
    ),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": NoEffect("the norm was always L2"),
    "SOLVER.GRAD_CLIP": NoEffect("it was hooked to gradients that did not exist; use SOLVER.CLIP_GRADIENTS"),
    **all_of(_UNREAD, "SOLVER", "DATASET_LENGTH DISABLE_OUTPUT_DISTRIBUTED WEIGHT_DECAY_HEAD_FACTOR"),
    **all_of(
        NoEffect("of multi-scale testing"),
        "TEST",
        "SCALES RANGES MAX_SIZE FLIP SPECIAL_NMS TH PRE_NMS_TOP_N NUM_CLASSES SELECT_CLASSES",
    ),
    "PATHS_CATALOG": NoEffect("data sets are named in the catalog and in DATASETS.REGISTER"),
    "TENSORBOARD_EXP": _UNREAD,
    "SEARCH": _OTHER_HEAD,
}

_FIXED: dict[str, Alias] = {
    **all_of(Fixed(True, _VARIANT), "MODEL.DYHEAD", "USE_GN USE_DYRELU USE_DFCONV USE_DYFUSE"),
    **all_of(Fixed(False, _VARIANT), "MODEL.DYHEAD", "USE_SYNCBN USE_NSYNCBN"),
    "MODEL.DYHEAD.GROUPS": Fixed(1, _VARIANT),
    "MODEL.DYHEAD.CONV_FUNC": Fixed("", "code in a config is never run"),
    "MODEL.DYHEAD.COSINE_SCALE": Fixed(-1.0, _VARIANT),
    **all_of(
        Fixed(True, "attention is always kept in range"),
        "MODEL.DYHEAD.FUSE_CONFIG",
        "CLAMP_MIN_FOR_UNDERFLOW CLAMP_MAX_FOR_OVERFLOW CLAMP_BERTATTN_MIN_FOR_UNDERFLOW "
        "CLAMP_BERTATTN_MAX_FOR_OVERFLOW CLAMP_DOT_PRODUCT",
    ),
    **all_of(
        Fixed(False, _VARIANT),
        "MODEL.DYHEAD.FUSE_CONFIG",
        "SEPARATE_BIDIRECTIONAL STABLE_SOFTMAX_2D USE_BACKBONE_SHALLOW_CONTRASTIVE_LOSS",
    ),
    "MODEL.RPN.USE_FPN": Fixed(True, _VARIANT),
    "MODEL.RPN.RPN_HEAD": Fixed("SingleConvRPNHead", _VARIANT),
    "MODEL.ROI_HEADS.USE_FPN": Fixed(True, _VARIANT),
    "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": Fixed("FPN2MLPFeatureExtractor", _VARIANT),
    "MODEL.ROI_BOX_HEAD.PREDICTOR": Fixed("FPNPredictor", _VARIANT),
    "MODEL.ROI_BOX_HEAD.USE_GN": Fixed(False, _VARIANT),
    "MODEL.RESNETS.STEM_FUNC": Fixed("StemWithFixedBatchNorm", _VARIANT),
    "MODEL.RESNETS.TRANS_FUNC": Fixed("BottleneckWithFixedBatchNorm", _VARIANT),
    "MODEL.RESNETS.RES5_DILATION": Fixed(1, _VARIANT),
    **all_of(Fixed(False, _VARIANT), "MODEL.RPN", "USE_RELATIVE_SIZE FORCE_BOXES RETURN_FUSED_FEATURES"),
    "MODEL.RPN.OCTAVE": Fixed(2.0, _VARIANT),
    "MODEL.RPN.ANCHOR_SHIFT": Fixed((0.0, 0.0, 0.0, 0.0), _VARIANT),
    "MODEL.RPN_ONLY": Fixed(True, "a grounding detector has no second stage"),
    "MODEL.BOX_ON": Fixed(True, _VARIANT),
    **all_of(Fixed(False, _VARIANT), "MODEL", "MASK_ON KEYPOINT_ON SWINT.APE"),
    **all_of(Fixed(False, _VARIANT), "MODEL.FPN", "USE_GN USE_RELU USE_DYRELU USE_SPP USE_PAN USE_DYHEAD"),
    "MODEL.FPN.RETURN_SWINT_FEATURE_BEFORE_FUSION": Fixed(False, _VARIANT),
    "MODEL.SWINT.MLP_RATIO": Fixed(4, _VARIANT),
    "INPUT.FIX_RES": Fixed(False, "the shape of a picture is kept"),
    "INPUT.FORMAT": Fixed("", "use INPUT.TO_BGR255"),
    "MODEL.IGNORE_CLS_TEST": Fixed(False, "register the test set with the evaluator coco_agnostic"),
    "DTYPE": Fixed("float32", "use SOLVER.USE_AMP"),
    "TEST.BBOX_AUG.ENABLED": Fixed(False, "one scale is tested"),
    "TEST.BBOX_AUG": NoEffect("of multi-scale testing"),
    **all_of(
        Fixed(False, "one loader serves all training sets"),
        "DATASETS",
        "ALTERNATIVE_TRAINING MULTISTAGE_TRAINING CLASS_CONCAT",
    ),
    "DATASETS.PROMPT_VERSION": Fixed("", "use DATASETS.CAPTION_PROMPT"),
    **all_of(Fixed(False, "a debugging option"), "DATASETS", "ONE_HOT NO_MINUS_ONE_FOR_ONE_HOT"),
    "DATASETS.CLASS_AGNOSTIC": Fixed(False, "every prompt has its names"),
    "DATASETS.SAMPLE_RATIO": Fixed(0.0, "make a smaller annotation file instead"),
    **all_of(Fixed((), "one stage of training", "integers"), "SOLVER", "MULTI_MAX_ITER MULTI_MAX_EPOCH"),
    "SOLVER.PROMPT_PROBING_LEVEL": Fixed(-1.0, "use SOLVER.TUNING_HIGHLEVEL_OVERRIDE"),
    "SOLVER.WARMUP_METHOD": Fixed("linear", "no released training has another"),
    "TEST.SUBSET": Fixed(-1, "a score over a part of the pictures would pass for the score of the set"),
    "TEST.USE_MULTISCALE": Fixed(False, "one scale is tested"),
    "GLIPKNOW.KNOWLEDGE_FILE": Fixed("", "prompts from a knowledge file are not offered"),
    "GLIPKNOW.PARALLEL_LANGUAGE_INPUT": Fixed(False, "prompts from a knowledge file are not offered"),
    "GLIPKNOW": NoEffect("of prompts from a knowledge file"),
}

TABLE: dict[str, Alias] = {**{old: Renamed(new) for old, new in _RENAMED.items()}, **_NO_EFFECT, **_FIXED}
