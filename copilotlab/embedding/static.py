"""Static models: a text's vector is the mean of its tokens' rows in one table. No torch, no attention.

`wordllama` is read straight from its wheel. Its own loader looks for the tokenizer in a folder that the
wheel does not have and then downloads it, and importing it sets up the root logger; this does neither.

`minilm-static` is distilled from MiniLM by model2vec on first use, and then kept: every token goes through the model
alone, principal components bring its vector down to 256 numbers, and rare tokens weigh more than frequent ones.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copilotlab.cache import cache_folder, made_once
from copilotlab.embedding.base import TEXT, Embedder, EmbeddingError
from copilotlab.embedding.quiet import quietly
from copilotlab.embedding.transformer import minilm_files, model_files, threads_that_sleep
from copilotlab.embedding.weights import digest, package_folder
from copilotlab.reasons import short

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

_WORDLLAMA_DIMS = (64, 128, 256)
_DISTILLED_VERSION = 1  # raise it when the distilling changes: it is in the folder's name


class StaticEmbedder(Embedder):
    """Average the rows of a table of token vectors. A vector does not depend on the batch, bit for bit.

    Parameters:
        tokenizer: turns a text into rows of the table; padding and truncation off.
        table: float (tokens, dim).
    """

    def __init__(self, tokenizer: Tokenizer, table: NDArray[np.floating], *, name: str, fingerprint: str) -> None:
        super().__init__(name=name, fingerprint=fingerprint, dim=table.shape[1])
        self._tokenizer = tokenizer
        self._table = np.ascontiguousarray(table, dtype=np.float32)

    def _encode(self, batch: list[str]) -> NDArray[np.float32]:
        # No lock: nothing changes this tokenizer after it is loaded. The sum points where the mean does.
        encodings = self._tokenizer.encode_batch(batch, add_special_tokens=False)
        return np.stack([self._table[encoding.ids].sum(axis=0) for encoding in encodings])


def wordllama_files() -> tuple[Path, ...]:
    """Find weights and tokenizer inside the wordllama wheel; () where it is not installed."""
    folder = package_folder("wordllama")
    if folder is None:
        return ()
    return (
        folder / "weights" / "l2_supercat_256.safetensors",
        folder / "tokenizers" / "l2_supercat_tokenizer_config.json",
    )


def load_wordllama(name: str, *, dim: int = 256) -> StaticEmbedder:
    """Load WordLlama's l2_supercat; its first 64 or 128 components are a smaller model of their own."""
    if dim not in _WORDLLAMA_DIMS:
        raise ValueError(f"dim must be one of {_WORDLLAMA_DIMS}, not {short(dim)}")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    weights, vocabulary = wordllama_files()
    try:
        table = load_file(weights)["embedding.weight"]
        tokenizer = Tokenizer.from_file(str(vocabulary))
    except (OSError, KeyError, SafetensorError) as error:
        raise EmbeddingError(
            f"the installed wordllama does not hold the model as expected ({error}): "
            "pip install --force-reinstall wordllama"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    fingerprint = f"{name}:{dim}:{digest((weights, vocabulary))}:{TEXT}"
    return StaticEmbedder(tokenizer, table[:, :dim], name=name, fingerprint=fingerprint)


def distilled_files() -> tuple[Path, ...]:
    """Return the folder of the distilled model, whether or not it exists yet; () without the MiniLM wheel."""
    return tuple(
        cache_folder() / "models" / f"minilm-static-v{_DISTILLED_VERSION}-{digest(model_files(folder))}"
        for folder in minilm_files()
    )


def load_minilm_static(name: str) -> StaticEmbedder:
    """Load all-MiniLM-L6-v2 without its attention: 256 dimensions, thousands of texts a second, of lower quality."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = made_once(distilled_files()[0], _distil)
    weights, vocabulary = folder / "model.safetensors", folder / "tokenizer.json"
    try:
        table = load_file(weights)["embeddings"].astype(np.float32)
        tokenizer = Tokenizer.from_file(str(vocabulary))
    except (OSError, KeyError, SafetensorError) as error:
        raise EmbeddingError(f"{folder} is damaged ({error}): delete it, and it is made again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    table[tokenizer.token_to_id("[UNK]")] = 0  # a word that is not in the vocabulary counts for nothing
    fingerprint = f"{name}:{table.shape[1]}:{digest((weights, vocabulary))}:{TEXT}"
    return StaticEmbedder(tokenizer, table, name=name, fingerprint=fingerprint)


def _distil(folder: Path) -> None:
    """Write a model that model2vec can load too into `folder`; takes 30 to 90 seconds on 2 cores."""
    logger.info("distilling minilm-static from the MiniLM wheel, once; it takes about a minute")
    (source,) = minilm_files()
    with threads_that_sleep():
        from model2vec.distill import distill

    with quietly():
        model = distill(str(source), device="cpu")
    model.save_pretrained(folder)
