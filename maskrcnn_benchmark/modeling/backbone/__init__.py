"""Backbones: from pixels and tokens to feature maps and text features."""
