"""The config: one yacs tree, filled from defaults, YAML files and the command line, then frozen for good.

    cfg = load_cfg("configs/pretrain/mixed_nococo_flickr_objects365.yaml", opts=["TEST.IMS_PER_BATCH", "1"])

Only ``build(cfg)``-like functions, ``plan(cfg)`` and the data loader read it; modules take plain arguments.
"""

from maskrcnn_benchmark.config.check import problems
from maskrcnn_benchmark.config.defaults import TRAINING_KEYS, get_defaults
from maskrcnn_benchmark.config.load import load_cfg
from maskrcnn_benchmark.config.node import Cfg, is_under

__all__ = ["TRAINING_KEYS", "Cfg", "get_defaults", "is_under", "load_cfg", "problems"]
