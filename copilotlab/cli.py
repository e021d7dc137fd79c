"""The command line: ``copilotlab demo``, ``study``, ``import``, ``serve`` and the rest."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial

IMPORT = {"import": "the charts of a BI tool, out of its export; its options: `copilotlab import --help`"}
SERVICE = {
    "serve": "one node behind HTTP; its options: `copilotlab serve --help`",
    "rebuild": "every chart into the cluster, once; its options: `copilotlab rebuild --help`",
    "admin": "the admin page without a node; its options: `copilotlab admin --help`",
    "config": "the effective settings of `serve`, and where each comes from",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 if all went as claimed, 1 if not, 2 for wrong words."""
    from copilotlab import __version__
    from copilotlab.embedding import DEFAULT_MODEL, EmbeddingError
    from copilotlab.studies import ABOUT, STUDIES, StudyNotInstalled

    parser = argparse.ArgumentParser(
        prog="copilotlab", description="A chart-finding copilot whose nodes agree through Redis."
    )
    parser.add_argument("--version", action="version", version=f"copilotlab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="nodes on a real server that dies and comes back empty")
    demo.add_argument("--nodes", type=int, default=4, help="how many nodes, 2 to 16 (4)")
    demo.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"the embedding model ({DEFAULT_MODEL}); see `copilotlab models`"
    )
    demo.add_argument("--charts", metavar="PATH", help="your own: an export of a BI tool, or a table (those that ship)")
    demo.add_argument("--format", help="of your own charts, such as grafana (found by looking)")
    commands.add_parser("models", help="the embedding models at hand")
    width = max(map(len, ABOUT))
    study = commands.add_parser(
        "study",
        help="measure something, and write or print the frame",
        description="Measure something, and write or print the frame.",
        epilog="studies:\n" + "\n".join(f"  {name:{width}}  {about}" for name, about in ABOUT.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.add_argument("name", choices=STUDIES, help="which study; its options: `copilotlab study NAME --help`")
    study.add_argument("options", nargs=argparse.REMAINDER)
    for name, what in (IMPORT | SERVICE).items():
        commands.add_parser(name, help=what, add_help=False).add_argument("options", nargs=argparse.REMAINDER)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] and given[0] in SERVICE:
        return _service(given[0], given[1:])
    if given[:1] and given[0] in IMPORT:
        return _import(given[1:])
    chosen = parser.parse_args(given)

    logging.getLogger("copilotlab").setLevel(logging.ERROR)  # the demo says itself what happens
    if chosen.command == "models":
        from copilotlab.embedding import available_embedders

        print(available_embedders())
        return 0

    from copilotlab.lab.server import ServerNotFound

    if chosen.command == "study":
        from copilotlab.studies.command import run_study

        command = partial(run_study, chosen.name, chosen.options)
    elif not 2 <= chosen.nodes <= 16:
        parser.error(f"--nodes {chosen.nodes}: expected 2 to 16")
    elif chosen.format and not chosen.charts:
        parser.error(f"--format {chosen.format}: goes with --charts, your own charts")
    else:
        from copilotlab.lab.demo import run_demo

        command = partial(run_demo, nodes=chosen.nodes, model=chosen.model, charts=chosen.charts, format=chosen.format)
    try:
        return command()
    except (EmbeddingError, ValueError, ServerNotFound, StudyNotInstalled, OSError) as error:
        print(f"copilotlab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _import(flags: Sequence[str]) -> int:
    """Import charts, which reads its own flags, environment and file."""
    from copilotlab.service.import_command import run_import

    try:
        return run_import(flags)
    except KeyboardInterrupt:
        return 130


def _service(command: str, flags: Sequence[str]) -> int:
    """Run a command of the service, which reads its own flags, environment and file."""
    try:
        from copilotlab.service.serve import admin, rebuild, serve, show_config
    except ImportError as error:
        print(f"copilotlab {command}: {error}: pip install 'copilotlab[serve]'", file=sys.stderr)
        return 2
    try:
        return {"serve": serve, "rebuild": rebuild, "admin": admin, "config": show_config}[command](flags)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"copilotlab {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
