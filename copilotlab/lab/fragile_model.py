"""A model that works until it is told to fail or to hang, and again once it is mended."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from copilotlab.embedding import Embedder
from copilotlab.lab.gate import Gate


class FragileModel(Embedder):
    """Another model's vectors, at a pace of one's choice, with failures on request.

    inner: the model. pace: seconds that a text takes (0.0). seed: of the bits in which vectors differ; None draws one.

    As with a real model in other batches, no two vectors of one text have the same bits. Only calls with several texts
    fail, hang or are paced: those of batches. A query, or one edit, comes alone and is answered all along.
    gate: what fails and hangs. made: how often each text was embedded.
    """

    def __init__(self, inner: Embedder, *, pace: float = 0.0, seed: int | None = None) -> None:
        super().__init__(name=inner.name, fingerprint=inner.fingerprint, dim=inner.dim)
        self.gate = Gate()
        self.pace = pace
        self.made: Counter[str] = Counter()
        self._inner = inner
        self._noise = np.random.default_rng(seed)
        self._lock = threading.Lock()

    def cut(self, texts: Sequence[str]) -> list[int]:
        """As the model's own."""
        return self._inner.cut(texts)

    def _encode(self, batch: list[str]) -> NDArray[np.floating]:
        if len(batch) > 1:
            if not self.gate.passes():
                raise OSError("the model has failed, as it was told to")
            if self.pace:
                time.sleep(self.pace * len(batch))
        vectors = self._inner.embed(batch)
        with self._lock:
            self.made.update(batch)
            return vectors + self._noise.uniform(-1e-6, 1e-6, vectors.shape)
