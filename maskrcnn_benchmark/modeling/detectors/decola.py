"""DECOLA (Cho and Krähenbühl, "Language-conditioned Detection Transformer", CVPR 2024,
https://github.com/janghyuncho/DECOLA): a Deformable DETR whose queries are made for the classes that are asked for.

In its first phase each class has queries of its own, chosen by how well candidates fit the embedding of its name, which
then only speak of that class. In its second phase queries are for objects of any class, chosen by the prompt "object".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from maskrcnn_benchmark.config import Cfg
from maskrcnn_benchmark.errors import ConfigError
from maskrcnn_benchmark.modeling.criterion.lessons import build_decola_lesson
from maskrcnn_benchmark.modeling.detectors import DETECTORS
from maskrcnn_benchmark.modeling.detectors.deformable_detr import (
    DeformableDetr,
    QueryDetector,
    Scene,
    best_cells,
    build_network,
    build_sizes,
    copies,
    take,
)
from maskrcnn_benchmark.modeling.heads.class_tables import build_class_table, build_object_row
from maskrcnn_benchmark.modeling.heads.query_outputs import DeformableOutputs, QueryOutputs
from maskrcnn_benchmark.modeling.heads.zero_shot import PromptClassifier, ZeroShotClassifier
from maskrcnn_benchmark.modeling.transformer.deformable import ROWS, Transformer
from maskrcnn_benchmark.modeling.transformer.start import start_decola

Grouping = Literal["released", "per_prompt"]


class Decola(QueryDetector):
    """DECOLA in either phase.

    Args:
        detr: Whose classifiers are :class:`PromptClassifier`.
        conditioned: Detection makes queries for each class that is asked for; else for objects of any class.
        num_queries: Of a picture, where they are for objects of any class.
        queries_per_prompt: Of a picture for each class.
        grouping: Which queries see each other where they are for classes; see :func:`groups`.
        first_stage_topk: Best candidates for each class that the losses of the first stage are about; None: all.
        own_class_only: Queries for a class speak of that class alone.
        max_detections: Of a picture.
        min_score: Detections have a higher score.
    """

    def __init__(
        self,
        detr: DeformableDetr,
        conditioned: bool,
        num_queries: int = 300,
        queries_per_prompt: int = 300,
        grouping: Grouping = "released",
        first_stage_topk: int | None = 10000,
        own_class_only: bool = True,
        max_detections: int = 300,
        min_score: float = 0.0,
    ) -> None:
        super().__init__(detr, num_queries, max_detections, min_score)
        self.conditioned, self.queries_per_prompt, self.grouping = conditioned, queries_per_prompt, grouping
        self.first_stage_topk, self.own_class_only = first_stage_topk, own_class_only

    @property
    def first_stage(self) -> PromptClassifier:
        return self.detr.class_embed[-1]  # type: ignore[return-value]

    def find(self, scene: Scene, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.conditioned:
            return self.find_prompted(scene, rows)
        scores = self.first_stage(scene.features, self.first_stage.object_row)[..., 0]
        *_, (content, boxes) = self._general_answers(scene, scores)
        return self.classifiers[-1](content[:, 0], rows), boxes[:, 0], None

    def _general_answers(self, scene: Scene, scores: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`DeformableDetr.answers`: of queries for objects of any class, by the scores (B, S) of cells."""
        cells = best_cells(scores, self.num_queries)
        return self.detr.answers(scene, cells, self.first_stage.object_row.expand(1, cells.shape[-1], -1))

    def find_prompted(self, scene: Scene, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As :meth:`find`, with queries for each class. Groups of queries never meet, so they go through all layers a
        few at a time."""
        cells = self.prompted_cells(scene, rows)
        ranks, prompts = cells.shape[1:]
        order = groups(ranks, prompts, self.grouping).to(cells.device)
        cells, owner = cells.flatten(1), torch.arange(ranks * prompts, device=cells.device) % prompts
        values = self.detr.transformer.values(scene.memory)
        classes = 1 if self.own_class_only else prompts
        logits, boxes = (values[0].new_empty(*cells.shape, size, dtype=torch.float32) for size in (classes, 4))
        for part in order.split(max(1, ROWS // order.shape[1])):
            *_, (content, own) = self.detr.answers(scene, cells[:, part], rows[owner[part]], values)
            logits[:, part.flatten()] = self._judge(self.classifiers[-1], content, rows, owner[part]).float()
            boxes[:, part.flatten()] = own.flatten(1, 2).float()
        return logits, boxes, owner if self.own_class_only else None

    def prompted_cells(self, scene: Scene, rows: Tensor) -> Tensor:
        """(B, N, K) cells: for each of K classes the best N candidates, the best first; N is at most their number."""
        scores = self.first_stage(scene.features, rows)
        return scores.topk(min(self.queries_per_prompt, scene.count), dim=1).indices

    def _judge(self, score: ZeroShotClassifier, content: Tensor, rows: Tensor, owner: Tensor) -> Tensor:
        """(B, G, M, D), embeddings (K, E) and which one is the queries' own (G, M) -> logits (B, G * M, 1), or of all
        classes."""
        content = content.flatten(1, 2)
        return score.own(content, rows[owner.flatten()]) if self.own_class_only else score(content, rows)

    def answer(self, scene: Scene, classes: Tensor | None) -> DeformableOutputs:
        if classes is not None:
            return self._answer_prompted(scene, classes)
        scores = self.first_stage(scene.features, self.first_stage.object_row)
        pairs = zip(self.classifiers, self._general_answers(scene, scores[..., 0]), strict=True)
        return DeformableOutputs(
            tuple(QueryOutputs(score(content[:, 0]), boxes[:, 0]) for score, (content, boxes) in pairs),
            QueryOutputs(scores, scene.boxes.sigmoid()),
        )

    def _answer_prompted(self, scene: Scene, classes: Tensor) -> DeformableOutputs:
        table = self.first_stage.rows
        rows = table[classes]
        scores = self.first_stage(scene.features, rows)
        count = scene.count if self.first_stage_topk is None else self.first_stage_topk
        top, cells = scores.topk(min(max(count, self.queries_per_prompt), scene.count), dim=1)  # (B, N', K)
        candidates = QueryOutputs(top[:, :count].flatten(1)[..., None], _boxes(scene, cells[:, :count]))

        ranks, prompts = min(self.queries_per_prompt, scene.count), len(classes)
        order = groups(ranks, prompts, self.grouping).to(cells.device)
        chosen, owner = cells[:, :ranks].flatten(1), torch.arange(ranks * prompts, device=cells.device) % prompts
        back = order.flatten().argsort()
        layers = []
        for score, (content, boxes) in zip(
            self.classifiers, self.detr.answers(scene, chosen[:, order], rows[owner[order]]), strict=True
        ):
            logits = self._judge(score, content, table, classes[owner[order]])
            layers.append(QueryOutputs(logits[:, back], boxes.flatten(1, 2)[:, back]))
        number = torch.arange(candidates.logits.shape[1], device=cells.device)
        return DeformableOutputs(tuple(layers), candidates, classes[owner], classes[number % prompts])


def _boxes(scene: Scene, cells: Tensor) -> Tensor:
    """Boxes (B, N * K, 4) of candidates (B, N, K)."""
    return take(scene.boxes, cells).flatten(1, 2).sigmoid()


def groups(ranks: int, prompts: int, grouping: Grouping) -> Tensor:
    """(G, M) int64: which queries see each other, query ``rank * prompts + prompt`` being the one of that rank.

    ``released`` weights were trained with as many groups as there are ranks: queries whose numbers leave the same rest
    when divided by the number of ranks, of several prompts where it is not a multiple of theirs. ``per_prompt`` is what
    the paper says: the queries of a prompt.
    """
    count = ranks if grouping == "released" else prompts
    return torch.arange(ranks * prompts).view(-1, count).t()


@DETECTORS.register("DecolaDeformableDETR")
def build(cfg: Cfg) -> Decola:
    """The network of ``MODEL.DECOLA``, ``MODEL.DEFORMABLE_DETR`` and ``MODEL.ZEROSHOT_CLS``.

    Raises:
        ConfigError: a network that there is none for.
    """
    deformable, decola, zero_shot = cfg.MODEL.DEFORMABLE_DETR, cfg.MODEL.DECOLA, cfg.MODEL.ZEROSHOT_CLS
    sizes, top = build_sizes(cfg), decola.ENC_LOSS_TOPK
    table = torch.cat((build_class_table(cfg, deformable.NUM_CLASSES), build_object_row(cfg)))
    bias = zero_shot.BIAS_INIT if decola.PROMPT_BIAS else None
    if decola.NORM_FIRST_STAGE != decola.NORM_SECOND_STAGE:  # both stages get the same embeddings
        key = "MODEL.DECOLA.NORM_SECOND_STAGE"
        raise ConfigError(
            f"{key} {decola.NORM_SECOND_STAGE} ({cfg.source(key)}): MODEL.DECOLA.NORM_FIRST_STAGE is "
            f"{decola.NORM_FIRST_STAGE}: give both the same value"
        )
    first, second = (
        PromptClassifier(table, sizes.width, zero_shot.NORM_TEMP, bias, cosine=decola.NORM_FIRST_STAGE)
        for _ in range(2)
    )
    first.linear.load_state_dict(second.linear.state_dict())
    transformer = Transformer(
        sizes,
        decola.PIXEL_QUERY,
        prompt_width=zero_shot.DIM if decola.PROMPT_QUERY else None,
        recompute=deformable.USE_CHECKPOINT,
    )
    start_decola(transformer)
    detector = Decola(
        build_network(cfg, transformer, sizes, [*copies(second, sizes.decoder_layers), first]),
        conditioned=cfg.TEST.CONDITIONED.ENABLED,
        num_queries=deformable.NUM_OBJECT_QUERIES,
        queries_per_prompt=decola.QUERIES_PER_PROMPT,
        grouping=decola.SELF_ATTN_GROUPING,
        first_stage_topk=top if top >= 0 else None,
        own_class_only=not decola.MULTI_CLASS_SECOND_STAGE,
        max_detections=cfg.TEST.DETECTIONS_PER_IMG,
        min_score=cfg.TEST.SCORE_THRESH,
    )
    detector.lesson = build_decola_lesson(cfg)
    return detector
