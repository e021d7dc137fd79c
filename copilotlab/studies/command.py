"""``copilotlab study NAME``: a study from the shell. Its options are the parameters of the function."""

from __future__ import annotations

import argparse
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from copilotlab.studies import load_study
from copilotlab.studies.result_cache import measured_anew

WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    ".parquet": pl.DataFrame.write_parquet,
    ".csv": pl.DataFrame.write_csv,
    ".ndjson": pl.DataFrame.write_ndjson,
}


def run_study(name: str, arguments: Sequence[str]) -> int:
    """Run the study `name` with its options from the command line, write or print its frame, and return the exit code.

    Wrong options end the program with code 2, as argparse does, before anything is measured. Raises what the study
    raises.
    """
    study = load_study(name)
    parser = _parser(name, study)
    chosen = vars(parser.parse_args(arguments))
    out, anew = chosen.pop("out"), chosen.pop("anew")
    if out is not None and (out.suffix not in WRITERS or not out.parent.is_dir()):
        parser.error(f"--out {out}: expected a name that ends in {', '.join(WRITERS)}, in a folder that exists")
    if anew:
        with measured_anew():
            frame = study(**chosen)
    else:
        frame = study(**chosen)
    if out is None:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, tbl_hide_dataframe_shape=True, float_precision=3):
            print(frame)
    else:
        WRITERS[out.suffix](frame, out)
        print(f"{frame.height:,} rows in {out}", file=sys.stderr)
    return 0


def _parser(name: str, study: Callable[..., pl.DataFrame]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"copilotlab study {name}",
        description=inspect.getdoc(study),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="a file to write: .parquet, .csv or .ndjson; else it is printed")
    parser.add_argument("--anew", action="store_true", help="measure again what is kept from before")
    types_of = typing.get_type_hints(inspect.unwrap(study))
    for parameter in inspect.signature(study).parameters.values():
        settings = _settings(types_of[parameter.name])
        if settings is not None:
            option = f"--{parameter.name.replace('_', '-')}"
            parser.add_argument(option, default=parameter.default, help=f"default: {parameter.default}", **settings)
    return parser


def _settings(hint: object) -> Mapping[str, typing.Any] | None:
    """Tell argparse how to read a parameter of that type; None for a type that cannot be given on a command line."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else (hint,)
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": choices}
    if typing.get_origin(hint) in (Sequence, tuple, list):
        return {"nargs": "+", "type": choices[0]}
    if bool in choices:
        return {"action": argparse.BooleanOptionalAction}
    for simple in (int, float, str):
        if simple in choices:
            return {"type": simple}
    return None
