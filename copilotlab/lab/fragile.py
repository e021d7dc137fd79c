"""A model and a repository that work until they are told to fail or to hang, and again once they are mended."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copilotlab.charts import ChartRepository, RepositoryError
from copilotlab.embedding import Embedder

if TYPE_CHECKING:
    import sqlalchemy as sa


class Gate:
    """What every call passes: open, or failing, or holding back whoever comes until it is mended."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._failing = False

    def fail(self) -> None:
        """From now on calls raise."""
        self._failing = True

    def hang(self) -> None:
        """From now on calls wait for `mend`."""
        self._open.clear()

    def mend(self) -> None:
        """Calls pass again; those that wait go on."""
        self._failing = False
        self._open.set()

    def passes(self) -> bool:
        """Wait while the gate hangs; False if the call is to fail."""
        self._open.wait()
        return not self._failing

    def __repr__(self) -> str:
        return f"Gate({'hanging' if not self._open.is_set() else 'failing' if self._failing else 'open'})"


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


class FragileRepository(ChartRepository):
    """A repository that can be made unreachable, or so slow that nobody knows whether it will answer.

    gate: what fails and hangs. A transaction that has begun goes on.
    """

    def __init__(self, url: str = "sqlite://") -> None:
        self.gate = Gate()
        super().__init__(url)

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[sa.Connection]:
        if not self.gate.passes():
            raise RepositoryError(f"the repository at {self._shown_url} is unreachable, as it was told to be")
        with super()._transaction(writes=writes) as connection:
            yield connection
