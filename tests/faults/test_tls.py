"""TLS with an authority of one's own, as docs/deployment.md has it, on Debian's Redis: the wheel's server has none."""

from __future__ import annotations

import re

import pytest
from debian import make_certificates, redis_server
from test_deployments import PAGE, live_a_little, node_on, url_of

from copilotlab import ChartRepository, LocalRedis
from copilotlab.lab.server import ReservedPort
from copilotlab.protocol.carrier import CarrierRefused

URLS = re.findall(r"^rediss://\S+$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture
def start(certificates):
    """Starts a server with TLS; its port, and one without."""
    servers, ports = [], []

    def start(auth_clients="no"):
        port = ReservedPort()
        ports.append(port)
        files = [
            word for key in ("cert", "key") for word in (f"--tls-{key}-file", str(certificates / f"node.{key[:3]}"))
        ]
        files[1] = str(certificates / "node.crt")
        files += ["--tls-ca-cert-file", str(certificates / "ca.crt"), "--tls-auth-clients", auth_clients]
        server = LocalRedis(redis_server(), tcp=True, args=["--tls-port", str(port.address[1]), *files])
        servers.append(server)
        server.start()
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "copilot", "reset", "on", ">password", "~*", "&*", "+@all")
        return port.address[1], server

    yield start
    for closing in (*servers, *ports):
        closing.close()


def at(url, port, certificates):
    return url.replace("@host:6379", f"@127.0.0.1:{port}").replace("/etc/redis", str(certificates))


def refused(url, words):
    node = node_on(url, "a", ChartRepository())
    with pytest.raises(CarrierRefused, match=words) as error:
        node.start()
    assert "password@" not in str(error.value)


def test_the_urls_of_the_page_lead_to_a_server_with_tls(start, certificates):
    port, _ = start()
    live_a_little(at(URLS[0], port, certificates), ChartRepository())
    port, _ = start(auth_clients="yes")
    live_a_little(at(URLS[1], port, certificates), ChartRepository())


def test_what_is_wrong_with_tls_is_told_where_the_node_starts(start, certificates):
    port, server = start()
    right = at(URLS[0], port, certificates)
    refused(right.replace("ca.crt", "other.crt"), "certificate is not trusted.*ssl_ca_certs")
    refused(right.partition("?")[0], "certificate is not trusted.*ssl_ca_certs")
    refused(right.replace("127.0.0.1", "localhost"), "not trusted.*localhost.*as the certificate names it")
    refused(right.replace("rediss://", "redis://").partition("?")[0], "it speaks TLS: the URL is rediss://")
    refused(right.replace(str(port), str(server.address[1])), "it does not speak TLS: the URL is redis://")
    asking, _ = start(auth_clients="yes")
    refused(at(URLS[0], asking, certificates), "certificate of ours: add ssl_certfile=")


def test_a_server_with_tls_that_is_away_is_away(start, certificates):
    port, server = start()
    url = at(URLS[0], port, certificates)
    server.pause()
    assert not node_on(url, "a", ChartRepository()).connect(), "frozen"
    server.kill()
    node = node_on(url, "a", ChartRepository())
    assert not node.connect()
    assert (node.status()["redis"], node.context.metrics["refusals"]) == ("away", 0)
    assert not node_on(url_of(server), "b", ChartRepository()).connect()
