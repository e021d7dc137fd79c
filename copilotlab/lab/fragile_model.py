"""A model that works until it is told to fail or to hang, and again once it is mended."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from copilotlab.embedding import Embedder
from copilotlab.embedding.base import Encode
from copilotlab.lab.gate import Gate


class FragileModel(Embedder):
    """Gives another model's vectors, as slowly as is wished, and fails or hangs on request.

    inner: the other model. pace: seconds that each text takes (0.0). seed: of the random last bits; None draws one.
    gate: makes calls fail or hang. made: how often each text was embedded.

    Each vector gets other last bits, as a real model gives a text other bits in another batch. Only calls with several
    texts fail, hang or are slowed down, as batches make them. A query or an edit comes alone, and is always answered.
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
        """Cut texts as the other model does."""
        return self._inner.cut(texts)

    def embed_query(self, texts: Sequence[str], *, progress: bool = False, batch_size: int = 64) -> NDArray[np.float32]:
        """Embed questions as the other model does."""
        return self._embedded(texts, self._encode_query, progress, batch_size)

    def _encode(self, batch: list[str]) -> NDArray[np.floating]:
        return self._made(batch, self._inner.embed)

    def _encode_query(self, batch: list[str]) -> NDArray[np.floating]:
        return self._made(batch, self._inner.embed_query)

    def _made(self, batch: list[str], embed: Encode) -> NDArray[np.floating]:
        if len(batch) > 1:
            if not self.gate.passes():
                raise OSError("the model has failed, as it was told to")
            if self.pace:
                time.sleep(self.pace * len(batch))
        vectors = embed(batch)
        with self._lock:
            self.made.update(batch)
            return vectors + self._noise.uniform(-1e-6, 1e-6, vectors.shape)
