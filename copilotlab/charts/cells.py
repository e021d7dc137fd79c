"""What a chart takes for one cell of a frame or file: the same value in whatever type it came."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np

from copilotlab.charts.chart import LISTS, ChartError
from copilotlab.reasons import short

_WHOLE_NUMBER = re.compile(r"\s*(\d{1,100})(\.0*)?\s*")
_SEPARATORS = ";|,"  # of words in a cell; the first that is in it: the later are more likely within a word
_LARGEST_FLOAT = 2**53  # from here on a float may stand for several whole numbers


def value_of(name: str, cell: object) -> Any:
    """Give what a chart takes for its field ``name``, of a cell that is not absent.

    Raises ChartError where a number or a list cannot be read; `Chart` checks the rest.
    """
    if name == "chart_id":
        return _number(cell)
    if name in LISTS:
        return _words(name, cell)
    return str(cell) if isinstance(cell, str) else cell  # numpy has strings of its own


def is_absent(cell: object) -> bool:
    """Return whether the cell is None, NaN, or pandas' NA or NaT."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and (cell is pandas.NA or cell is pandas.NaT):
        return True
    return cell is None or (isinstance(cell, float | np.floating) and bool(np.isnan(cell)))


def is_blank(cell: object) -> bool:
    """Return whether the cell is absent, or has nothing in it but white space."""
    if isinstance(cell, str):
        return not cell.strip()
    return is_absent(cell) or (isinstance(cell, list | tuple | np.ndarray) and len(cell) == 0)


def _number(cell: object) -> object:
    """Return a whole number, also where it was stored as a float or as text; anything else as it is."""
    if isinstance(cell, str):
        found = _WHOLE_NUMBER.fullmatch(cell)
        return int(found[1]) if found else cell
    if isinstance(cell, Decimal) and cell.is_finite() and cell == int(cell):
        return int(cell)
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        if abs(float(cell)) >= _LARGEST_FLOAT:
            raise ChartError(
                f"chart_id={short(cell)}: a float of this size has lost its last digits; expected a whole number, as "
                "int64 or as text"
            )
        return int(cell)
    return cell


def _words(name: str, cell: object) -> object:
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, list | tuple):
        return [str(word) if isinstance(word, str) else word for word in cell]
    if not isinstance(cell, str):
        return cell
    if cell.lstrip().startswith("["):
        return _written_list(name, cell.strip())
    separator = next(mark for mark in _SEPARATORS if mark in cell or mark == _SEPARATORS[-1])
    return [word.strip() for word in cell.split(separator) if word.strip()]


def _written_list(name: str, cell: str) -> object:
    """Read a list as JSON or Python writes it: pandas puts the latter into a .csv."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        if not _lacks_commas(cell):
            return ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        pass
    raise ChartError(
        f'{name}={short(cell)}: expected a list in JSON, such as ["Revenue", "Units"], or words with semicolons, '
        "| or commas between"
    )


def _lacks_commas(cell: str) -> bool:
    """Return whether two strings stand side by side, as numpy writes an array: Python would make one word of them."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(cell).readline)]
    lines = (tokenize.NL, tokenize.NEWLINE)
    return (tokenize.STRING, tokenize.STRING) in pairwise(kind for kind in kinds if kind not in lines)
