"""Deformable DETR in two stages with class scores by embeddings of names: the open-vocabulary baseline of Detic (Zhou
et al., ECCV 2022, https://github.com/facebookresearch/Detic) as DECOLA trains it: "BoxSup", with image labels "Detic".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.layers.mlp import MLP
from maskrcnn_benchmark.layers.position import SinePosition
from maskrcnn_benchmark.modeling.backbone.trunk import build_trunk
from maskrcnn_benchmark.modeling.criterion.lessons import Lesson, build_baseline_lesson
from maskrcnn_benchmark.modeling.detectors import DETECTORS
from maskrcnn_benchmark.modeling.detectors.named import NamedDetector
from maskrcnn_benchmark.modeling.heads.class_tables import build_class_table
from maskrcnn_benchmark.modeling.heads.query_outputs import DeformableOutputs, QueryOutputs
from maskrcnn_benchmark.modeling.heads.zero_shot import ColumnClassifier, ZeroShotClassifier
from maskrcnn_benchmark.modeling.interface import ALONE, Batch, ImageState, Losses, Peers
from maskrcnn_benchmark.modeling.transformer.deformable import Memory, Queries, Sizes, Transformer
from maskrcnn_benchmark.modeling.transformer.start import start_baseline
from maskrcnn_benchmark.structures import Detections, ImageBatch, ImageMeta
from maskrcnn_benchmark.structures.boxes import cxcywh_to_xyxy

GROUPS = 32  # of the norms behind the projections
FIRST_STAGE_SCORES = 1203  # of the baseline, whatever its classes: its files have so many, and use the first
FIRST_STAGE_BIAS = -4.59511985013459  # a probability of 0.01


@dataclass(frozen=True)
class Scene:
    """What there is in B pictures, whatever is asked for."""

    memory: Memory
    features: Tensor  # (B, S, D) of the candidates, one for each cell
    boxes: Tensor  # (B, S, 4) logits of their cx, cy, w, h; infinite where a cell is none

    @property
    def count(self) -> int:
        """Candidates of a picture."""
        return self.boxes.shape[1]


class Joined(nn.Module):
    """A backbone, one name deeper."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


class DeformableDetr(nn.Module):
    """The network.

    Args:
        body: Pixels -> maps, finest first, whose widths are its ``channels``; the last three of them are looked at.
        transformer: Encoder, decoder, and what is between them.
        sizes: Of the transformer.
        classifiers: One for each decoder layer, then that of the first stage.
        look_twice: See :meth:`Transformer.decode`.
        full_precision: All but the body computes in float32, also under autocast.
    """

    def __init__(
        self,
        body: nn.Module,
        transformer: Transformer,
        sizes: Sizes,
        classifiers: Sequence[nn.Module],
        look_twice: bool = True,
        full_precision: bool = True,
    ) -> None:
        super().__init__()
        self.look_twice, self.full_precision = look_twice, full_precision
        self.transformer = transformer
        self.bbox_embed = nn.ModuleList(_box_head(sizes.width) for _ in classifiers)
        channels: Sequence[int] = body.channels[-3:]  # type: ignore[assignment,index]
        more = sizes.levels - len(channels)
        projections = [_projection(width, sizes.width, 1) for width in channels]
        projections += [_projection(channels[-1] if i == 0 else sizes.width, sizes.width, 3) for i in range(more)]
        self.input_proj = nn.ModuleList(projections)
        self.backbone = nn.ModuleList([Joined(body)])
        self.class_embed = nn.ModuleList(classifiers)
        self.position = SinePosition(sizes.width, back=0.5)

    def encode(self, images: ImageBatch) -> Scene:
        """Pictures, padded on the right and at the bottom only as far as the largest of them reaches."""
        maps = self.backbone[0].backbone(images.pixels)[-3:]  # type: ignore[operator]
        with self.precision(images.pixels):
            return self._scene([x.float() for x in maps] if self.full_precision else maps, images.mask)

    def precision(self, like: Tensor) -> AbstractContextManager[object]:
        """Around all that follows the body."""
        return torch.autocast(like.device.type, enabled=False) if self.full_precision else nullcontext()

    def _scene(self, maps: Sequence[Tensor], mask: Tensor) -> Scene:
        levels: list[Tensor] = []
        for number, project in enumerate(self.input_proj):
            source = maps[number] if number < len(maps) else maps[-1] if number == len(maps) else levels[-1]
            levels.append(project(source))
        paddings = [F.interpolate(mask[:, None].float(), size=x.shape[-2:])[:, 0].bool() for x in levels]
        positions = [self.position(padding, x.dtype) for padding, x in zip(paddings, levels, strict=True)]
        memory = self.transformer.encode(levels, paddings, positions)
        features, boxes = self.transformer.candidates(memory)
        return Scene(memory, features, self.bbox_embed[-1](features) + boxes)

    def answers(
        self, scene: Scene, cells: Tensor, prompts: Tensor | None = None, values: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Contents (B, G, M, D) and boxes (B, G, M, 4) after each decoder layer, of G groups of M queries.

        Args:
            scene: Of B pictures.
            cells: (B, G, M) int64, the candidates that queries are made from.
            prompts: See :meth:`Transformer.queries`.
            values: What decoder layers read of the scene, where that is known already.
        """
        queries = self.queries(scene, cells, prompts)
        values = self.transformer.values(scene.memory) if values is None else values
        return self.transformer.decode(queries, scene.memory, values, self.bbox_embed[:-1], self.look_twice)

    def queries(self, scene: Scene, cells: Tensor, prompts: Tensor | None = None) -> Queries:
        """See :meth:`answers`."""
        return self.transformer.queries(take(scene.boxes, cells), take(scene.features, cells), prompts)


class QueryDetector(NamedDetector):
    """What Deformable DETR and DECOLA share. Boxes may reach beyond the border of their picture.

    Args:
        detr: The network.
        num_queries: Of a picture.
        max_detections: Of a picture.
        min_score: Detections have a higher score.
    """

    lesson: Lesson  # what it is trained on

    def __init__(
        self, detr: DeformableDetr, num_queries: int = 300, max_detections: int = 300, min_score: float = 0.0
    ) -> None:
        super().__init__()
        self.detr = detr
        self.num_queries, self.max_detections, self.min_score = num_queries, max_detections, min_score

    @property
    def classifiers(self) -> list[ZeroShotClassifier]:
        """Of the decoder layers."""
        return list(self.detr.class_embed)[:-1]  # type: ignore[return-value]

    def forward(self, batch: Batch, peers: Peers = ALONE) -> Losses:
        """Losses of a batch; see :mod:`~maskrcnn_benchmark.modeling.criterion.lessons`.

        Args:
            batch: Boxes of its targets in pixels of the network's input; a picture may have none.
            peers: The processes that share the batch.

        Raises:
            DataError: a label that the network has no class for.
        """
        return self.lesson(self.ask, batch, peers)

    def weigh_classes(self, chance: Tensor) -> None:
        if self.lesson.federated is not None:
            self.lesson.federated.chance = chance.double()

    def encode_image(self, images: ImageBatch) -> ImageState:
        height, width = images.pixels.shape[-2:]
        return ImageState(images.metas, (height, width), self.detr.encode(images))

    def find_rows(
        self, image: ImageState, ids: Sequence[int], names: Mapping[int, str], rows: Tensor
    ) -> list[Detections]:
        if not len(ids):
            return [Detections.empty(meta) for meta in image.metas]
        with self.detr.precision(image.features.boxes):
            logits, boxes, owner = self.find(image.features, rows)
        labels = torch.tensor(ids, device=logits.device)
        return [
            best(scores.sigmoid(), own, labels, owner, meta, names, self.max_detections, self.min_score)
            for scores, own, meta in zip(logits, boxes, image.metas, strict=True)
        ]

    def find(self, scene: Scene, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What Q queries of each picture say of K classes.

        Args:
            scene: Of B pictures.
            rows: (K, E) embeddings.

        Returns:
            Logits (B, Q, K), boxes (B, Q, 4) as in QueryOutputs, and None; or, where each query is about one class,
            logits (B, Q, 1), boxes, and which of the K classes that is (Q,).
        """
        raise NotImplementedError

    def ask(self, images: ImageBatch, classes: Tensor | None = None) -> DeformableOutputs:
        """All that losses ask for.

        Args:
            images: B pictures.
            classes: (K,) int64 from 0, that queries are made for; None: for objects of any class.
        """
        scene = self.detr.encode(images)
        with self.detr.precision(images.pixels):
            return self.answer(scene, classes)

    def answer(self, scene: Scene, classes: Tensor | None) -> DeformableOutputs:
        """As :meth:`ask`, of pictures that are encoded."""
        raise NotImplementedError


class DeformableDetrDetector(QueryDetector):
    """The baseline: queries for objects of any class, which are then compared with all classes that are asked for.

    Args:
        detr: Whose first stage is a linear layer of which only the first score is used.
        num_queries: Of a picture.
        max_detections: Of a picture.
        min_score: Detections have a higher score.
        queries_per_class: Given, a picture has so many queries for each class that is asked for, instead.
    """

    def __init__(
        self,
        detr: DeformableDetr,
        num_queries: int = 300,
        max_detections: int = 300,
        min_score: float = 0.0,
        queries_per_class: int | None = None,
    ) -> None:
        super().__init__(detr, num_queries, max_detections, min_score)
        self.queries_per_class = queries_per_class

    def find(self, scene: Scene, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        first: nn.Linear = self.detr.class_embed[-1]  # type: ignore[assignment]
        scores = F.linear(scene.features, first.weight[:1], first.bias[:1])[..., 0]
        count = self.num_queries if self.queries_per_class is None else self.queries_per_class * len(rows)
        *_, (content, boxes) = self.detr.answers(scene, best_cells(scores, count))
        return self.classifiers[-1](content[:, 0], rows), boxes[:, 0], None

    def answer(self, scene: Scene, classes: Tensor | None) -> DeformableOutputs:
        scores = self.detr.class_embed[-1](scene.features)
        cells = best_cells(scores[..., 0], self.num_queries)
        layers = self.detr.answers(scene, cells)
        pairs = zip(self.classifiers, layers, strict=True)
        return DeformableOutputs(
            tuple(QueryOutputs(score(content[:, 0]), boxes[:, 0]) for score, (content, boxes) in pairs),
            QueryOutputs(scores, scene.boxes.sigmoid()),
        )


def take(values: Tensor, cells: Tensor) -> Tensor:
    """(B, S, ...) and places (B, G, M) in it -> (B, G, M, ...)."""
    picture = torch.arange(len(values), device=values.device)[:, None, None]
    return values[picture, cells]


def best_cells(scores: Tensor, count: int) -> Tensor:
    """Cells (B, 1, Q) of the best candidates by their scores (B, S): one group of queries; Q is at most S."""
    return scores.topk(min(count, scores.shape[1]), dim=1).indices[:, None]


def best(
    scores: Tensor,
    boxes: Tensor,
    labels: Tensor,
    owner: Tensor | None,
    meta: ImageMeta,
    names: Mapping[int, str],
    count: int,
    min_score: float,
) -> Detections:
    """The best answers of a picture, over all queries and classes together; no NMS, no clipping.

    Args:
        scores: (Q, K), or (Q, 1) where each query is about one class.
        boxes: (Q, 4) cx, cy, w, h as shares of the picture's sides.
        labels: (K,) of the classes.
        owner: (Q,) which class each query is about; None: about all.
        meta: Of the picture.
        names: Of the labels.
        count: Most answers.
        min_score: Answers have a higher score.
    """
    top, place = scores.flatten().topk(min(count, scores.numel()))
    top, place = top[top > min_score], place[top > min_score]
    query = place.div(scores.shape[1], rounding_mode="floor")
    kind = place % scores.shape[1] if owner is None else owner[query]
    height, width = meta.orig_size
    on_disk = cxcywh_to_xyxy(boxes[query]) * boxes.new_tensor([width, height, width, height])
    return Detections(on_disk.cpu().float(), top.cpu().float(), labels[kind].cpu(), meta, names=names)


def copies(classifier: nn.Module, count: int) -> list[nn.Module]:
    """``count`` classifiers that begin alike and learn each for itself; they share the embeddings."""
    table = classifier.zs_weight
    return [classifier, *(deepcopy(classifier, {id(table): table}) for _ in range(count - 1))]


def _box_head(width: int) -> MLP:
    head = MLP(width, width, 4, 3)
    nn.init.zeros_(head.layers[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(head.layers[-1].bias)  # type: ignore[arg-type]
    return head


def _projection(channels: int, width: int, kernel: int) -> nn.Sequential:
    """To the transformer's width; a kernel of 3 halves the map."""
    conv = nn.Conv2d(channels, width, kernel, stride=1 if kernel == 1 else 2, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, width))


@DETECTORS.register("DeformableDETR")
def build(cfg: Cfg) -> DeformableDetrDetector:
    """The baseline of ``MODEL.DEFORMABLE_DETR`` and ``MODEL.ZEROSHOT_CLS``.

    Raises:
        ConfigError: a network that there is none for.
    """
    deformable, zero_shot, sizes = cfg.MODEL.DEFORMABLE_DETR, cfg.MODEL.ZEROSHOT_CLS, build_sizes(cfg)
    if not zero_shot.ENABLED:
        key = "MODEL.ZEROSHOT_CLS.ENABLED"
        raise ConfigError(f"{key} False ({cfg.source(key)}): DeformableDETR compares queries with embeddings of names")
    classifier = ColumnClassifier(
        build_class_table(cfg, deformable.NUM_CLASSES),
        sizes.width,
        zero_shot.NORM_TEMP,
        bias=zero_shot.BIAS_INIT if zero_shot.BIAS_INIT < 0 else None,
        axis=zero_shot.NORM_OVER,
        cosine=zero_shot.NORM_WEIGHT,
    )
    first = nn.Linear(sizes.width, FIRST_STAGE_SCORES)
    nn.init.constant_(first.bias, FIRST_STAGE_BIAS)
    transformer = Transformer(sizes, recompute=deformable.USE_CHECKPOINT)
    start_baseline(transformer)
    conditioned = cfg.TEST.CONDITIONED
    detector = DeformableDetrDetector(
        build_network(cfg, transformer, sizes, [*copies(classifier, sizes.decoder_layers), first]),
        num_queries=deformable.NUM_OBJECT_QUERIES,
        max_detections=cfg.TEST.DETECTIONS_PER_IMG,
        min_score=cfg.TEST.SCORE_THRESH,
        queries_per_class=conditioned.QUERIES_PER_CLASS if conditioned.ADAPTIVE_QUERIES else None,
    )
    detector.lesson = build_baseline_lesson(cfg)
    return detector


def build_sizes(cfg: Cfg) -> Sizes:
    """Of the transformer.

    Raises:
        ConfigError: the heads or the norms do not divide the width, or a variant that there is no network for.
    """
    deformable, key = cfg.MODEL.DEFORMABLE_DETR, "MODEL.DEFORMABLE_DETR"
    for name, wanted in (("TWO_STAGE", True), ("WITH_BOX_REFINE", True), ("MIXED_SELECTION", False)):
        if deformable[name] != wanted:
            source = cfg.source(f"{key}.{name}")
            raise ConfigError(f"{key}.{name} {deformable[name]} ({source}): only {wanted} is offered")
    width, heads = deformable.HIDDEN_DIM, deformable.NHEADS
    if width % heads or width % GROUPS or deformable.NUM_FEATURE_LEVELS < 3:
        raise ConfigError(
            f"{key}: HIDDEN_DIM {width} ({cfg.source(f'{key}.HIDDEN_DIM')}) must be a multiple of {GROUPS} and of "
            f"NHEADS {heads}, and NUM_FEATURE_LEVELS {deformable.NUM_FEATURE_LEVELS} at least 3"
        )
    return Sizes(
        width,
        heads,
        deformable.ENC_LAYERS,
        deformable.DEC_LAYERS,
        deformable.DIM_FEEDFORWARD,
        deformable.NUM_FEATURE_LEVELS,
        deformable.DROPOUT,
    )


def build_network(cfg: Cfg, transformer: Transformer, sizes: Sizes, classifiers: Sequence[nn.Module]) -> DeformableDetr:
    """The network around a transformer and its classifiers."""
    look_twice, amp_only = cfg.MODEL.DEFORMABLE_DETR.LOOK_FORWARD_TWICE, cfg.MODEL.BACKBONE.AMP_ONLY
    return DeformableDetr(build_trunk(cfg), transformer, sizes, classifiers, look_twice, full_precision=amp_only)
