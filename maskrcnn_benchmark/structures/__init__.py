"""Central types. Everything here needs torch only."""

from maskrcnn_benchmark.structures.detections import Detections
from maskrcnn_benchmark.structures.image_batch import ImageBatch, ImageMeta
from maskrcnn_benchmark.structures.prompt import Prompt, TextBatch
from maskrcnn_benchmark.structures.target import Target

__all__ = ["Detections", "ImageBatch", "ImageMeta", "Prompt", "Target", "TextBatch"]
