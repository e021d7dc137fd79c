"""A node behind HTTP: ``copilotlab serve``. Needs ``pip install 'copilotlab[serve]'``."""
