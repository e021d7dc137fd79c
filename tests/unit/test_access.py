"""What a refusal is, in words, and what a node says that it needs."""

from __future__ import annotations

import re
import ssl
from importlib.resources import files
from pathlib import Path

import pytest
from redis import exceptions
from sqlalchemy import NullPool

from copilotlab.protocol import access

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
RULES = re.findall(r"```acl\n(.*?)\n```", PAGE, re.DOTALL)


def test_the_page_has_the_rules_that_a_refused_node_names():
    assert RULES[:2] == [access.least(), access.least("t1")]


def test_every_command_of_the_scripts_is_rehearsed():
    scripts = [
        path.read_text() for path in files("copilotlab.protocol.scripts").iterdir() if path.name.endswith(".lua")
    ]
    used = {command for text in scripts for command in re.findall(r"redis\.call\('(\w+)'", text)}
    assert used <= {*access.KEY_COMMANDS, *access.CHANNEL_COMMANDS}
    assert {"GET", "SET", "PUBLISH"} <= used


def test_what_is_forbidden_is_named_by_command_key_or_channel():
    pairs = access.needed(["k1", "k2"], ["c1", "c2"])

    def told(*refused):
        return access.forbidden(pairs, [int(not any(r in (pair, *pair) for r in refused)) for pair in pairs])

    assert told() == ""
    assert told("PUBLISH") == "the command PUBLISH"
    assert told("DEL", "PEXPIRE") == "the command DEL, the command PEXPIRE"
    assert told("k2") == "the key k2"
    assert told("c1") == "the channel c1"
    assert told("DEL", "c2") == "the command DEL, the channel c2"
    assert told(("SET", "k1")) == "SET on k1"
    assert told("LOAD") == "the command SCRIPT"
    assert access.forbidden(pairs, []) == "", "a server that cannot be asked"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            exceptions.NoPermissionError("no permissions to run the 'publish' command"),
            "PUBLISH on news: no permissions",
        ),
        (exceptions.ResponseError("ACL failure in script: No permissions to access a key"), "PUBLISH on news"),
        (exceptions.ResponseError("The user executing the script can't run this command"), "PUBLISH on news"),
        (exceptions.AuthenticationError("invalid username-password pair"), "redis://user:password@"),
        (exceptions.ResponseError("WRONGPASS invalid"), "redis://user:password@"),
        (exceptions.ResponseError("unknown command 'EVALSHA', with args"), "no Lua scripts"),
        (
            exceptions.ResponseError("Unknown Redis command called from script script: 1"),
            "does not know PUBLISH on news",
        ),
        (exceptions.ResponseError("DB index is out of range"), "database number"),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), "namespace"),
        (exceptions.MovedError("1 127.0.0.1:7"), "RedisCluster"),
        (exceptions.InvalidResponse("Protocol error, got 'H'"), "no Redis"),
        (ssl.SSLError(1, "[SSL: TLSV1_ALERT_PROTOCOL_VERSION]"), "TLS fails"),
        (ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]"), "add ssl_certfile="),
    ],
)
def test_a_mistake_is_told_with_what_mends_it(error, words):
    assert words in access.refusal(error, "PUBLISH on news")


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("refused"),
        exceptions.TimeoutError("late"),
        exceptions.BusyLoadingError("loading"),
        exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
        exceptions.ReadOnlyError("You can't write against a read only replica."),
        exceptions.MasterDownError("MASTERDOWN"),
        exceptions.ResponseError("MISCONF Errors writing to the AOF file"),
        ssl.SSLEOFError(8, "EOF occurred"),
        OSError("network is unreachable"),
    ],
)
def test_what_time_heals_is_no_refusal(error):
    assert access.refusal(error, "GET on key") is None


def test_the_engine_of_the_page_keeps_no_connection_and_prepares_nothing():
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "create_engine" in text]
    names: dict = {}
    exec(block, names)
    engine = names["engine"]
    assert isinstance(engine.pool, NullPool)
    arguments: dict = {}
    real = engine.dialect.connect
    engine.dialect.connect = lambda *_, **given: arguments.update(given) or real(*_, **{**given, "host": "/nowhere"})
    with pytest.raises(Exception, match="nowhere"):
        engine.connect()
    assert arguments["prepare_threshold"] is None
