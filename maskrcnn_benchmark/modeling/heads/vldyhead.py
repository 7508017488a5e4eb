"""VLDyHead of GLIP and FIBER: a DyHead tower, box and centerness heads, and words as the weights of the classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.layers.recompute import recomputed
from maskrcnn_benchmark.layers.scale import Scale
from maskrcnn_benchmark.modeling.backbone.language import LanguageFeatures
from maskrcnn_benchmark.modeling.criterion.grounding import GroundingCriterion
from maskrcnn_benchmark.modeling.heads.anchors import AnchorGenerator
from maskrcnn_benchmark.modeling.heads.dyhead import DyConv
from maskrcnn_benchmark.modeling.heads.outputs import HeadOutputs, TrainingOutputs
from maskrcnn_benchmark.modeling.heads.vl_fusion import VLFuse
from maskrcnn_benchmark.modeling.heads.word_heads import FeatureResizer, WordGuesser
from maskrcnn_benchmark.modeling.interface import ALONE, Batch, Losses, Peers
from maskrcnn_benchmark.text.encoder import additive_mask

LEVELS = 5  # P3..P7


class VLDyHead(nn.Module):
    """Tower and predictions of one location.

    Args:
        channels: Width of the pyramid levels and of the tower.
        num_convs: DyHead blocks.
        text_dim: Width of the text features.
        num_classes: Outputs of the fixed classifier, which no released model uses but all checkpoints hold.
        norm_groups: Groups of the tower's GroupNorms.
        log_scale: Initial logarithm of the temperature of word logits.
        prior: Initial probability of every class and word.
        text_layer: Makes a transformer layer for text. Given, every block starts with fusion of pictures and words,
            as in GLIP; None: the tower sees pictures only, as in FIBER, whose backbone has fused them already.
        fused_text: With fusion, whether word logits come from the tower's text, or from the text that went in (there
            is no text layer in the last block then).
        losses: Names of the losses that the head is trained with; each brings its parts. Word logits are those of
            ``loss_dot_product_token``, without it those of ``loss_token``. The fixed classifier is frozen without
            ``loss_cls``.
        num_tokens: Places in a text, each of which ``loss_token`` has a channel for.
        align_width: Of the space in which ``loss_contrastive_align`` compares pictures and words.
        vocab_size: Words that ``mlm_loss`` chooses from.
        text_eps: Of the LayerNorm that ``mlm_loss`` has.
        checkpointing: In training, compute what is inside the tower's layers again in the backward pass.
    """

    dot_product_projection_text: nn.Linear | None
    token_logits: nn.Conv2d | None
    contrastive_align_projection_image: nn.Conv2d | None
    mlm_head: WordGuesser | None

    def __init__(
        self,
        channels: int = 256,
        num_convs: int = 6,
        text_dim: int = 768,
        num_classes: int = 80,
        norm_groups: int = 16,
        log_scale: float = 0.0,
        prior: float = 0.01,
        text_layer: Callable[[], nn.Module] | None = None,
        fused_text: bool = True,
        losses: Collection[str] = ("loss_dot_product_token",),
        num_tokens: int = 256,
        align_width: int = 64,
        vocab_size: int = 0,
        text_eps: float = 1e-12,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        self.fused, self.fused_text = text_layer is not None, fused_text and text_layer is not None
        tower: list[nn.Module] = []
        for block in range(num_convs):
            if text_layer is not None:
                last = block == num_convs - 1
                tower.append(VLFuse(channels, text_dim, layer_scale=1.0 / num_convs))
                tower.append(nn.Identity() if last and not fused_text else text_layer())
            tower.append(DyConv(channels, norm_groups))
        self.dyhead_tower = nn.ModuleList(tower)
        bias = -math.log((1 - prior) / prior)
        self.cls_logits = _predictor(channels, num_classes, bias)
        self.bbox_pred = _predictor(channels, 4)
        self.centerness = _predictor(channels, 1)
        self.cls_logits.requires_grad_("loss_cls" in losses)
        self.classified = "loss_cls" in losses
        self.scales = nn.ModuleList(Scale() for _ in range(LEVELS))
        self.log_scale = nn.Parameter(torch.full((1,), float(log_scale)))
        self.dot_product_projection_text = self.token_logits = self.contrastive_align_projection_image = None
        self.mlm_head = WordGuesser(text_dim, vocab_size, text_eps) if "mlm_loss" in losses else None
        if "loss_dot_product_token" in losses:
            self.dot_product_projection_text = nn.Linear(text_dim, channels)
            self.bias_lang = nn.Parameter(torch.zeros(text_dim))
            self.bias0 = nn.Parameter(torch.full((1,), bias))
        if "loss_token" in losses:
            self.token_logits = _predictor(channels, num_tokens, bias)
        if "loss_contrastive_align" in losses:
            self.contrastive_align_projection_image = _predictor(channels, align_width)
            self.contrastive_align_projection_text = nn.Linear(channels, align_width)

    def forward(
        self, features: Sequence[Tensor], language: LanguageFeatures, tokens: Tensor | None = None
    ) -> HeadOutputs:
        """Predictions of all levels.

        Args:
            features: P3..P7, (B, C, H_l, W_l).
            language: Text of batch B, or of batch 1 for all pictures.
            tokens: (M,) int64, the positions that logits are wanted for; None: all L of them.

        Returns:
            ``token_logits`` have M (or L) columns; ``cls_logits`` are left out, see :meth:`class_logits`.
        """
        levels, text = self.run_tower(features, language)
        logits = self.word_logits(levels, text, tokens)
        if logits is None:
            raise ConfigError(
                "this network scores no words: train it with MODEL.DYHEAD.FUSE_CONFIG.USE_TOKEN_LOSS or "
                "USE_DOT_PRODUCT_TOKEN_LOSS"
            )
        return HeadOutputs(*self.boxes(levels), logits)

    def learn(
        self,
        features: Sequence[Tensor],
        levels: Sequence[Tensor],
        text: Tensor,
        resized: Tensor | None,
        hidden: Tensor | None,
    ) -> TrainingOutputs:
        """Predictions of all levels, and what the losses of this head read besides.

        Args:
            features: What went into the tower.
            levels: What came out of it, and with it:
            text: (B, L, D).
            resized: (B, L, C) text for ``loss_contrastive_align``.
            hidden: (B, L) bool, tokens whose words ``mlm_loss`` wants guessed.
        """
        places = self.token_logits
        return TrainingOutputs(
            *self.boxes(levels),
            token_logits=self.word_logits(levels, text) or (),
            cls_logits=self.class_logits(levels) if self.classified else None,
            place_logits=None if places is None else [_cells(places(x)) for x in levels],
            align_logits=None if resized is None else self.align(levels, resized),
            guesses=None if hidden is None or self.mlm_head is None else self.mlm_head(text[hidden]),
            pyramid=features,
            text=text,
        )

    def boxes(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Box deltas (B, 4, H_l, W_l) and centerness logits (B, 1, H_l, W_l) of levels that have left the tower."""
        deltas = [scale(self.bbox_pred(x)) for scale, x in zip(self.scales, levels, strict=True)]
        return deltas, [self.centerness(x) for x in levels]

    def word_logits(self, levels: Sequence[Tensor], text: Tensor, tokens: Tensor | None = None) -> list[Tensor] | None:
        """(B, H_l * W_l, M) logits of the M ``tokens`` of the text, or of all; None: no part of the head makes any."""
        if self.dot_product_projection_text is not None:
            words, bias = self.project_words(text if tokens is None else text[:, tokens])
            return [_word_logits(x, words, bias) for x in levels]
        if self.token_logits is not None:
            columns = slice(text.shape[1]) if tokens is None else tokens
            return [_cells(self.token_logits(x))[..., columns] for x in levels]
        return None

    def align(self, levels: Sequence[Tensor], resized: Tensor) -> list[Tensor]:
        """(B, H_l * W_l, L) cosines of cells and tokens (B, L, C), divided by the temperature."""
        assert self.contrastive_align_projection_image is not None
        words = F.normalize(self.contrastive_align_projection_text(resized), dim=-1).transpose(1, 2)
        cells = (F.normalize(_cells(self.contrastive_align_projection_image(x)), dim=-1) for x in levels)
        return [x @ words / self.log_scale.exp() for x in cells]

    def run_tower(self, features: Sequence[Tensor], language: LanguageFeatures) -> tuple[list[Tensor], Tensor]:
        """Levels after the tower, and the text (1 or B, L, D) that word logits come from."""
        levels, hidden, mask = list(features), language.hidden, language.mask
        if not self.fused:
            for block in self.dyhead_tower:
                levels = recomputed(block, self.checkpointing)(levels)
            return levels, language.embedded
        batch = len(levels[0])
        hidden, mask = hidden.expand(batch, -1, -1), mask.expand(batch, -1)
        hidden_mask = additive_mask(mask, hidden.dtype)
        for block in self.dyhead_tower:
            run = recomputed(block, self.checkpointing)
            if isinstance(block, VLFuse):
                levels, hidden = run(levels, hidden, mask)
            elif isinstance(block, DyConv):
                levels = run(levels)
            elif not isinstance(block, nn.Identity):
                hidden = run(hidden, hidden_mask)
        return levels, hidden if self.fused_text else language.embedded

    def project_words(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text (B, L, D) to the classifier's weights (B, L, C), temperature included, and biases (B, L)."""
        assert self.dot_product_projection_text is not None
        unit = F.normalize(text, dim=-1)
        words = self.dot_product_projection_text(unit / 2) / self.log_scale.exp()
        return words, unit @ self.bias_lang + self.bias0

    def class_logits(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits (B, num_classes, H_l, W_l) of the fixed classifier, from levels that have left the tower."""
        return [self.cls_logits(x) for x in features]


class GroundingRPN(nn.Module):
    """The head and its anchors, under the names of released checkpoints.

    Args:
        head: The network.
        anchor_generator: Its anchors.
        tunable: A vector for each position of a text, the only thing that prompt tuning of GLIP trains.
        criterion: Losses, for training.
        resizer: Text on its way to ``loss_contrastive_align``.
    """

    def __init__(
        self,
        head: VLDyHead,
        anchor_generator: AnchorGenerator,
        tunable: nn.Linear | None = None,
        criterion: GroundingCriterion | None = None,
        resizer: FeatureResizer | None = None,
    ):
        super().__init__()
        self.head = head
        self.anchor_generator = anchor_generator
        self.tunable_linear = tunable
        self.loss_evaluator = criterion
        self.resizer = resizer

    def tune(self, language: LanguageFeatures) -> LanguageFeatures:
        """Text of the text backbone, with what prompt tuning has learnt; padding gets its share too, as released."""
        if self.tunable_linear is None:
            return language
        learnt = self.tunable_linear.weight[: language.hidden.shape[1]]
        return replace(language, hidden=language.hidden + learnt, embedded=language.embedded + learnt)

    def forward(
        self, features: Sequence[Tensor], language: LanguageFeatures, tokens: Tensor | None = None
    ) -> tuple[HeadOutputs, list[Tensor]]:
        """Predictions, and anchors (A_l, 4) xyxy of every level in pixels of the network's input."""
        return self.head(features, language, tokens), self.anchors(features)

    def learn(
        self, features: Sequence[Tensor], language: LanguageFeatures, batch: Batch, peers: Peers = ALONE
    ) -> Losses:
        """Losses of a batch, from its pyramid and the text of each picture."""
        if self.loss_evaluator is None:
            raise ValueError("this head has no losses: give it a criterion")
        levels, text = self.head.run_tower(features, language)
        resized = None if self.resizer is None else self.resizer(text)
        hidden = None if batch.word_labels is None else batch.word_labels >= 0
        outputs = self.head.learn(features, levels, text, resized, hidden)
        return self.loss_evaluator(outputs, self.anchors(features), batch, language.mask, peers)

    def anchors(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(A_l, 4) xyxy of every level in pixels of the network's input."""
        return self.anchor_generator([(x.shape[-2], x.shape[-1]) for x in features])


def _predictor(channels: int, outputs: int, bias: float = 0.0) -> nn.Conv2d:
    conv = nn.Conv2d(channels, outputs, 1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
    return conv


def _cells(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def _word_logits(x: Tensor, words: Tensor, bias: Tensor) -> Tensor:
    """Level (B, C, H, W), words (1 or B, L, C) and biases (1 or B, L) to logits (B, H * W, L)."""
    words, bias = words.expand(len(x), -1, -1), bias.expand(len(x), -1)
    return torch.baddbmm(bias[:, None, :], _cells(x), words.transpose(1, 2)).clamp(-50000.0, 50000.0)
