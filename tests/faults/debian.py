"""Debian's Redis, which has what the wheel's server has not, Sentinel and TLS; and certificates for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from copilotlab.lab.server import ServerError, _identify

ROOT = Path(__file__).parents[2]


def redis_server() -> Path:
    """Its program; where there is none the test is skipped, in CI it fails."""
    binary = Path(os.environ.get("COPILOTLAB_DEBIAN_REDIS") or ROOT / "build" / "debian-redis" / "redis-server")
    try:
        _identify(binary)
    except ServerError as error:
        absent(f"no redis-server with TLS and Sentinel ({error}): make debian-redis, or set COPILOTLAB_DEBIAN_REDIS")
    return binary


def absent(why: str) -> None:
    """Skip, or fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def make_certificates(folder: Path) -> None:
    """``ca.crt`` and, signed by it for 127.0.0.1, ``node.crt`` and ``node.key``; ``other.crt`` is another authority."""
    if shutil.which("openssl") is None:
        absent("no openssl on the PATH, which makes the certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for name in ("ca", "other"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-days", "2", "-subj", f"/CN={name}"
        )
    openssl("req", *key, "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=127.0.0.1")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signed_by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
    openssl("x509", "-req", "-in", "node.csr", *signed_by, "-days", "2", "-out", "node.crt", "-extfile", "names")
