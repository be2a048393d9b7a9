"""Tensors and plain JSON on disk, safely: knows no stage, no recipe and no model."""
