"""Keep the output of the libraries that load and make models out of logs and notebooks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the bar that transformers draws on stderr at each load."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


@contextmanager
def quietly() -> Iterator[None]:
    """Hide warnings, progress bars and everything in the log below an error; leave the root logger as it was.

    For the seconds in which a model is made: exporter, quantiser and distiller draw bars that cannot be switched off,
    and give a root logger without handlers one that goes on printing afterwards.
    """
    from tqdm import tqdm

    talkative = [logging.root, logging.getLogger("torch.onnx._internal.exporter._registration")]
    levels = [log.level for log in talkative]
    silent = logging.NullHandler()
    drawn = tqdm.__init__
    with warnings.catch_warnings(), without_progress_bars():
        warnings.simplefilter("ignore")
        for log in talkative:
            log.setLevel(logging.ERROR)
        logging.root.addHandler(silent)
        tqdm.__init__ = partialmethod(drawn, disable=True)
        try:
            yield
        finally:
            tqdm.__init__ = drawn
            logging.root.removeHandler(silent)
            for log, level in zip(talkative, levels, strict=True):
                log.setLevel(level)
