"""Names of Caffe2: those of Detectron and of the classifiers of MSRA, as maskrcnn-benchmark calls them.

The table is that of https://github.com/facebookresearch/maskrcnn-benchmark (utils/c2_model_loading.py), as rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from maskrcnn_benchmark.errors import WeightsError

_ENDINGS = {"bn_s": "weight", "bn_b": "bias", "w": "weight", "b": "bias"}
_BLOB = re.compile(r"(?P<stem>.+?)_(?P<end>bn_s|bn_b|w|b)")
_BLOCK = re.compile(r"res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2a|2b|2c)")
_FPN = re.compile(r"fpn_(?P<kind>inner_|)res(?P<stage>[2-5])_\d+_sum(_lateral)?")
_BRANCHES = {
    "2a": ("conv1", "bn1"),
    "2b": ("conv2", "bn2"),
    "2c": ("conv3", "bn3"),
    "1": ("downsample.0", "downsample.1"),
}
_OTHERS = {
    "conv_rpn_fpn2": "rpn.head.conv",
    "rpn_cls_logits_fpn2": "rpn.head.cls_logits",
    "rpn_bbox_pred_fpn2": "rpn.head.bbox_pred",
    "pred": "fc1000",
}
_MOMENTUM = "_momentum"


def torch_names(blobs: Iterable[str]) -> dict[str, str]:
    """``{blob: name}``; blobs of an optimizer are left out.

    Raises:
        WeightsError: two blobs would get one name.
    """
    renamed: dict[str, str] = {}
    owner: dict[str, str] = {}
    for blob in blobs:
        if blob.endswith(_MOMENTUM):
            continue
        name = torch_name(blob)
        if name in owner:
            raise WeightsError(
                f"two blobs, {owner[name]} and {blob}, would both be called {name}: it is no known network"
            )
        renamed[blob], owner[name] = name, blob
    return renamed


def torch_name(blob: str) -> str:
    """``res4_22_branch2a_bn_s`` -> ``layer3.22.bn1.weight``; what is no weight keeps its name."""
    match = _BLOB.fullmatch(blob)
    if match is None:
        return blob
    stem, end = match["stem"], match["end"]
    norm, value = end.startswith("bn"), _ENDINGS[end]
    if block := _BLOCK.fullmatch(stem):
        part = _BRANCHES[block["branch"]][norm]
        return f"layer{int(block['stage']) - 1}.{block['block']}.{part}.{value}"
    if fpn := _FPN.fullmatch(stem):
        return f"fpn_{'inner' if fpn['kind'] else 'layer'}{int(fpn['stage']) - 1}.{value}"
    if norm:
        return f"{'bn1' if stem == 'res_conv1' else f'{stem}_bn'}.{value}"
    return f"{_OTHERS.get(stem, stem)}.{value}"
