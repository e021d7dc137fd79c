"""``python -m copilotlab``: the command line."""

from copilotlab.cli import main

raise SystemExit(main())
