"""Where charts come from: the exports of BI tools, and tables, read into a catalogue."""

from copilotlab.importers.catalogue import Catalogue
from copilotlab.importers.draft import CatalogueError
from copilotlab.importers.reading import FORMATS, read_catalogue

__all__ = ["FORMATS", "Catalogue", "CatalogueError", "read_catalogue"]
