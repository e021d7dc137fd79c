"""`openai:` models against a server that is wrong, busy, slow or away: a clear error, and never a wrong vector."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from copilotlab.embedding import EmbeddingError, load_embedder, openai
from copilotlab.embedding.openai import OpenAIEmbedder
from copilotlab.embedding.prompts import Prompts

Reply = Callable[["Handler", list[str]], tuple[int, object]]


def vector(text: str) -> list[float]:
    """What the server's model makes of a text: 4 numbers."""
    return [float(len(text)), float(ord(text[0])), float(ord(text[-1])), 1.0]


def right(handler: Handler, texts: list[str]) -> tuple[int, object]:
    return 200, {"data": [{"index": at, "embedding": vector(text)} for at, text in enumerate(texts)]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.asked.append((self.path, asked, self.headers.get("Authorization")))
        status, content = (server.replies.pop(0) if server.replies else right)(self, asked["input"])
        if not status:  # it hangs up
            self.close_connection = True
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status in (301, 429):
            self.send_header("Location" if status == 301 else "Retry-After", "7")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """It answers rightly, but for the replies that wait to be given, first come first served."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply] = []
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    running.replies.clear()
    running.asked.clear()
    return running


def answer(content: object, status: int = 200) -> Reply:
    return lambda handler, texts: (status, content)


def rows(change: Callable[[list[dict[str, Any]]], object]) -> Reply:
    """The right answer, but for a change of its rows."""

    def reply(handler: Handler, texts: list[str]) -> tuple[int, object]:
        _, content = right(handler, texts)
        change(content["data"])  # type: ignore[index]
        return 200, content

    return reply


def unit(texts: list[str]) -> np.ndarray:
    vectors = np.array([vector(text) for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made(server: Server, pauses: list[float] | None = None, **options: Any) -> OpenAIEmbedder:
    pause = [].append if pauses is None else pauses.append
    return OpenAIEmbedder("tiny", base_url=server.url, pause=pause, **options)


def test_vectors_stand_in_the_order_of_the_texts_whatever_the_order_of_the_answer(server: Server) -> None:
    embedder = load_embedder("openai:tiny", base_url=server.url)
    assert (embedder.name, embedder.dim, embedder.fingerprint) == ("openai:tiny", 4, "openai:tiny:4:t2")
    server.replies[:] = [rows(lambda data: data.reverse())]
    texts = ["Revenue by region", "Late flights", "Sick leave"]
    np.testing.assert_allclose(embedder.embed(texts), unit(texts), atol=1e-6)
    path, asked, key = server.asked[-1]
    assert (path, asked["model"], asked["encoding_format"], key) == ("/v1/embeddings", "tiny", "float", None)
    many = [f"{number} charts" for number in range(200)]
    before = len(server.asked)
    np.testing.assert_allclose(embedder.embed(many, batch_size=150), unit(many), atol=1e-6)
    assert [len(asked["input"]) for _, asked, _ in server.asked[before:]] == [64, 64, 22, 50]


def test_prompts_key_dimensions_and_revision_are_sent_or_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    embedder = load_embedder(
        "openai:intfloat/e5-small", base_url=server.url, api_key_env="MY_KEY", dimensions=4, revision="r2"
    )
    np.testing.assert_allclose(embedder.embed(["late"]), unit(["passage: late"]), atol=1e-6)
    np.testing.assert_allclose(embedder.embed_query(["late"]), unit(["query: late"]), atol=1e-6)
    assert server.asked[-1][2] == "Bearer secret"
    assert server.asked[-1][1]["dimensions"] == 4
    assert embedder.fingerprint.startswith("openai:intfloat/e5-small:4:r2:")
    other = load_embedder("openai:intfloat/e5-small", base_url=server.url, query_prompt="ask: ")
    np.testing.assert_allclose(other.embed_query(["late"]), unit(["ask: late"]), atol=1e-6)


def test_a_key_of_the_environment_goes_to_the_server_of_the_environment_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    load_embedder("openai:elsewhere", base_url=server.url)
    assert server.asked[-1][2] is None
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    load_embedder("openai:here")
    assert server.asked[-1][2] == "Bearer secret"


def test_what_time_heals_is_tried_again_with_longer_and_longer_pauses(server: Server) -> None:
    pauses: list[float] = []
    embedder = made(server, pauses)
    server.replies[:] = [answer("", 503), answer("", 0), answer("", 429), answer("", 500)]
    np.testing.assert_allclose(embedder.embed(["late"]), unit(["late"]), atol=1e-6)
    assert pauses == [0.5, 1.0, 7.0, 4.0]  # the third is the server's own wish


def test_an_outage_is_an_error_after_some_tries_and_over_when_the_server_is_back(server: Server) -> None:
    pauses: list[float] = []
    embedder = made(server, pauses)
    server.replies[:] = [answer("", 503)] * 5
    with pytest.raises(EmbeddingError, match=r"/v1/embeddings answers 503 .*; tried 5 times"):
        embedder.embed(["late"])
    server.replies[:] = [answer("", 503)] * 2
    with pytest.raises(EmbeddingError, match="tried 2 times"):
        embedder.embed_query(["late"])
    assert pauses == [0.5, 1.0, 2.0, 4.0, 0.5]
    np.testing.assert_allclose(embedder.embed_query(["late"]), unit(["late"]), atol=1e-6)
    server.replies[:] = [answer("", 503)] * 5
    with pytest.raises(EmbeddingError, match="tried 1 times"):
        made(server, pauses, patience=0.4)


def test_a_server_that_is_away_is_said_before_anything_is_loaded() -> None:
    with socket.socket() as taken:  # bound, and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(EmbeddingError, match=r"cannot be reached: .*; tried 2 times"):
            OpenAIEmbedder("tiny", base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1", pause=lambda seconds: None)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (rows(lambda data: data.pop()), "answers with 1 vectors for 2 texts"),
        (rows(lambda data: data.append({"index": 2, "embedding": [1.0] * 4})), "answers with 3 vectors for 2 texts"),
        (rows(lambda data: data[1].update(index=0)), "or not with one for each"),
        (rows(lambda data: data[1].update(index=-1)), "or not with one for each"),
        (rows(lambda data: data[0].update(embedding=[1.0] * 3)), "a vector of 3 numbers: expected 4"),
        (rows(lambda data: data[0].update(embedding=[])), "a vector of 0 numbers: expected 4"),
        (rows(lambda data: data[0].update(embedding=[0.0] * 4)), "a vector of zeros"),
        (rows(lambda data: data[0].update(embedding=[float("nan")] * 4)), "does not answer as OpenAI's embeddings API"),
        (rows(lambda data: data[0].update(embedding=[None] * 4)), "does not answer as OpenAI's embeddings API"),
        (rows(lambda data: data[0].update(embedding="AAAA")), "does not answer as OpenAI's embeddings API"),
        (answer({"object": "list"}), "does not answer as OpenAI's embeddings API"),
        (answer(b"<html>Log in</html>"), "does not answer as OpenAI's embeddings API"),
        (answer(b'{"data": ' + b"[" * 100_000), "does not answer as OpenAI's embeddings API"),
        (answer({"data": "x" * 100_000}), "answers with more than 0 MB"),
        (answer({"error": "input is too long"}, 400), "answers 400 .*input is too long"),
        (answer("", 401), "answers 401 .*api_key_env="),
        (answer("", 404), "answers 404 .*base_url"),
        (answer("", 301), "answers 301"),
    ],
)
def test_a_wrong_answer_is_an_error_at_once_and_never_a_vector(
    server: Server, reply: Reply, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "MOST_BYTES", 200_000 if "[" in said or "API" in said else 50_000)
    embedder = made(server)
    server.replies[:] = [reply]
    asked = len(server.asked)
    with pytest.raises(EmbeddingError, match=said):
        embedder.embed(["late", "flights"])
    assert len(server.asked) == asked + 1
    np.testing.assert_allclose(embedder.embed(["late"]), unit(["late"]), atol=1e-6)


def test_an_answer_that_never_ends_is_given_up(server: Server) -> None:
    released = threading.Event()

    def drip(handler: Handler, texts: list[str]) -> tuple[int, object]:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        try:
            while not released.wait(0.02):
                handler.wfile.write(b" ")
        except OSError:  # given up
            pass
        return 0, b""

    embedder = made(server, patience=0.3)
    server.replies[:] = [drip]
    try:
        with pytest.raises(EmbeddingError, match="has not come to an end of its answer in time"):
            embedder.embed(["late"])
    finally:
        released.set()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("openai:", {}, "expected openai:NAME"),
        ("openai:tiny", {"base_url": "127.0.0.1:8080"}, "base_url='127.0.0.1:8080': expected one such as http://"),
        ("openai:tiny", {"base_url": "http://me:secret@host/v1"}, "without a password"),
        ("openai:tiny", {"timeout": 0}, "timeout=0: expected seconds"),
        ("openai:tiny", {"patience": float("nan")}, "patience=nan: expected seconds"),
        ("openai:tiny", {"dimensions": 0}, "dimensions=0: expected a whole number"),
        ("openai:tiny", {"revision": 3}, "revision=3: expected at most 20"),
        ("openai:tiny", {"query_prompt": 3}, "query_prompt=3: expected a text"),
    ],
)
def test_a_wrong_option_is_named(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_embedder(name, **options)


def test_an_absent_key_is_named_by_its_variable(server: Server) -> None:
    with pytest.raises(EmbeddingError, match=r"OPENAI_API_KEY holds no key for https://api\.openai\.com/v1"):
        load_embedder("openai:tiny")
    with pytest.raises(EmbeddingError, match="MY_KEY holds no key"):
        load_embedder("openai:tiny", base_url=server.url, api_key_env="MY_KEY")


def test_names_of_prompts_are_those_of_the_family_unless_given(server: Server) -> None:
    assert made(server).prompts == Prompts()
    assert made(server, prompts=Prompts("a", "b")).prompts == Prompts("a", "b")
