"""Connections of psycopg on which every wait has a limit, also where the server is frozen or the line is dead.

Neither TCP nor a statement timeout ends such waits: the kernel of a frozen server still acknowledges what it gets, and
the statement timeout is the server's own to keep.
"""

from __future__ import annotations

import math
import time
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen

T = TypeVar("T")

GRACE = 0.5  # seconds more, in which the server may say by itself that a statement took too long


class PatientConnection(psycopg.Connection[Any]):
    """Closes itself, and raises OperationalError, where the server says nothing for ``patience`` seconds."""

    patience: float

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait as psycopg's own method does, which everything on a connection goes through, but not for ever."""
        patience = self.patience if timeout is None else timeout
        began = time.monotonic()
        try:
            return super().wait(gen, interval, patience)
        except psycopg.errors.QueryCanceled:
            raise  # the server's word
        except psycopg.OperationalError as error:
            if time.monotonic() - began < patience:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer in {patience:g} s") from error


def connection_arguments(timeout: float) -> dict[str, Any]:
    """Return psycopg's defaults, so that connecting ends and dead lines are noticed. timeout: seconds."""
    seconds = max(1, round(timeout))
    return {
        # Whole seconds, 2 at least for psycopg. The other half is for finding that the last connection is dead.
        "connect_timeout": max(2, math.ceil(timeout / 2)),
        "keepalives_idle": seconds,
        "keepalives_interval": seconds,
        "keepalives_count": 2,
        "tcp_user_timeout": round(1_000 * timeout),
    }


def bound_waits(engine: sa.Engine, timeout: float) -> None:
    """Make each statement on ``engine`` end within ``timeout`` seconds, by the server or, if it is silent, here.

    The engine has to be in AUTOCOMMIT: its transactions begin in words, with their bounds, in one round trip. These
    words are the test of a connection too, so they wait half as long: a fresh one may be needed.
    """
    bounds = f"SET LOCAL statement_timeout = {round(1_000 * timeout)}"
    # A client that is frozen while it holds the counter's lock must not hold up the whole catalogue.
    holding = f"SET LOCAL idle_in_transaction_session_timeout = {round(2_000 * timeout)}"
    read = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {bounds}"  # several statements see one moment
    write = f"BEGIN ISOLATION LEVEL READ COMMITTED; {bounds}; {holding}"  # whoever waited sees what the other one did

    def connect(_dialect: object, _record: object, args: list[Any], options: dict[str, Any]) -> PatientConnection:
        connection = PatientConnection.connect(*args, **options)
        connection.patience = timeout + GRACE
        return connection

    def begin(connection: sa.Connection) -> None:
        line = connection.connection.driver_connection
        assert isinstance(line, PatientConnection)
        line.patience = timeout / 2
        connection.exec_driver_sql(
            read if connection.get_execution_options().get("copilotlab_writes") is False else write
        )
        line.patience = timeout + GRACE

    sa.event.listen(engine, "do_connect", connect)
    sa.event.listen(engine, "begin", begin)
