"""The backbone of FIBER: Swin and RoBERTa whose last layers look at each other.

"Coarse-to-Fine Vision-Language Pre-training with Fusion in the Backbone" (Dou et al., NeurIPS 2022),
https://github.com/microsoft/FIBER, fusion versions v2 and v3. What comes before the first look is computed once per
picture and once per prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from maskrcnn_benchmark.modeling.backbone.fpn import FPN
from maskrcnn_benchmark.modeling.backbone.language import LanguageFeatures, TextTower, make_tunable
from maskrcnn_benchmark.modeling.backbone.swin import Attended, Size, SwinBlock, SwinTransformer, TextMemory
from maskrcnn_benchmark.text.encoder import BertLayer, KeyValue, TextEncoder, additive_mask

FIRST, LAST = 2, 3  # stages (from 0) with fused blocks


@dataclass(frozen=True)
class FusedImage:
    """All of B pictures that no text has touched."""

    tokens: Tensor  # (B, HW, C), input of the first fused block
    size: Size  # (H, W) of these tokens
    attended: Attended  # first half of that block
    key_value: KeyValue  # what the first fused text layer attends to, each (B, heads, HW, d)
    lateral: Tensor  # C3 on its way into the pyramid


@dataclass(frozen=True)
class FusedText:
    """All of P prompts that no picture has touched."""

    hidden: Tensor  # (P, L, D), input of the first fused layer
    attended: Tensor  # (P, L, D), first half of that layer
    memory: TextMemory  # what the first fused block attends to
    attention_mask: Tensor  # (P, L) int64, 1 = token


class SwinFpn(nn.Module):
    """Swin and a feature pyramid."""

    def __init__(self, body: SwinTransformer, fpn: FPN) -> None:
        super().__init__()
        self.body, self.fpn = body, fpn

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised pixels -> P3..P7, (B, C, H_l, W_l)."""
        return self.fpn(self.body(pixels))


class FusedBackbone(nn.Module):
    """Swin with text, RoBERTa with pictures, and the pyramid; names as under ``fusion_backbone.`` of a checkpoint.

    Args:
        backbone: Its Swin has text in the last blocks of stage 2 and in all of stage 3 (from 0).
        encoder: Its ``image_dims`` say which layers attend to pictures: one for each of those blocks, in their order.
        tunable: Add a learnt vector for each position to the embeddings, the only thing that prompt tuning trains.
    """

    def __init__(self, backbone: SwinFpn, encoder: TextEncoder, tunable: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.language_backbone = TextTower(encoder)
        self.tunable_linear = make_tunable(encoder.config.hidden) if tunable else None
        self.text_layers = sorted(encoder.config.image_dims)
        blocks = [sum(block.attn.has_text for block in backbone.body.layers[stage].blocks) for stage in (FIRST, LAST)]
        if not all(blocks) or sum(blocks) != len(self.text_layers):
            raise ValueError(f"{blocks} blocks with text cannot pair with the text layers {self.text_layers}")
        self.first_block = len(backbone.body.layers[FIRST].blocks) - blocks[0]

    def encode_image(self, pixels: Tensor) -> FusedImage:
        """(B, 3, H, W) normalised pixels, up to the first fused block."""
        body = self.backbone.body
        x, size = body.patch_embed(pixels)
        for stage in range(FIRST):
            x = body.run(stage, x, size)
            c3 = (x, size)
            x, size = body.layers[stage].downsample(x, size)
        x = body.run(FIRST, x, size, stop=self.first_block)
        block, layer = self._pairs(FIRST)[0]
        lateral = self.backbone.fpn.lateral(0, body.output(FIRST - 1, *c3))
        return FusedImage(x, size, block.attend(x, size), layer.image_key_value(x), lateral)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> FusedText:
        """(P, L) ids and mask (1 = token), up to the first fused layer. Padding does not change what tokens get."""
        model = self.language_backbone.body.model
        hidden = model.embed(input_ids, attention_mask)
        if self.tunable_linear is not None:
            hidden = hidden + self.tunable_linear.weight[: hidden.shape[1]]
        hidden = model.run(hidden, attention_mask, 0, self.text_layers[0])
        mask = additive_mask(attention_mask, hidden.dtype)
        block, layer = self._pairs(FIRST)[0]
        memory = block.attn.text_memory(hidden, mask)
        return FusedText(hidden, layer.attend_text(hidden, mask), memory, attention_mask)

    def fuse(self, image: FusedImage, text: FusedText) -> tuple[list[Tensor], LanguageFeatures]:
        """What depends on both: P3..P7 (B, C, H_l, W_l), and the text for each picture.

        Either batch may be 1: one prompt for B pictures, or one picture for P prompts. The block and the layer of a
        pair both read what the pair before left.
        """
        body, fpn = self.backbone.body, self.backbone.fpn
        (block, layer), *pairs = self._pairs(FIRST)
        mask = text.memory.mask
        x = block.finish(image.tokens, image.attended, text.memory)
        hidden = layer.finish(text.hidden, text.attended, image.key_value)
        x, hidden = self._run(pairs, x, image.size, hidden, mask)
        c4 = body.output(FIRST, x, image.size)
        x, size = body.layers[FIRST].downsample(x, image.size)
        x, hidden = self._run(self._pairs(LAST), x, size, hidden, mask)
        c5 = body.output(LAST, x, size)
        attention_mask = text.attention_mask.expand(len(hidden), -1)
        embedded = hidden * attention_mask[..., None].to(hidden.dtype)
        maps = fpn.merge([image.lateral, fpn.lateral(1, c4), fpn.lateral(2, c5)], c5)
        return maps, LanguageFeatures(hidden, embedded, attention_mask)

    def _run(
        self, pairs: list[tuple[SwinBlock, BertLayer]], x: Tensor, size: Size, hidden: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        for block, layer in pairs:
            memory = block.attn.text_memory(hidden, mask)
            x, hidden = self.backbone.body.run_block(block, x, size, memory), layer(hidden, mask, x)
        return x, hidden

    def _pairs(self, stage: int) -> list[tuple[SwinBlock, BertLayer]]:
        """The fused blocks of a stage, each with its text layer."""
        blocks = [block for block in self.backbone.body.layers[stage].blocks if block.attn.has_text]
        layers = [self.language_backbone.body.model.layers[i] for i in self.text_layers]
        chosen = layers[: len(blocks)] if stage == FIRST else layers[-len(blocks) :]
        return list(zip(blocks, chosen, strict=True))
