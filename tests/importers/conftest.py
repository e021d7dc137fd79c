"""Files of an export, written where a test wants them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

Write = Callable[[Mapping[str, Any]], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Write files into a new folder: YAML as given, all else as JSON."""

    def write(files: Mapping[str, Any]) -> Path:
        for name, content in files.items():
            path = tmp_path / "export" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(content) if isinstance(content, str) else json.dumps(content))
        return tmp_path / "export"

    return write
