"""Studies: parameters in, a tidy polars frame out; also ``copilotlab study NAME --out FILE``.

A study is a plain function with a `progress` parameter, a `seed` where anything is random, and a default for every
parameter. It measures piece by piece, and :func:`copilotlab.studies.result_cache.cached` keeps each piece on disk, so
an interrupted study goes on where it was. One line here makes a study a command.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from copilotlab.reasons import short

if TYPE_CHECKING:
    import polars as pl

ABOUT = {
    "models": "which embedding model: quality with intervals, speed, memory, and a cluster under each (minutes)",
    "recovery": "what each fault does to a cluster on a real server, and how long until all is right again (minutes)",
    "timeouts": "how long a lease may last, for a holder that lives, dies, freezes or hangs; simulated (a minute)",
    "ablation": "what breaks without each choice of the policy, and holds with it; simulated (seconds)",
}
STUDIES = {
    "models": "copilotlab.studies.models",
    "recovery": "copilotlab.studies.recovery",
    "timeouts": "copilotlab.studies.timeouts",
    "ablation": "copilotlab.studies.ablation",
}


class StudyNotInstalled(ImportError):
    """A package that a study needs is absent; the message holds the pip command that installs it."""


def load_study(name: str) -> Callable[..., pl.DataFrame]:
    """Return the study of that name: the function of the same name in its module.

    Raises ValueError for an unknown name, StudyNotInstalled where a package is absent.
    """
    if name not in STUDIES:
        raise ValueError(f"no study is called {short(name)}; there are: {', '.join(STUDIES)}")
    try:
        module = import_module(STUDIES[name])
    except ModuleNotFoundError as error:
        raise StudyNotInstalled(f"the study {name!r} needs {error.name}: pip install 'copilotlab[studies]'") from error
    study: Callable[..., pl.DataFrame] = getattr(module, name)
    return study
