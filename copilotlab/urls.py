"""URLs, fit to be shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

_IN_QUERY = re.compile(r"([?&][^=&]*(?:password|passwd|pwd)=)[^&]*", re.IGNORECASE)


def hide_password(url: str) -> str:
    """Hide the passwords in ``url``, those in its options too, for logs, errors and status."""
    url = _IN_QUERY.sub(r"\1***", url)
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.rpartition("@")[2]  # it cannot be parsed: leave out what may be a password
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
