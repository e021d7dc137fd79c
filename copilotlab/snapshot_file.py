"""The file in which a node keeps its vectors, so that after a restart of all nodes nothing is embedded again.

It is written behind, on a thread of its own, and once more when the node stops. What is read from it at the start is
answered from at once, and reconciled with the repository like anything else that a node holds.
"""

from __future__ import annotations

import time
from os import PathLike
from pathlib import Path

from filelock import FileLock, Timeout

from copilotlab.lifetime import Background
from copilotlab.monitoring.happenings import SnapshotFailed, SnapshotLeftAside, SnapshotRestored, SnapshotSaved
from copilotlab.protocol.context import Context
from copilotlab.protocol.replica import Replica
from copilotlab.reasons import short
from copilotlab.store import FileRefused, VectorStore

SAVE_SECONDS = 60.0  # from one writing to the next, on the node's clock, where something has changed


class SnapshotFile:
    """One node's file, locked for as long as the node lives: ``path`` with ``.lock`` beside it.

    Raises TypeError for what is no path, ValueError where there is no such folder or nodes do not reconcile, and
    RuntimeError where another node keeps its vectors there.
    """

    def __init__(self, path: str | PathLike[str], context: Context) -> None:
        if not isinstance(path, str | PathLike):
            raise TypeError(f"snapshot={short(path)}: expected the path of a file, such as 'node-a.vectors'")
        self.path = Path(path)
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise ValueError(f"snapshot={str(path)!r}: expected a file in a folder that is there")
        if not context.policy.reconcile:
            raise ValueError("snapshot= needs a policy that reconciles: what is old in the file would stay for ever")
        self._context = context
        self._lock = FileLock(f"{self.path}.lock", timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise RuntimeError(
                f"snapshot={str(path)!r}: another node keeps its vectors there; give each node a file of its own"
            ) from None
        self._writing: Background | None = None
        self._closing = False
        self._next_save = context.clock.now() + SAVE_SECONDS
        self._written: tuple[str, int] | None = None  # model and the store's version, as they were when it was written
        self._charts = 0
        self._saved_at: float | None = None
        self._trouble = ""

    def restore(self, store: VectorStore, *, model: str, catalogue: str) -> None:
        """Fill a new store from the file, if there is one of this model and catalogue; say what is left aside."""
        try:
            self._charts = store.restore(self.path, model=model, catalogue=catalogue)
        except FileNotFoundError:
            return
        except (FileRefused, OSError) as error:
            self._trouble = f"left aside: {error}"
            self._context.tell(SnapshotLeftAside(str(error)))
            return
        self._written = model, store.version
        self._context.tell(SnapshotRestored(self._charts, str(self.path)))

    def step(self, replica: Replica) -> None:
        """Have the file written in the background, if that is due; waits for nothing."""
        now = self._context.clock.now()
        if now >= self._next_save and self._written != _state(replica):
            self._next_save = now + SAVE_SECONDS
            self._begin(replica)

    def close(self, replica: Replica, seconds: float) -> bool:
        """Write the file a last time if something has changed, and give it up; False if that took longer.

        Then the thread that still writes gives it up when it has written.
        """
        self._closing, until = True, time.monotonic() + seconds
        if self._writing is not None and not self._writing.ended.wait(seconds):
            return False
        if self._lock.is_locked and self._written != _state(replica):
            self._begin(replica)
            if self._writing is not None and not self._writing.ended.wait(max(0.0, until - time.monotonic())):
                return False
        self.let_go()
        return True

    def let_go(self) -> None:
        """Give the file up, as it is: another node may have it."""
        self._lock.release()

    def _begin(self, replica: Replica) -> None:
        if self._writing is None or self._writing.ended.is_set():
            self._writing = Background(lambda: self._write(replica), f"copilotlab-snapshot-of-{self._context.node_id}")
            self._writing.start()

    def _write(self, replica: Replica) -> None:
        try:
            self._save(replica)
        finally:
            if self._closing:
                self.let_go()

    def _save(self, replica: Replica) -> None:
        state, catalogue = _state(replica), replica.coordinator.link.identity.incarnation
        try:
            self._charts = replica.store.save(self.path, model=state[0], catalogue=catalogue)
        except OSError as error:
            self._trouble = f"cannot be written: {error}"
            self._context.tell(SnapshotFailed(f"{self.path}: {error}"))
            return
        self._written, self._saved_at, self._trouble = state, self._context.clock.now(), ""
        self._context.tell(SnapshotSaved(self._charts))

    def __str__(self) -> str:
        """Say what is in the file, in a line, as a node's status has it."""
        if self._trouble:
            return f"{self.path}: {self._trouble}"
        if self._saved_at is None:
            return (
                f"{self.path}: {self._charts:,} charts restored" if self._written else f"{self.path}: not written yet"
            )
        return f"{self.path}: {self._charts:,} charts, written {self._context.clock.now() - self._saved_at:.0f} s ago"

    def __repr__(self) -> str:
        return f"SnapshotFile({self})"


def _state(replica: Replica) -> tuple[str, int]:
    return replica.embedder.fingerprint, replica.store.version
