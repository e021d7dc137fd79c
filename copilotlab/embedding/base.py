"""The base class of all models: it checks, sorts and batches texts, and normalises vectors."""

from __future__ import annotations

import logging
import reprlib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copilotlab.reasons import short

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

TORCH = "copilotlab[torch]"  # the extra that models of torch need
# Of the text of charts (`Chart.text`): in each fingerprint, so that nodes of two ways to make it never mix vectors.
TEXT = "t2"
OPENAI = "openai:"  # before the name of a model that a server has


Encode = Callable[[list[str]], NDArray[np.floating]]


class EmbeddingError(RuntimeError):
    """A model could not be loaded, or returned something that is not a vector."""


class ModelNotInstalled(EmbeddingError):
    """The package of a known model is absent; the message holds the pip command that installs it."""


class UnknownModel(EmbeddingError, ValueError):
    """No model has that name; the message lists the known names."""


def pip_install(*packages: str) -> str:
    """Return the command that installs packages; for an extra of copilotlab, also that of a clone."""
    command = f"pip install {' '.join(repr(package) if '[' in package else package for package in packages)}"
    cloned = [package.replace("copilotlab", ".") for package in packages if package.startswith("copilotlab[")]
    return f"{command} (from a clone: pip install -e '{cloned[0]}')" if cloned else command


class Embedder(ABC):
    """Turn texts into unit vectors. Safe for several threads at once.

    To add a model of your own, subclass this and write one method::

        class Lengths(Embedder):
            def __init__(self):
                super().__init__(name="lengths", fingerprint="lengths:1", dim=2)

            def _encode(self, batch):
                return np.array([[len(text), 1.0] for text in batch])

    Parameters:
        name: what people call the model.
        fingerprint: 1 to 100 characters that name the model and the version of its weights. Vectors are
            compared only where fingerprints are equal, so different weights must never share one, nor vectors of
            texts that are made in another way: those of the models here end with `TEXT`.
        dim: the number of components of a vector.
    """

    def __init__(self, *, name: str, fingerprint: str, dim: int) -> None:
        if not 1 <= len(fingerprint) <= 100:
            raise ValueError(f"fingerprint must have 1 to 100 characters, not {len(fingerprint)}: {fingerprint!r}")
        if dim < 1:
            raise ValueError(f"dim must be 1 or more, not {short(dim)}")
        self.name = name
        self.fingerprint = fingerprint
        self.dim = dim
        self._told_of_empty = False
        self._told_of_cut = False

    if not TYPE_CHECKING:  # which knows the attributes, and should not take others

        def __getattr__(self, name: str) -> object:
            """Say why an attribute is not there that ``__init__`` makes."""
            owner = type(self).__name__
            if name in ("name", "fingerprint", "dim", "_told_of_empty", "_told_of_cut"):
                needed = "super().__init__(name=..., fingerprint=..., dim=...)"
                raise AttributeError(f"{owner} has no {name!r}: its __init__ has to call {needed}")
            raise AttributeError(f"{owner!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        if "fingerprint" not in vars(self):
            return f"{type(self).__name__}(without super().__init__)"
        return f"{type(self).__name__}({self.name!r}, dim={self.dim}, fingerprint={self.fingerprint!r})"

    def embed(self, texts: Sequence[str], *, progress: bool = False, batch_size: int = 64) -> NDArray[np.float32]:
        """Return the vectors of `texts`, which are searched: float32 (n, dim), C-contiguous, unit length, in order.

        What a text has beyond the model's limit is left out, see `cut`.
        Texts are composed first (Unicode's NFC): the same word typed on another system has the same vector.
        No texts give (0, dim). A text in which the model finds nothing (the empty string, for the models
        that have no special tokens) gets the first unit vector, and the log says so once.

        Parameters:
            texts: the texts, in memory.
            progress: show a tqdm bar.
            batch_size: how many texts the model gets at once, 1 or more.

        Raises:
            TypeError: `texts` is one string, or an element is not a string.
            ValueError: an element is not valid Unicode, or `batch_size` is below 1.
            EmbeddingError: the model gave NaN, infinity or another shape, or raised what is no error of the system
                (OSError, MemoryError), which passes through.
        """
        return self._embedded(texts, self._encode, progress, batch_size)

    def embed_query(self, texts: Sequence[str], *, progress: bool = False, batch_size: int = 64) -> NDArray[np.float32]:
        """Return the vectors of questions, as `embed` does for what is searched.

        Both are one unless a model is asked otherwise than it is told, as by a prompt ("query: ", "passage: "). A model
        of your own that makes a difference overrides this, to call `_embedded` with what encodes questions.
        """
        return self.embed(texts, progress=progress, batch_size=batch_size)

    def _embedded(
        self, texts: Sequence[str], encode: Encode, progress: bool = False, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Check, compose, sort and batch texts, and normalise what `encode` makes of each batch."""
        texts = _checked(texts)
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {short(batch_size)}")
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        with _progress_bar(len(texts), self.name) if progress else nullcontext() as bar:
            for rows in self._batches(texts, batch_size):
                vectors[rows] = self._unit_vectors(texts, rows, encode)
                if bar is not None:
                    bar.update(len(rows))
        return vectors

    def cut(self, texts: Sequence[str]) -> list[int]:
        """Return the positions of the texts that are longer than the model reads: the rest of them is ignored.

        Empty for a model that reads everything. The first time, the log shows the beginning of such a text. It only
        splits texts into tokens, which takes a few hundredths of the time of `embed`, and raises as `embed` does.
        """
        texts = _checked(texts)
        too_long = self._too_long(texts)
        if too_long and not self._told_of_cut:
            self._told_of_cut = True
            logger.warning(
                "%s does not read to the end of the text that begins %r: put first what tells it apart (said once)",
                self.name,
                texts[too_long[0]][:80],
            )
        return too_long

    @abstractmethod
    def _encode(self, batch: list[str]) -> NDArray[np.floating]:
        """Return the vectors of one batch: numbers (len(batch), dim), of any length, in the order given.

        Several threads may call it at once. It should hold no lock while it computes.
        """

    def _too_long(self, texts: list[str]) -> list[int]:
        """Return the positions of the texts that `_encode` cuts; none, unless overridden."""
        return []

    def _lengths(self, texts: list[str]) -> list[int]:
        """Return how much work each text is; texts of similar length share a batch. Characters, unless overridden."""
        return [len(text) for text in texts]

    def _batches(self, texts: list[str], batch_size: int) -> Iterator[list[int]]:
        """Yield rows of `texts`, the longest first: what does not fit into memory fails at once, not at the end."""
        rows = list(range(len(texts)))
        if len(rows) > batch_size:
            lengths = self._lengths(texts)
            rows.sort(key=lengths.__getitem__, reverse=True)
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]

    def _unit_vectors(self, texts: list[str], rows: list[int], encode: Encode) -> NDArray[np.float64]:
        try:
            block = np.array(encode([texts[row] for row in rows]), dtype=np.float64)
        except (EmbeddingError, OSError, MemoryError):
            raise
        except Exception as error:  # the model is foreign code: whatever it raises has one name here
            raise EmbeddingError(f"{self.name} failed on {len(rows)} texts: {error!r}") from error
        if block.shape != (len(rows), self.dim):
            raise EmbeddingError(
                f"{self.name} gave an array of shape {block.shape} for {len(rows)} texts: "
                f"expected {(len(rows), self.dim)}"
            )
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        finite = np.isfinite(norms[:, 0])
        if not finite.all():
            row = rows[int(np.argmin(finite))]
            raise EmbeddingError(
                f"{self.name} gave a vector with NaN or infinity for text {row}, {reprlib.repr(texts[row])}: "
                "its weights, its dtype or its device are at fault, not the text"
            )
        empty = norms[:, 0] == 0
        if empty.any():
            block[empty, 0] = norms[empty] = 1.0
            self._tell_of_empty(texts[rows[int(np.argmax(empty))]])
        unit: NDArray[np.float64] = block / norms
        return unit

    def _tell_of_empty(self, text: str) -> None:
        if not self._told_of_empty:
            self._told_of_empty = True
            logger.warning(
                "%s finds nothing to embed in %s: such texts get the first unit vector (said once)",
                self.name,
                reprlib.repr(text),
            )


def _checked(texts: Iterable[object]) -> list[str]:
    if isinstance(texts, str | bytes):
        raise TypeError(f"embed takes a list of texts, not one {type(texts).__name__}: embed([text])")
    checked: list[str] = []
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {row} is {reprlib.repr(text)} ({type(text).__name__}): expected a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {row} is not valid Unicode: {error.reason} at character {error.start} of "
                f"{reprlib.repr(text)}; mend it with text.encode(errors='replace').decode()"
            ) from None
        checked.append(unicodedata.normalize("NFC", text))
    return checked


def _progress_bar(total: int, name: str) -> tqdm:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=f"embedding with {name}", unit="text")
