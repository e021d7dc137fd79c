"""Text to unit vectors, by models that run without a network.

    from copilotlab import available_embedders, load_embedder, size_on_disk

    embedder = load_embedder("minilm-int8")
    vectors = embedder.embed(["Revenue by region"])      # float32 (1, 384), unit length
    available_embedders()                                # what else there is

A model family is one file here: it subclasses :class:`Embedder` and has one entry in ``registry.py``.
Nothing heavy is imported until a model is loaded.
"""

from __future__ import annotations

from copilotlab.embedding.base import Embedder, EmbeddingError, ModelNotInstalled, UnknownModel
from copilotlab.embedding.registry import DEFAULT_MODEL, available_embedders, load_embedder, size_on_disk

__all__ = [
    "DEFAULT_MODEL",
    "Embedder",
    "EmbeddingError",
    "ModelNotInstalled",
    "UnknownModel",
    "available_embedders",
    "load_embedder",
    "size_on_disk",
]
