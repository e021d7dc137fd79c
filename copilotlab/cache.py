"""Files that are made on this machine once and kept: exported models, results of studies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


class CacheError(OSError):
    """The cache cannot be written; the message names the folder, and how to choose another one."""


def cache_folder() -> Path:
    """Return the folder in which copilotlab keeps what it made; all of it may be deleted, and is then made again.

    It is COPILOTLAB_CACHE if that is set, else the platform's own place for caches (XDG_CACHE_HOME/copilotlab or
    ~/.cache/copilotlab on Linux). It may not exist yet. Where the user has no home, it begins with "~" and cannot be
    made.
    """
    chosen = os.environ.get("COPILOTLAB_CACHE")
    if chosen:
        folder = Path(os.path.expanduser(chosen))
        return folder if folder.parts[0].startswith("~") else folder.absolute()
    from platformdirs import user_cache_path

    return user_cache_path("copilotlab", appauthor=False)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an OSError of what makes ``folder``, or writes to it, into CacheError."""
    try:
        if not folder.is_absolute():
            raise OSError("this user has no home folder")
        yield
    except OSError as error:
        raise CacheError(
            f"the cache {folder} cannot be written ({error.strerror or error}): set the environment variable "
            "COPILOTLAB_CACHE to a folder that can"
        ) from error


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return `folder`, made by `make` if it is not there yet; never half made, and by one process at a time.

    Parameters:
        folder: its name should hold a digest of all that decides what is in it.
        make: called with an empty folder, to fill it. If it raises or the process dies, `folder` stays absent, and the
            next call tries again.

    Raises CacheError where the cache cannot be written, and what `make` raises.
    """
    if folder.is_dir():
        return folder
    from filelock import FileLock

    with ExitStack() as held:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(folder.with_name(f"{folder.name}.lock")))  # it is freed when its holder dies
        if folder.is_dir():  # another process made it while this one waited
            return folder
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        with writing(folder):
            if unfinished.exists():  # its maker died
                shutil.rmtree(unfinished)
            unfinished.mkdir()
        make(unfinished)
        with writing(folder):
            unfinished.rename(folder)
    return folder
