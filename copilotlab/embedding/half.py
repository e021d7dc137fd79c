"""A model whose vectors are rounded to half precision: they can be sent in half the bytes without losing more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from copilotlab.embedding.base import Embedder

SUFFIX = ":float16"


class HalfPrecision(Embedder):
    """Round each component of the vectors of ``inner`` to the nearest float16: by at most 2**-11 of it.

    Its fingerprint differs from that of ``inner``, so nodes that round and nodes that do not never mix. Vectors
    stay float32 in memory.
    """

    def __init__(self, inner: Embedder) -> None:
        super().__init__(name=inner.name, fingerprint=inner.fingerprint + SUFFIX, dim=inner.dim)
        self.inner = inner

    def embed(self, texts: Sequence[str], *, progress: bool = False, batch_size: int = 64) -> NDArray[np.float32]:
        """Embed as `Embedder.embed` does; vectors have length 1 within 2**-11."""
        return self.inner.embed(texts, progress=progress, batch_size=batch_size).astype(np.float16).astype(np.float32)

    def embed_query(self, texts: Sequence[str], *, progress: bool = False, batch_size: int = 64) -> NDArray[np.float32]:
        """Embed questions as `Embedder.embed_query` of the inner model does, rounded as `embed` rounds."""
        vectors = self.inner.embed_query(texts, progress=progress, batch_size=batch_size)
        return vectors.astype(np.float16).astype(np.float32)

    def cut(self, texts: Sequence[str]) -> list[int]:
        """Return what `Embedder.cut` of the inner model does."""
        return self.inner.cut(texts)

    def _encode(self, batch: list[str]) -> NDArray[np.floating]:
        return self.inner.embed(batch)


def rounded(embedder: Embedder) -> Embedder:
    """Return the model with vectors of half precision; a model that has them already is returned as it is."""
    return embedder if isinstance(embedder, HalfPrecision) else HalfPrecision(embedder)
