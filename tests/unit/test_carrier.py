"""Where Redis is said to be: what is taken, what is refused, and in which words."""

from __future__ import annotations

import pytest
import redis
from redis.sentinel import Sentinel

from copilotlab import ChartRepository, Node, load_embedder
from copilotlab.protocol.carrier import RedisCarrier
from copilotlab.urls import hide_password


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:6379/0", "redis://:p@host/", "rediss://u:p@host:1/3", "unix:///tmp/redis.sock?db=2"]
)
def test_a_url_of_redis_is_taken_and_nothing_is_connected(url):
    assert "p@" not in RedisCarrier(url).address


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://host:6379", "none of redis://"),
        ("redis://host/charts", "'charts', and no number"),
        ("redis://host:port/0", "port"),
        ("redis://[::1", "IPv6"),
        ("redis://host?bogus=1", "bogus"),
        ("redis://host?socket_timeout=5", "redis_timeout"),
        ("redis://host?decode_responses=True", "bytes"),
    ],
)
def test_what_is_no_url_of_redis_is_named(url, reason):
    with pytest.raises(ValueError, match=reason) as error:
        RedisCarrier(url)
    assert "redis://127.0.0.1:6379/0" in str(error.value)


def test_no_error_shows_a_password():
    with pytest.raises(ValueError, match="is not a Redis URL") as error:
        RedisCarrier("redis://user:secret@[::1")
    assert "secret" not in str(error.value)
    assert hide_password("redis://user:secret@host/0") == "redis://user:***@host/0"


def test_a_password_in_the_query_of_a_url_is_shown_nowhere():
    url = "redis://127.0.0.1:1/0?username=u&password=sek#ret&health_check_interval=9"
    shown = "redis://127.0.0.1:1/0?username=u&password=***&health_check_interval=9"
    assert hide_password(url) == shown
    assert hide_password("redis://u:sekret@h?ssl_password=sekret") == "redis://u:***@h?ssl_password=***"
    assert hide_password("unix:///tmp/redis.sock?Password=sekret") == "unix:///tmp/redis.sock?Password=***"
    assert hide_password("redis://[::1?password=sekret") == "redis://[::1?password=***"
    with pytest.raises(ValueError, match="bogus") as error:
        RedisCarrier("redis://h/0?password=sekret&bogus=1")
    assert "sekret" not in str(error.value)

    node = Node(ChartRepository(), load_embedder("hash"), url, node_id="a")
    node.connect()
    told = (repr(node.coordinator), str(node.status()), node._repr_html_(), repr(node.journal.entries()))
    assert node.coordinator.link.address == shown
    assert not any("sek#ret" in text for text in told)


def test_a_client_that_decodes_is_refused():
    with pytest.raises(ValueError, match="decode_responses"):
        RedisCarrier(redis.Redis(decode_responses=True))
    assert RedisCarrier(redis.Redis(port=7)).address == "redis://localhost:7/0"


def test_the_address_of_a_client_is_shown_as_what_it_is():
    sentinel = Sentinel([("s1", 26379), ("s2", 26380)])
    password = {"password": "secret", "username": "u"}
    shown = [
        RedisCarrier(sentinel.master_for("charts", db=2, **password)).address,
        RedisCarrier(redis.Redis(host="h", port=7, ssl=True, **password)).address,
        RedisCarrier(redis.Redis(unix_socket_path="/tmp/r.sock", **password)).address,
    ]
    assert shown == ["redis-sentinel://s1:26379,s2:26380/charts/2", "rediss://h:7/0", "unix:///tmp/r.sock"]


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_file_of_a_url_that_is_not_there_is_named(option, tmp_path):
    with pytest.raises(ValueError, match=rf"{option}=.*missing\.crt is not there"):
        RedisCarrier(f"rediss://h:1/0?{option}={tmp_path}/missing.crt")
