"""Readers of annotation formats, a module for each kind of ``data/catalog.yaml``."""
