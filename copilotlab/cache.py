"""Files that are made on this machine once and kept: exported models, results of studies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """Where copilotlab keeps what it made; whatever is in it may be deleted at any time, and is made again.

    COPILOTLAB_CACHE if it is set, else the platform's own place for caches (XDG_CACHE_HOME/copilotlab or
    ~/.cache/copilotlab on Linux). The folder itself may not exist yet.
    """
    chosen = os.environ.get("COPILOTLAB_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("copilotlab", appauthor=False)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make` if it is not there yet; never half made, and by one process at a time.

    Parameters:
        folder: its name should hold a digest of everything that decides what is in it.
        make: called with an empty folder to fill. If it raises or the process dies, `folder` stays absent, and the
            next call tries again.
    """
    if folder.is_dir():
        return folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # the system frees it when its holder dies
        if folder.is_dir():  # another process made it while this one waited
            return folder
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        if unfinished.exists():  # its maker died
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        make(unfinished)
        unfinished.rename(folder)
    return folder
