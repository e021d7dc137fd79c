"""Where the files of a model lie, and what identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path


def package_folder(module: str) -> Path | None:
    """Find the folder of an installed package without importing it; None where it is not installed."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def digest(files: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that change when the content of any file does; names and folders do not count."""
    stamps = [(path, path.stat()) for path in files]
    return _digest(tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stamps))


@lru_cache(maxsize=64)  # weights are read once a process, unless they change
def _digest(stamped: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.blake2b(digest_size=8)
    for path, _, _ in stamped:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return whole.hexdigest()


def megabytes(paths: Iterable[Path]) -> float | None:
    """Return the size on disk of files and of whole folders, in MB of 10**6 bytes; None if one is absent."""
    total = 0
    for path in paths:
        if not path.exists():
            return None
        files = path.rglob("*") if path.is_dir() else [path]
        total += sum(file.stat().st_size for file in files if file.is_file())
    return round(total / 1e6, 1)
