"""Transformers that look at pictures and text together."""
