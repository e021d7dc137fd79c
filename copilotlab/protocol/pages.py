"""How large the pages may be that nodes put into Redis for each other: a size that a server refuses is halved."""

from __future__ import annotations

import re
import threading

from copilotlab.store.records import HASH_BYTES

PAGE_BYTES = 512 * 1024  # managed servers take requests of 1 MB, some of them no larger ones
LEAST_PAGE_BYTES = 16 * 1024  # a server that refuses even these is of no use
ENVELOPE_BYTES = 1024  # of a page, beside its rows: the model's name, lengths, the version and the checksum
MANIFEST_ROW_BYTES = 16 + 2 * HASH_BYTES

# Redis and Valkey (proto-max-bulk-len), Upstash and Azure, Envoy and twemproxy.
_FOR_ITS_SIZE = re.compile(
    r"invalid (multi)?bulk length|max(imum)? (request|value|message) size|exceeds (the )?maximum|too (large|big|long)",
    re.IGNORECASE,
)


def is_for_size(reason: str) -> bool:
    """Tell whether a server's words say that what it was sent is too large."""
    return _FOR_ITS_SIZE.search(reason) is not None


class PageRefused(Exception):
    """Redis did not take a page, most likely for its size: make it again, within the bound that holds now."""


class PageBound:
    """The most bytes that a page may have, as far as the server is known; safe for threads.

    bytes: 512 KiB at first.
    """

    def __init__(self) -> None:
        self.bytes = PAGE_BYTES
        self._cuts = 0  # of the line, in a row
        self._cut_at = 0  # bytes of the page that was cut last
        self._lock = threading.Lock()

    def records(self, dim: int) -> int:
        """Return how many records of ``dim`` floats go into a page; 1 or more."""
        return max(1, (self.bytes - ENVELOPE_BYTES) // (16 + HASH_BYTES + 4 * dim))

    @property
    def manifest_rows(self) -> int:
        """How many rows of a manifest go into a page."""
        return (self.bytes - ENVELOPE_BYTES) // MANIFEST_ROW_BYTES

    def taken(self, size: int) -> None:
        """Note that the server took a page of ``size`` bytes."""
        if size >= self._cut_at:
            self._cuts = 0

    def refused(self, size: int, reason: str) -> bool:
        """Note that a server that answers has refused a page of ``size`` bytes; False if no smaller one is worth a try.

        Where it does not say why (the line was cut), the same page gets a second try first.
        """
        with self._lock:
            if self.bytes <= LEAST_PAGE_BYTES or size <= LEAST_PAGE_BYTES:
                return False
            self._cuts += 1
            self._cut_at = size
            if self._cuts > 1 or is_for_size(reason):
                self.bytes = max(LEAST_PAGE_BYTES, min(self.bytes, size) // 2)
                self._cuts = 0
            return True

    def reset(self) -> None:
        """Forget the bound: there may be another server now, or another line to it."""
        self.bytes = PAGE_BYTES
        self._cuts = 0

    def __repr__(self) -> str:
        return f"PageBound({self.bytes:,} bytes)"
