"""Checkpoint files: reading them safely, fitting them to a model, writing them."""
