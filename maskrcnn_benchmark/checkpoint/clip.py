"""Weights of CLIP's text encoder from released files."""

from __future__ import annotations

from pathlib import Path

from maskrcnn_benchmark.checkpoint.io import find_weights, read_state_dict
from maskrcnn_benchmark.errors import ConfigError, WeightsError
from maskrcnn_benchmark.text.clip_encoder import ACTIVATIONS, ClipText, ClipTextConfig

NOT_TEXT = ("visual.", "logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size", "attn_mask")


def load_clip_text(weights: str | Path, activation: str = "quick_gelu") -> ClipText:
    """CLIP's text encoder with the weights of an OpenCLIP file, or of the text half alone; ready to embed.

    Args:
        weights: A path, or a name in MODEL/. `mrb models` lists files that fit.
        activation: Of :data:`~maskrcnn_benchmark.text.clip_encoder.ACTIVATIONS`.

    Raises:
        WeightsError: the file is missing or damaged, or is of another model.
        ConfigError: no such activation.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"MODEL.ZEROSHOT_CLS.TEXT_ACTIVATION {activation!r}: choices are {', '.join(ACTIVATIONS)}; OpenAI's "
            "weights need quick_gelu"
        )
    path = find_weights(weights)
    whole = read_state_dict(path)
    state = {name.removeprefix("text."): value for name, value in whole.items() if not name.startswith(NOT_TEXT)}
    needed = ("token_embedding.weight", "positional_embedding", "text_projection")
    if lost := [name for name in needed if name not in state]:
        raise WeightsError(
            f"{path}: is no text encoder of CLIP: {lost[0]} is not among its {len(whole)} tensors; give a file of "
            "OpenCLIP (`mrb models clip-vit-b-32`)"
        )
    net = ClipText(ClipTextConfig.of_state(state, activation))
    ours = net.state_dict()
    odd = sorted(ours.keys() ^ state.keys()) or [n for n, value in state.items() if value.shape != ours[n].shape]
    if odd:
        raise WeightsError(f"{path}: does not fit CLIP's text encoder: {len(odd)} tensors differ, such as {odd[0]}")
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)
