"""Scoring detections against ground truth."""
