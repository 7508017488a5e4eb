"""Drawn scenes of coloured shapes: data for the demonstration, the tests and the benchmarks, from a seed alone."""

from maskrcnn_benchmark.data.drawn.coco import write_coco
from maskrcnn_benchmark.data.drawn.paint import Painting, paint
from maskrcnn_benchmark.data.drawn.scene import CLASSES, COLOURS, SHAPES, Scene, Thing, make_scene

__all__ = ["CLASSES", "COLOURS", "SHAPES", "Painting", "Scene", "Thing", "make_scene", "paint", "write_coco"]
