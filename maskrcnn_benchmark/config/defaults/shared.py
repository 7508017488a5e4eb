"""Keys of every system: pictures, data sets, the solver, evaluation.

Values are those of GLIP and FIBER where they have the key (https://github.com/microsoft/GLIP).
"""

from __future__ import annotations

from typing import Any


def tree() -> dict[str, Any]:
    """The groups beside ``MODEL``."""
    return {
        "INPUT": _input(),
        "AUGMENT": {
            "FLIP_PROB_TRAIN": 0.5,
            "VERTICAL_FLIP_PROB_TRAIN": 0.0,
            "MULT_MIN_SIZE_TRAIN": (),
            # at most by so much, from 0 (off); HUE up to 0.5, any colour
            "BRIGHTNESS": 0.0,
            "CONTRAST": 0.0,
            "SATURATION": 0.0,
            "HUE": 0.0,
            # of MDETR
            "CROP_PROB_TRAIN": 0.5,
            "CROP_FROM": (400, 500, 600),  # short sides before a crop, one of them by chance
            "CROP_SIZES": (384, 1333),  # least and largest side of a crop
        },
        "DATASETS": _datasets(),
        "DATALOADER": {
            "NUM_WORKERS": 4,
            "SIZE_DIVISIBILITY": 0,  # a batch is padded to a multiple of this many pixels; 0: as large as its largest
            "ASPECT_RATIO_GROUPING": True,
            "SAMPLER": "shared",  # batches of all processes together; chunks: of each one, as in maskrcnn-benchmark
            "USE_RANDOM_SEED": False,
            "EPOCH_CHUNKS": 1,  # parts of the training data; an epoch is one of them
        },
        "SOLVER": _solver(),
        "TEST": _test(),
        "OUTPUT_DIR": "OUTPUT",
    }


def _input() -> dict[str, Any]:
    return {
        "MIN_SIZE_TRAIN": 800,  # short side, pixels; of several sizes each picture gets one by chance
        "MAX_SIZE_TRAIN": 1333,  # long side, pixels
        "MIN_SIZE_TEST": 800,
        "MAX_SIZE_TEST": 1333,
        "PIXEL_MEAN": (102.9801, 115.9465, 122.7717),  # in the order that TO_BGR255 makes
        "TEST_PIXEL_MEAN": (),  # in evaluation; none: PIXEL_MEAN
        "PIXEL_STD": (1.0, 1.0, 1.0),
        "TO_BGR255": True,  # blue, green, red from 0 to 255; else red, green, blue from 0 to 1
    }


def _datasets() -> dict[str, Any]:
    return {
        "TRAIN": (),
        "TEST": (),
        "TRAIN_DATASETNAME_SUFFIX": "",
        "TEST_DATASETNAME_SUFFIX": "",
        # the class names: from the annotation file, or OVERRIDE_CATEGORY instead; how they become a prompt
        "USE_OVERRIDE_CATEGORY": False,
        "OVERRIDE_CATEGORY": None,  # [{"id": 1, "name": "fish"}, ...]
        "USE_CAPTION_PROMPT": False,
        "CAPTION_PROMPT": None,  # [{"prefix": "", "name": "fish", "suffix": ""}, ...], one per class
        "USE_SUPRESS_QUERY": False,
        "SUPRESS_QUERY": None,  # words without a class, put after the last name
        "SEPARATION_TOKENS": " ",
        "ADD_DET_PROMPT": False,  # "object detection : " before the names
        "DISABLE_SHUFFLE": False,
        "RANDOM_SAMPLE_NEG": -1,  # most names of absent classes in a training prompt; -1: 85
        "CONTROL_PROB": (),  # how often: one absent name, none, as many as allowed, (unused)
        "SPECIAL_SAFEGUARD_FOR_COCO_GROUNDING": False,  # training prompts for more classes than fit
        # boxes
        "DISABLE_CLIP_TO_IMAGE": False,
        "USE_CROWD": False,
        "MAX_BOX": -1,
        # few-shot selection, and how often a training set is repeated (-1: once)
        "FEW_SHOT": 0,
        "SHUFFLE_SEED": 0,
        "FEW_SHOT_SHUFFLE": False,  # SHUFFLE_SEED counts for sets read as grounding too; not so in the original
        "COCO_COPY": 1,
        "LVIS_COPY": 1,
        "FLICKR_COPY": 1,
        "MIXED_COPY": 1,
        "OBJECT365_COPY": 1,
        "GENERAL_COPY": -1,
        "GENERAL_COPY_TEST": -1,
        # evaluation
        "FLICKR_GT_TYPE": "separate",
        "LVIS_USE_NORMAL_AP": False,
    }


def _solver() -> dict[str, Any]:
    return {
        "OPTIMIZER": "SGD",
        "BASE_LR": 0.001,
        "LANG_LR": 1e-5,
        "BACKBONE_BODY_LR_FACTOR": 1.0,
        "BACKBONE_LR": -1.0,  # from 0 on: of the backbone, instead of BASE_LR times the factor
        "BIAS_LR_FACTOR": 2.0,
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 0.0005,
        "WEIGHT_DECAY_BIAS": 0.0,
        "WEIGHT_DECAY_NORM_FACTOR": 1.0,
        "WEIGHT_DECAY_SCHEDULE": False,
        "WEIGHT_DECAY_SCHEDULE_RATIO": 0.667,
        "MAX_ITER": 40000,
        "MAX_EPOCH": 0.0,  # above 0 it decides instead of MAX_ITER
        "STEPS": (30000,),  # iterations, or fractions of MAX_ITER
        "STEPS_EPOCH": (),  # with MAX_EPOCH: epochs instead
        "GAMMA": 0.1,
        "MIN_LR": 1e-6,
        "USE_COSINE": False,
        "USE_AUTOSTEP": False,  # drop the rate when the score no longer grows
        "STEP_PATIENCE": 5,
        "MDETR_SCHEDULE": "",  # step | multistep | linear_with_warmup | all_linear_with_warmup; none: the keys above
        "MDETR_LR_DROP": 35,  # with it: epochs to the first drop
        "WARMUP_FRACTION": 0.01,  # with it: share of the training that a linear schedule warms up in
        "WARMUP_FACTOR": 1.0 / 3,
        "WARMUP_ITERS": 500,
        "CLIP_GRADIENTS": {"ENABLED": False, "CLIP_TYPE": "full_model", "CLIP_VALUE": 0.0},
        "USE_AMP": False,
        "AMP_DTYPE": "auto",  # bf16 | fp16; auto: bf16 where the accelerator has it, else fp16; on a CPU no AMP
        "MODEL_EMA": 0.0,  # decay of the averaged weights; 0: there are none
        "USE_EMA_FOR_MONITOR": True,  # with MODEL_EMA, evaluations score the averaged weights; False: the raw ones
        "IMS_PER_BATCH": 16,  # over all processes
        "ACCUMULATION": 1,  # batches whose gradients make one step
        "MAX_NEG_PER_BATCH": 0.1,
        "CHECKPOINT_PERIOD": 2500,  # iterations from one checkpoint to the next; 0: the last one alone
        "CHECKPOINT_PER_EPOCH": -1.0,
        "CHECKPOINT_EPOCH": 0.0,  # with MAX_EPOCH: epochs from one checkpoint to the next; 0: the keys above decide
        "TEST_PERIOD": 0,  # iterations from one evaluation to the next; 0: TEST.DURING_TRAINING decides
        "CHECKPOINTS_KEPT": 3,  # the newest so many, beside the best and the final one; 0: all
        "LOG_PERIOD": 20,  # steps in a row of metrics.jsonl and a line of the log
        "PICTURES_PERIOD": 0,  # steps between pictures of what the training sees, in OUTPUT_DIR/seen; 0: none
        "ON_BAD_LOSS": "stop",  # a loss that is not finite: stop | skip the batch | rollback to the last checkpoint
        "TEST_WITH_INFERENCE": False,
        "AUTO_TERMINATE_PATIENCE": -1,
        "FIND_UNUSED_PARAMETERS": True,
        "TUNING_HIGHLEVEL_OVERRIDE": None,  # full | linear_prob | language_prompt_v1 ... v4
        "SEED": 0,
    }


def _test() -> dict[str, Any]:
    return {
        "EVAL_TASK": "",  # detection: class names are the prompt; grounding: the caption of each picture
        "IMS_PER_BATCH": 16,  # pictures in a batch, for any number of processes
        "DETECTIONS_PER_IMG": 100,  # of RetinaNet; other detectors have a key of their own
        "CHUNKED_EVALUATION": -1,  # most classes in one prompt; -1: as many as fit
        "MDETR_STYLE_AGGREGATE_CLASS_NUM": -1,  # columns of the score table; -1: MODEL.DYHEAD.NUM_CLASSES - 1
        "DURING_TRAINING": False,
        "EVAL_EPOCH_PERIOD": 0.0,  # with SOLVER.MAX_EPOCH: epochs from one evaluation to the next; 0: other keys decide
        "USE_EMA": False,  # of a checkpoint with averaged weights (model_ema), score those
        "RETENTION_DATASET": "",  # scored before and after fine-tuning: what the network still knows of other words
        "MIXED_BATCHES": False,  # batches of pictures of any shape, as the reference makes them
        "ON_BAD_IMAGE": "stop",
        "EVAL_ENGINE": "auto",
        "VOC_PROTOCOL": "lineage",  # or 07, 12, lineage_area, lineage_skip_empty, lineage_area_skip_empty
        "PROMPTS_TOGETHER": 0,  # prompts that the network sees at once; 0: 1 on a CPU, else 8
        "EXPECTED_RESULTS": (),  # numbers that an evaluation should give: [task, metric, [mean, std]] each
        "EXPECTED_RESULTS_SIGMA_TOL": 4.0,  # standard deviations that they may be off
        "PAD_TEXT": False,  # pad prompts to MAX_QUERY_LEN, as the reference does
    }


KINDS = {
    "INPUT.MIN_SIZE_TRAIN": "sizes",
    "INPUT.TEST_PIXEL_MEAN": "floats",
    "AUGMENT.MULT_MIN_SIZE_TRAIN": "integers",
    "DATASETS.TRAIN": "names",
    "DATASETS.TEST": "names",
    "DATASETS.OVERRIDE_CATEGORY": "categories",
    "DATASETS.CAPTION_PROMPT": "caption prompt",
    "DATASETS.SUPRESS_QUERY": "words",
    "DATASETS.CONTROL_PROB": "floats",
    "TEST.EXPECTED_RESULTS": "expected results",
    "SOLVER.STEPS": "numbers",
    "SOLVER.STEPS_EPOCH": "floats",
    "SOLVER.TUNING_HIGHLEVEL_OVERRIDE": "optional text",
}

TRAINING_KEYS = (
    "SOLVER",
    "AUGMENT",
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MAX_SIZE_TRAIN",
    "DATALOADER.ASPECT_RATIO_GROUPING",
    "DATALOADER.SAMPLER",
    "DATALOADER.USE_RANDOM_SEED",
    "DATALOADER.EPOCH_CHUNKS",
    "DATASETS.TRAIN",
    "DATASETS.TRAIN_DATASETNAME_SUFFIX",
    "DATASETS.ADD_DET_PROMPT",
    "DATASETS.DISABLE_SHUFFLE",
    "DATASETS.RANDOM_SAMPLE_NEG",
    "DATASETS.CONTROL_PROB",
    "DATASETS.SPECIAL_SAFEGUARD_FOR_COCO_GROUNDING",
    "DATASETS.DISABLE_CLIP_TO_IMAGE",
    "DATASETS.USE_CROWD",
    "DATASETS.MAX_BOX",
    "DATASETS.FEW_SHOT",
    "DATASETS.SHUFFLE_SEED",
    "DATASETS.FEW_SHOT_SHUFFLE",
    "DATASETS.COCO_COPY",
    "DATASETS.LVIS_COPY",
    "DATASETS.FLICKR_COPY",
    "DATASETS.MIXED_COPY",
    "DATASETS.OBJECT365_COPY",
    "DATASETS.GENERAL_COPY",
    "DATASETS.GENERAL_COPY_TEST",
    "TEST.DURING_TRAINING",
    "TEST.EVAL_EPOCH_PERIOD",
    "TEST.RETENTION_DATASET",
)
