"""Names in released files of Faster R-CNN and RetinaNet, and in Caffe2's, against those of maskrcnn-benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskrcnn_benchmark.checkpoint.caffe2 import torch_name
from maskrcnn_benchmark.checkpoint.fit import longest_ends
from maskrcnn_benchmark.checkpoint.io import load_weights
from maskrcnn_benchmark.checkpoint.names import rename
from maskrcnn_benchmark.checkpoint.rules import FASTER_RCNN
from maskrcnn_benchmark.config import load_cfg
from maskrcnn_benchmark.modeling.build import build_detector
from tests.golden.common import golden_cases, load_case
from tests.golden.test_names import lists, read, without_memory


@pytest.mark.parametrize("path", golden_cases("dap", "c2_name_mapping*"))
def test_caffe2_names(path: Path) -> None:
    case, _ = load_case(path)
    assert {blob: torch_name(blob) for blob in case["rename"]} == case["rename"]
    blob_of = {name: blob for blob, name in case["rename"].items()}
    found = longest_ends(case["model key <- blob"], blob_of)
    assert {name: blob_of.get(found.get(name, "")) for name in case["model key <- blob"]} == case["model key <- blob"]


CONFIGS = {  # of the released name lists; one with another name gets a config by what is in it
    "faster_rcnn_mdconv_r50_fpn_coco81": "dcn/e2e_faster_rcnn_mdconv_R_50_FPN_1x",
    "faster_rcnn_r50_fpn_coco81": "e2e_faster_rcnn_R_50_FPN_1x",
    "faster_rcnn_r101_fpn_coco81": "e2e_faster_rcnn_R_101_FPN_1x",
    "faster_rcnn_r50_fpn_voc21": "imagenet1k/in1k_faster_rcnn_r50fpn_voc07",
    "faster_rcnn_r101_fpn_voc21": "imagenet22k/in22k_faster_rcnn_r101fpn_voc0712",
    "faster_rcnn_r50_fpn_dap_in1k_1001": "imagenet1k/dap_in1k_faster_rcnn_r50fpn",
    "faster_rcnn_r101_fpn_dap_in1k_1001": "imagenet1k/dap_in1k_faster_rcnn_r101fpn",
    "faster_rcnn_r50_fpn_dap_in22k_21842": "imagenet22k/dap_in22k_faster_rcnn_r50fpn",
    "faster_rcnn_r101_fpn_dap_in22k_21842_agnostic": "imagenet22k/dap_in22k_faster_rcnn_r101fpn",
    "retinanet_r50_fpn_81": "retinanet/retinanet_R-50-FPN_1x",
}


def by_content(names: dict[str, list[int]]) -> tuple[str, list[str]]:
    """Config and options of a network, read off its names and shapes."""
    if "rpn.head.cls_tower.0.weight" in names:
        classes = names["rpn.head.cls_logits.bias"][0] // 9 + 1
        return CONFIGS["retinanet_r50_fpn_81"], ["MODEL.RETINANET.NUM_CLASSES", str(classes)]
    deformable = any(".conv2.offset." in name for name in names)
    deep = "backbone.body.layer3.22.conv1.weight" in names
    kind = "faster_rcnn_mdconv_r50" if deformable else f"faster_rcnn_{'r101' if deep else 'r50'}"
    classes = names["roi_heads.box.predictor.cls_score.bias"][0]
    agnostic = names["roi_heads.box.predictor.bbox_pred.bias"][0] == 8
    opts = {"MODEL.ROI_BOX_HEAD.NUM_CLASSES": classes, "MODEL.CLS_AGNOSTIC_BBOX_REG": agnostic and classes > 2}
    return CONFIGS[f"{kind}_fpn_coco81"], [str(item) for pair in opts.items() for item in pair]


@pytest.mark.parametrize("path", lists("dap"))
def test_released_files_load_whole_with_their_configs(path: Path, tmp_path: Path) -> None:
    keys = read(path)
    config, opts = CONFIGS.get(path.stem), list[str]()
    if config is None:
        config, opts = by_content({name: shape for name, (_, shape) in keys.items()})
    with torch.device("meta"):
        model = build_detector(load_cfg(f"configs/{config}.yaml", opts=opts))
    torch.save({"model": without_memory(keys), "iteration": 1}, tmp_path / "released.pth")
    report = load_weights(model, tmp_path / "released.pth", rules=FASTER_RCNN)
    assert len(report.loaded) == len(keys)
    assert rename(report.loaded, FASTER_RCNN, outward=True).keys() == set(report.loaded)
    assert set(rename(report.loaded, FASTER_RCNN, outward=True).values()) == set(keys)
