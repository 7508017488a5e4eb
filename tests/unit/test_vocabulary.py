"""Names of the classes of detectors that compare pictures with embeddings of names."""

from __future__ import annotations

from pathlib import Path

from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.data.drawn import CLASSES
from maskrcnn_benchmark.engine.vocabulary import build_vocabulary
from maskrcnn_benchmark.modeling.build import build_detector
from tests.narrow_decola import CONFIGS, narrow_cfg


def test_the_bundled_names_are_not_those_of_a_network_of_another_size(tmp_path: Path) -> None:
    """The table of LVIS that released configs speak of is not there; the weights bring fewer classes."""
    released = load_cfg(CONFIGS["phase 2"]).MODEL.ZEROSHOT_CLS.WEIGHT_PATH
    cfg = narrow_cfg("phase 2", tmp_path, MODEL__ZEROSHOT_CLS__WEIGHT_PATH=released)
    vocabulary = build_vocabulary(cfg, build_detector(cfg), lambda: CLASSES)
    assert vocabulary is not None
    assert vocabulary.names == CLASSES
