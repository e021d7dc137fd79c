"""Results of studies, kept on disk under all that decides them: arguments, version and code.

    @cached(version=1)
    def recovery(fault: str, policy: Policy, *, seed: int = 0, progress: bool = True) -> pl.DataFrame:
        ...

    recovery("kill", Policy())          # measured, and kept
    recovery("kill", Policy())          # read again
    with measured_anew():
        recovery("kill", Policy())      # measured again, and kept instead

Cut a study into such functions, and it goes on where it was when it was interrupted.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import ParamSpec

import numpy as np
import polars as pl

import copilotlab
from copilotlab.cache import cache_folder, writing
from copilotlab.embedding import Embedder
from copilotlab.studies.source_files import source_digest

P = ParamSpec("P")
Measuring = Callable[P, pl.DataFrame]

NOT_MEASURED = frozenset({"progress"})  # parameters that do not decide the result

_anew: ContextVar[bool] = ContextVar("measured_anew", default=False)


def cached(*, version: int, code: bool = True) -> Callable[[Measuring[P]], Measuring[P]]:
    """Decorate a function that returns a frame: equal arguments are measured once, on this machine.

    Parameters:
        version: of the function. Raise it where the same arguments would give another result and the code does not
            tell, as with another library; a new version of copilotlab counts as such, too.
        code: whether a change of the function's file, or of any file of copilotlab that it imports (`source_files`),
            measures again (True). False where the arguments say it all, as a model's fingerprint does.

    Arguments may be None, numbers, strings, paths (a file counts by its content), numpy arrays, frames, embedders
    (by fingerprint), dataclasses such as `Policy`, and sequences and mappings of these; others raise TypeError. The
    parameter `progress` does not count. Of a call that raises or is interrupted nothing is kept. Raises CacheError,
    before anything is measured, where the cache cannot be written.
    """

    def decorate(measure: Measuring[P]) -> Measuring[P]:
        signature = inspect.signature(measure)
        written = _code_of(measure.__globals__.get("__file__")) if code else ""  # now, as this code is loaded

        @functools.wraps(measure)
        def measure_once(*args: P.args, **kwargs: P.kwargs) -> pl.DataFrame:
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()
            arguments = {name: value for name, value in call.arguments.items() if name not in NOT_MEASURED}
            path = _path(measure.__name__, version, written, arguments)
            if path.exists() and not _anew.get():
                return pl.read_parquet(path)
            with writing(path.parent):  # before anything is measured in vain
                path.parent.mkdir(parents=True, exist_ok=True)
            frame = measure(*args, **kwargs)
            unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
            with writing(path.parent):
                frame.write_parquet(unfinished)
                unfinished.replace(path)  # readers see the old file or the new one, whole
            return frame

        return measure_once

    return decorate


@functools.cache
def _code_of(file: str | None) -> str:
    """Return the digest of a file and of what it imports; "" for None, code typed into a shell or a notebook."""
    return source_digest(Path(file)) if file is not None else ""


@contextmanager
def measured_anew() -> Iterator[None]:
    """Measure everything anew inside, and keep that, instead of reading what was kept."""
    token = _anew.set(True)
    try:
        yield
    finally:
        _anew.reset(token)


def _path(name: str, version: int, code: str, arguments: Mapping[str, object]) -> Path:
    plain = {key: _plain(value, key) for key, value in arguments.items()}
    decisive = json.dumps([copilotlab.__version__, version, code, plain], sort_keys=True)
    digest = hashlib.blake2b(decisive.encode(), digest_size=12).hexdigest()
    return cache_folder() / "studies" / f"{name}-v{version}-{digest}.parquet"


def _plain(value: object, name: str) -> object:
    """Turn a value into JSON that is equal for equal values, and for no others."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case Embedder():
            return ["embedder", value.fingerprint]
        case pl.DataFrame():
            return ["frame", str(value.schema), _digest(value.write_ndjson().encode())]
        case np.ndarray():
            return ["array", str(value.dtype), value.shape, _digest(np.ascontiguousarray(value).tobytes())]
        case Path():
            return ["file", _digest(value.read_bytes())] if value.is_file() else ["path", str(value)]
        case Mapping():
            return ["mapping", sorted([str(key), _plain(item, name)] for key, item in value.items())]
        case Sequence():
            return [_plain(item, name) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        held = {field.name: _plain(getattr(value, field.name), name) for field in fields(value)}
        return [type(value).__name__, held]
    raise TypeError(
        f"{name}={value!r}: the cache cannot tell a {type(value).__name__} from another; give a number, text, path, "
        "array, frame, embedder or dataclass, or a sequence or mapping of these"
    )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
