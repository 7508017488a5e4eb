"""What the inner stages of a grounding detector hand on, under the names that golden cases use for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from maskrcnn_benchmark.modeling.backbone.language import LanguageFeatures
from maskrcnn_benchmark.modeling.backbone.swin import SwinBlock, SwinTransformer
from maskrcnn_benchmark.text.encoder import BertLayer, TextEmbeddings

Taps = dict[str, Tensor]


@contextmanager
def record_backbone(detector: nn.Module) -> Iterator[Taps]:
    """Outputs of patch embeddings, Swin blocks and stages, text embeddings and text layers.

    Blocks and text layers run in two halves where pictures and text meet; both end in their ``finish``.
    """
    taps: Taps = {}
    undo: list[Callable[[], None]] = []
    for name, module in detector.named_modules():
        if "dyhead_tower" in name:
            continue
        if isinstance(module, (SwinBlock, BertLayer)):
            ending = "" if isinstance(module, SwinBlock) else "[0]"
            module.finish = _recorded(module.finish, taps, name + ending)  # type: ignore[method-assign]
            undo.append(lambda module=module: delattr(module, "finish"))
        elif isinstance(module, TextEmbeddings):
            undo.append(module.register_forward_hook(_keep(taps, name)).remove)
        elif isinstance(module, SwinTransformer):
            undo.append(module.patch_embed.register_forward_hook(_keep_map(taps, f"{name}.patch_embed")).remove)
            for stage, layer in enumerate(module.layers[:-1]):
                hook = _keep_first(taps, f"{name}.layers.{stage}[3]")
                undo.append(layer.downsample.register_forward_hook(hook).remove)
    try:
        yield taps
    finally:
        for action in undo:
            action()
    _add_stages(detector, taps)


def _add_stages(detector: nn.Module, taps: Taps) -> None:
    """A stage hands on what its last block does; the last one has no way out of its own."""
    for name, module in detector.named_modules():
        if isinstance(module, SwinTransformer):
            for stage, layer in enumerate(module.layers):
                path = f"{name}.layers.{stage}"
                taps[f"{path}[0]"] = taps[f"{path}.blocks.{len(layer.blocks) - 1}"]
                taps.setdefault(f"{path}[3]", taps[f"{path}[0]"])


def _recorded(function: Callable[..., Tensor], taps: Taps, name: str) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        taps[name] = function(*args)
        return taps[name]

    return run


def _keep(taps: Taps, name: str) -> Any:
    return lambda module, inputs, output: taps.__setitem__(name, output)


def _keep_first(taps: Taps, name: str) -> Any:
    return lambda module, inputs, output: taps.__setitem__(name, output[0])


def _keep_map(taps: Taps, name: str) -> Any:
    return lambda module, inputs, output: taps.__setitem__(name, output[0].transpose(1, 2).unflatten(2, output[1]))


def language_taps(prefix: str, language: LanguageFeatures, hidden: Tensor, batch: int) -> Taps:
    """The dictionary of text features that the reference passes around; "aggregate" is the mean over tokens."""
    mask = language.mask.to(hidden.dtype)
    values = {
        "hidden": hidden,
        "embedded": language.embedded,
        "masks": mask,
        "aggregate": language.embedded.sum(1) / mask.sum(-1, keepdim=True),
    }
    return {f"{prefix}.{name}": value.expand(batch, *value.shape[1:]) for name, value in values.items()}


def fused_taps(detector: nn.Module, features: list[Tensor], language: LanguageFeatures) -> Taps:
    """The pyramid, and text where the reference has a text backbone of its own."""
    fused = hasattr(detector, "fusion_backbone")
    prefix = "fusion_backbone.backbone.fpn" if fused else "backbone.fpn"
    taps = {f"{prefix}[{level}]": x for level, x in enumerate(features)}
    if not fused:
        taps |= language_taps("language_backbone", language, language.hidden, len(features[0]))
    return taps


@contextmanager
def record_tower(head: nn.Module, features: list[Tensor], language: LanguageFeatures) -> Iterator[Taps]:
    """What each block of the head's tower hands on: all levels and the text, whichever of them it has changed."""
    taps: Taps = {}
    levels, hidden = features, language.hidden

    def hook(index: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal levels, hidden
            if isinstance(output, tuple):
                levels, hidden = output
            elif isinstance(output, list):
                levels = output
            else:
                hidden = output
            name = f"rpn.head.dyhead_tower.{index}"
            taps.update({f"{name}.visual[{level}]": x for level, x in enumerate(levels)})
            taps.update(language_taps(f"{name}.lang", language, hidden, len(levels[0])))

        return keep

    handles = [block.register_forward_hook(hook(index)) for index, block in enumerate(head.dyhead_tower)]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
