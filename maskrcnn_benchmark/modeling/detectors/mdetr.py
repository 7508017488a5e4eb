"""MDETR (Kamath et al., ICCV 2021, https://github.com/ashkamath/mdetr): finds what a caption speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.layers.mlp import MLP
from maskrcnn_benchmark.layers.position import LearnedPosition, SinePosition
from maskrcnn_benchmark.modeling.assign.hungarian import HungarianMatcher
from maskrcnn_benchmark.modeling.backbone.build import build_mdetr_body, text_config
from maskrcnn_benchmark.modeling.criterion.set import SetCriterion
from maskrcnn_benchmark.modeling.detectors import DETECTORS
from maskrcnn_benchmark.modeling.heads.outputs import QueryOutputs
from maskrcnn_benchmark.modeling.heads.query_decode import Answers, find_objects, find_phrases, own_words
from maskrcnn_benchmark.modeling.interface import ALONE, Batch, Detector, ImageState, Losses, Peers, TextState
from maskrcnn_benchmark.modeling.transformer.mdetr import Memory, TextFeatures, Transformer
from maskrcnn_benchmark.structures import Detections, ImageBatch, ImageMeta, Prompt, TextBatch
from maskrcnn_benchmark.structures.prompt import ANYTHING, OWN_WORDS
from maskrcnn_benchmark.text.encoder import PooledTextEncoder
from maskrcnn_benchmark.text.positive_map import WIDTH

POSITIONS = {"sine": SinePosition, "learned": LearnedPosition}


@dataclass(frozen=True)
class ImageFeatures:
    """B pictures, without their texts."""

    cells: Tensor  # (B, D, H, W) at stride 32 (16 where the body is dilated)
    positions: Tensor  # (B, D, H, W)
    padding: Tensor  # (B, H, W) bool, True = padding
    maps: tuple[Tensor, ...]  # at strides 16, 8 and 4, for masks; else none


@dataclass(frozen=True)
class Seen:
    """Pictures and texts together."""

    memory: Memory
    states: Tensor  # (N, B, Q, D) of the queries after each decoder layer


class BackboneBody(nn.Module):
    """The body, one name deeper."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body


class Mdetr(Detector):
    """Queries that look at picture and caption together.

    Args:
        body: Pixels -> maps at strides 4 to 32, whose widths are its ``channels``.
        position: Of the cells of the last map.
        transformer: Text encoder, joint encoder and decoder.
        criterion: Losses.
        num_queries: Most objects that can be found.
        width: Of the transformer.
        align_width: Of the space in which queries and tokens are compared, and pictures and texts.
        align: Whether queries and tokens are compared.
    """

    def __init__(
        self,
        body: nn.Module,
        position: nn.Module,
        transformer: Transformer,
        criterion: SetCriterion,
        num_queries: int = 100,
        width: int = 256,
        align_width: int = 64,
        align: bool = True,
    ) -> None:
        super().__init__()
        channels: Sequence[int] = body.channels  # type: ignore[assignment]
        self.criterion = criterion
        self.backbone = nn.ModuleList([BackboneBody(body), position])
        self.input_proj = nn.Conv2d(channels[-1], width, 1)
        self.query_embed = nn.Embedding(num_queries, width)
        self.transformer = transformer
        self.class_embed = nn.Linear(width, WIDTH)
        self.bbox_embed = MLP(width, width, 4, 3)
        self.contrastive_align_projection_image = nn.Linear(width, align_width) if align else None
        self.contrastive_align_projection_text = nn.Linear(width, align_width) if align else None
        self.contrastive_projection_image: nn.Module | None = None
        self.contrastive_projection_text: nn.Module | None = None
        if transformer.CLS is not None:
            self.contrastive_projection_image = nn.Linear(width, align_width, bias=False)
            hidden = transformer.text_encoder.config.hidden
            self.contrastive_projection_text = nn.Linear(hidden, align_width, bias=False)

    @property
    def body(self) -> nn.Module:
        return cast("BackboneBody", self.backbone[0]).body

    def encode_image(self, images: ImageBatch) -> ImageState:
        return self.encode_maps(images, keep=False)

    def encode_maps(self, images: ImageBatch, keep: bool) -> ImageState:
        """As :meth:`encode_image`; ``keep`` the maps that masks are made of, or not."""
        *finer, last = self.body(images.pixels)
        padding = _shrink(images.mask, last.shape[-2:])
        positions = self.backbone[1](padding, last.dtype)
        maps = tuple(reversed(finer)) if keep else ()
        height, width = images.pixels.shape[-2:]
        return ImageState(images.metas, (height, width), ImageFeatures(self.input_proj(last), positions, padding, maps))

    def encode_text(self, text: TextBatch) -> TextState:
        return TextState(text, self.transformer.encode_text(text.input_ids, text.attention_mask))

    def look(self, image: ImageState, text: TextState) -> Seen:
        """B pictures with one prompt for all, or with one for each."""
        features: ImageFeatures = image.features
        memory = self.transformer.encode(features.cells, features.padding, features.positions, text.features)
        queries = self.query_embed.weight.expand(len(image.metas), -1, -1)
        return Seen(memory, self.transformer.decoder(queries, memory))

    def answer(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> logits of tokens (..., C), and boxes (..., 4) as in QueryOutputs."""
        return self.class_embed(states), self.bbox_embed(states).sigmoid()

    def predict(self, seen: Seen, text: TextFeatures) -> QueryOutputs:
        """All that losses ask for."""
        logits, boxes = self.answer(seen.states)
        outputs = QueryOutputs(logits, boxes)
        if self.contrastive_align_projection_image is not None:
            assert self.contrastive_align_projection_text is not None
            outputs.queries = F.normalize(self.contrastive_align_projection_image(seen.states), dim=-1)
            outputs.tokens = F.normalize(self.contrastive_align_projection_text(seen.memory.text), dim=-1)
        if self.contrastive_projection_image is not None:
            assert self.contrastive_projection_text is not None
            outputs.image_summary = self.contrastive_projection_image(seen.memory.summary)
            outputs.text_summary = self.contrastive_projection_text(text.pooled)
        return outputs

    def forward(self, batch: Batch, peers: Peers = ALONE) -> Losses:
        """Losses of a batch with a prompt for each picture.

        Args:
            batch: Its targets have ``positive_map``; their boxes are in pixels of the network's input.
            peers: The processes that share the batch.
        """
        text = self.encode_text(prompts_of(batch))
        outputs = self.predict(self.look(self.encode_image(batch.images), text), text.features)
        return self.criterion(outputs, batch.targets, self.criterion.match(outputs, batch.targets), peers=peers)

    def detect(self, image: ImageState, text: TextState) -> list[Detections]:
        """One result per picture, in pixels of the picture on disk, best first; boxes may reach beyond its border.

        A prompt without entities asks for all that its text speaks of: a box per query, labelled 1. A prompt with
        entities asks for each of them: for each of its ids a box per query; a first one with the id 0 stands for all
        that the text speaks of. Where the first id is :data:`OWN_WORDS`, there is a box per query, called by the words
        that the query speaks of; boxes with the same words have one label, from 1, the best first.

        Args:
            image: B pictures.
            text: One prompt for all of them, or B prompts, one for each.
        """
        prompts = prompts_for(image, text)
        logits, boxes = self.answer(self.look(image, text).states[-1])
        rows = zip(logits, boxes, image.metas, *prompts, strict=True)
        return [detections(find(*row), row[2], row[3]) for row in rows]


def prompts_of(batch: Batch) -> TextBatch:
    """The text of a batch.

    Raises:
        ValueError: there is not a prompt for each picture.
    """
    if batch.text is None or len(batch.text) != len(batch.images):
        prompts = "no text" if batch.text is None else f"{len(batch.text)} prompts"
        raise ValueError(f"{prompts} for {len(batch.images)} pictures: training needs a prompt for each")
    return batch.text


def prompts_for(image: ImageState, text: TextState) -> tuple[list[Prompt], list[Tensor]]:
    """The prompt of each picture, and the tokens of its entities.

    Raises:
        ValueError: there is neither one prompt for all pictures nor one for each.
    """
    batch, prompts = len(image.metas), text.text.prompts
    if len(prompts) not in (1, batch):
        raise ValueError(f"{len(prompts)} prompts for {batch} pictures: give one, or one for each")
    repeat = batch // len(prompts)
    return list(prompts) * repeat, list(text.text.entity_tokens) * repeat


def find(logits: Tensor, boxes: Tensor, meta: ImageMeta, prompt: Prompt, tokens: Tensor) -> Answers:
    """What the queries (Q, C), (Q, 4) of a picture found of its prompt; ``tokens`` (K, T) are those of the entities."""
    if not len(prompt):
        return find_objects(logits, boxes, meta)
    if prompt.ids[0] == OWN_WORDS:
        return with_words(find_objects(logits, boxes, meta), own_words(logits, tokens[1:]), prompt)
    if prompt.ids[0] != ANYTHING:
        return find_phrases(logits, boxes, meta, tokens, prompt.ids)
    found = [find_objects(logits, boxes, meta, label=ANYTHING)]
    if len(prompt) > 1:
        found.append(find_phrases(logits, boxes, meta, tokens[1:], prompt.ids[1:]))
    return Answers.cat(found)


def with_words(found: Answers, chosen: Tensor, prompt: Prompt) -> Answers:
    """Answers of Q queries called by the words that each chose, (Q, W) bool; the prompt is one of :data:`OWN_WORDS`."""
    texts = [words_of(prompt, row) for row in chosen.tolist()]
    numbers: dict[str, int] = {}
    for query in found.scores.argsort(descending=True, stable=True).tolist():
        numbers.setdefault(texts[query], len(numbers) + 1)
    labels = found.labels.new_tensor([numbers[text] for text in texts])
    return replace(found, labels=labels, names={number: text for text, number in numbers.items()})


def words_of(prompt: Prompt, chosen: Sequence[bool]) -> str:
    """The chosen ones of the words that a prompt of :data:`OWN_WORDS` has; dots stand for words between them."""
    spans = [span for (span,) in prompt.spans[1:]]
    if not spans:
        return prompt.text
    runs: list[list[int]] = []
    for word in (number for number, own in enumerate(chosen) if own):
        if runs and runs[-1][1] == word - 1:
            runs[-1][1] = word
        else:
            runs.append([word, word])
    return " … ".join(prompt.text[spans[first][0] : spans[last][1]] for first, last in runs)


def detections(found: Answers, meta: ImageMeta, prompt: Prompt, masks: Tensor | None = None) -> Detections:
    """On the CPU; ``masks`` (Q, h, w) are those of the queries."""
    names = found.names or {label: prompt.name(entity) for entity, label in enumerate(prompt.ids)} or {1: prompt.text}
    own = None if masks is None else masks.cpu()[found.query.cpu()]
    boxes, scores = found.boxes.cpu().float(), found.scores.cpu().float()
    return Detections(boxes, scores, found.labels.cpu(), meta, own, names)


def _shrink(mask: Tensor, size: Sequence[int]) -> Tensor:
    """(B, H, W) bool -> (B, h, w): the nearest cell to the left and above."""
    return F.interpolate(mask[:, None].float(), size=tuple(size))[:, 0].bool()


@DETECTORS.register("MDETR")
def build(cfg: Cfg) -> Mdetr:
    """MDETR of ``MODEL.MDETR``, without masks."""
    mdetr = cfg.MODEL.MDETR
    weights = detection_weights(cfg)
    if mdetr.CONTRASTIVE_ALIGN:
        weights["loss_contrastive_align"] = mdetr.CONTRASTIVE_ALIGN_LOSS_COEF
    if mdetr.CONTRASTIVE:
        weights["contrastive_loss"] = mdetr.CONTRASTIVE_LOSS_COEF
    return build_network(cfg, weights, mdetr.CONTRASTIVE_ALIGN, mdetr.CONTRASTIVE)


def detection_weights(cfg: Cfg) -> dict[str, float]:
    """Losses that every MDETR has."""
    mdetr = cfg.MODEL.MDETR
    return {"loss_ce": mdetr.CE_LOSS_COEF, "loss_bbox": mdetr.BBOX_LOSS_COEF, "loss_giou": mdetr.GIOU_LOSS_COEF}


def build_network(cfg: Cfg, weights: dict[str, float], align: bool, summary: bool) -> Mdetr:
    """The network with given losses.

    Args:
        cfg: A config.
        weights: See :class:`SetCriterion`.
        align: Whether queries and tokens are compared.
        summary: Whether pictures and texts are compared.

    Raises:
        ConfigError: the heads do not divide the width, or a name is not known.
    """
    mdetr = cfg.MODEL.MDETR
    width, heads = mdetr.HIDDEN_DIM, mdetr.NHEADS
    if width % heads or width % 4:
        raise ConfigError(
            f"MODEL.MDETR.HIDDEN_DIM {width} ({cfg.source('MODEL.MDETR.HIDDEN_DIM')}) must be a multiple of 4 and of "
            f"MODEL.MDETR.NHEADS {heads} ({cfg.source('MODEL.MDETR.NHEADS')})"
        )
    text_encoder = PooledTextEncoder(text_config(cfg))
    transformer = Transformer(
        text_encoder,
        width,
        heads,
        mdetr.ENC_LAYERS,
        mdetr.DEC_LAYERS,
        mdetr.FFN_DIM,
        mdetr.DROPOUT,
        summary,
    )
    matcher = HungarianMatcher(mdetr.COST_CLASS, mdetr.COST_BBOX, mdetr.COST_GIOU)
    criterion = SetCriterion(weights, matcher, mdetr.EOS_COEF, mdetr.TEMPERATURE, mdetr.AUX_LOSS)
    return Mdetr(
        build_mdetr_body(cfg),
        POSITIONS[mdetr.POS_EMBED](width),
        transformer,
        criterion,
        mdetr.NUM_QUERIES,
        width,
        mdetr.PROJ_DIM,
        align,
    )
