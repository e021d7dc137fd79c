"""A model that takes no time, to measure or test how vectors travel without the cost of making them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from copilotlab.embedding import Embedder

VECTORS = 1_000


class InstantModel(Embedder):
    """Gives each text one of a thousand ready unit vectors, chosen by the text's hash; they mean nothing.

    The same text gets the same vector within one process only. dim: components of a vector; 384 by default, as MiniLM.
    """

    def __init__(self, dim: int = 384) -> None:
        super().__init__(name="instant", fingerprint=f"instant:{dim}", dim=dim)
        vectors = np.random.default_rng(0).standard_normal((VECTORS, dim)).astype(np.float32)
        self._vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _encode(self, batch: list[str]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._vectors[[hash(text) % VECTORS for text in batch]]
        return rows
