"""Models behind a server with OpenAI's embeddings API: OpenAI's own, and what vLLM, llama.cpp, Ollama and others serve.

A server may be away, slow, overloaded or wrong. Every wait and every answer is bounded, what time may heal is tried
again, and an answer is taken only if it has one vector of the right length for each text, in whatever order.
"""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Sequence

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from copilotlab.embedding.base import OPENAI, TEXT, Embedder, EmbeddingError
from copilotlab.embedding.prompts import Prompts, mark, of_name
from copilotlab.lifetime import renewed_by_fork
from copilotlab.markup import is_web_url
from copilotlab.reasons import reason, short

MOST_TEXTS = 64  # in one request
MOST_BYTES = 64 * 2**20  # of one answer
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try
LONGEST_PAUSE = 10.0  # seconds that a server may ask us to wait
QUESTION_TRIES = 2  # a person waits for the answer
_HOME = "https://api.openai.com/v1"
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_REMEDIES = {
    401: "does it need a key? api_key_env= names the environment variable that holds it",
    403: "its key may not use this model",
    404: "is this base_url right, up to and with /v1, and does the server have this model?",
}


class _Row(msgspec.Struct):
    index: int
    embedding: list[float]


class _Answer(msgspec.Struct):
    data: list[_Row]


class OpenAIEmbedder(Embedder):
    """Ask a server for vectors. Use `load_embedder("openai:NAME", base_url=...)`.

    Parameters:
        model: its name on the server.
        base_url: of the API, such as http://127.0.0.1:8080/v1.
        api_key: sent as a bearer token to this server alone; None for none.
        revision: what tells weights of one name apart, for the fingerprint: a server does not say which it has.
        dimensions: how many components to ask for; None takes what the model has.
        prompts: put before questions and before what is searched; None takes those of the model's family.
        timeout: seconds to connect, and that the server may be silent.
        patience: seconds for all tries of one request; a try that is under way then is not cut off.
        pause: waits that many seconds between two tries.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key: str | None = None,
        revision: str = "",
        dimensions: int | None = None,
        prompts: Prompts | None = None,
        timeout: float = 10.0,
        patience: float = 30.0,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._model = model
        self._url = f"{base_url.rstrip('/')}/embeddings"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._dimensions = dimensions
        self._timeout, self._patience, self._pause = timeout, patience, pause
        self.prompts = of_name(model) if prompts is None else prompts
        self._opening = threading.Lock()
        self._client: httpx.Client | None = None
        dim = self._asked(["dimension"], tries=QUESTION_TRIES, dim=dimensions).shape[1]
        label = re.sub(r"[^\w./:-]+", "-", model, flags=re.ASCII)[-40:]
        told = [f"{OPENAI}{label}", str(dim), *([revision] if revision else [])]
        fingerprint = ":".join([*told, *([mark(self.prompts)] if any(self.prompts) else []), TEXT])
        super().__init__(name=f"{OPENAI}{model}", fingerprint=fingerprint, dim=dim)
        renewed_by_fork(self)

    def after_fork(self) -> None:
        """Connect anew in a forked child: two processes on one connection would read each other's answers."""
        self._opening = threading.Lock()
        self._client = None

    def embed_query(self, texts: Sequence[str], *, progress: bool = False, batch_size: int = 64) -> NDArray[np.float32]:
        """Embed questions, with their prompt; the server is tried twice, no more."""
        return self._embedded(texts, self._encode_query, progress, batch_size)

    def _encode(self, batch: list[str]) -> NDArray[np.float64]:
        return self._encode_prompted(batch, self.prompts.document, tries=1 + len(PAUSES))

    def _encode_query(self, batch: list[str]) -> NDArray[np.float64]:
        return self._encode_prompted(batch, self.prompts.query, tries=QUESTION_TRIES)

    def _encode_prompted(self, batch: list[str], prompt: str, tries: int) -> NDArray[np.float64]:
        prompted = [f"{prompt}{text}" for text in batch]
        parts = [prompted[start : start + MOST_TEXTS] for start in range(0, len(prompted), MOST_TEXTS)]
        return np.concatenate([self._asked(part, tries=tries, dim=self.dim) for part in parts])

    def _asked(self, texts: list[str], *, tries: int, dim: int | None) -> NDArray[np.float64]:
        """Return the vectors of some texts, checked. Raises EmbeddingError."""
        content: dict[str, object] = {"model": self._model, "input": texts, "encoding_format": "float"}
        if self._dimensions is not None:
            content["dimensions"] = self._dimensions
        until = time.monotonic() + self._patience
        for tried, pause in enumerate((*PAUSES, 0.0)[:tries], start=1):
            try:
                with self._opened().stream("POST", self._url, json=content) as response:
                    if response.status_code not in _BUSY:
                        return _vectors(_content(response, self._url, until), len(texts), dim, self._url)
                    failure = f"answers {response.status_code} {response.reason_phrase}"
                    pause = _asked_for(response, pause)
            except httpx.TransportError as error:
                failure = f"cannot be reached: {reason(error)}"
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise EmbeddingError(f"{self._url}: {reason(error)}") from error
            if tried == tries or time.monotonic() + pause > until:
                raise EmbeddingError(f"{self._url} {failure}; tried {tried} times")
            self._pause(pause)
        raise AssertionError("the last try returns or raises")

    def _opened(self) -> httpx.Client:
        with self._opening:
            if self._client is None:
                self._client = httpx.Client(headers=self._headers, timeout=self._timeout)
                weakref.finalize(self, self._client.close)
            return self._client


def load_openai(
    name: str,
    *,
    base_url: str | None = None,
    api_key_env: str | None = None,
    revision: str = "",
    dimensions: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    timeout: float = 10.0,
    patience: float = 30.0,
) -> OpenAIEmbedder:
    """Load "openai:NAME": the model NAME of a server with OpenAI's embeddings API.

    base_url: None takes the environment's OPENAI_BASE_URL, else OpenAI's own server. api_key_env: the environment
    variable that holds the key. With None it is OPENAI_API_KEY where base_url is None too, so that this key goes to no
    server that it is not meant for; else no key is sent.
    """
    model = name.removeprefix(OPENAI)
    if not model or not model.isprintable() or len(model) > 200:
        raise ValueError(f"{short(name)}: expected openai:NAME, as in openai:text-embedding-3-small")
    url = base_url if base_url is not None else os.environ.get("OPENAI_BASE_URL") or _HOME
    if not isinstance(url, str) or not is_web_url(url) or "@" in url or "?" in url or "#" in url:
        raise ValueError(f"base_url={short(url)}: expected one such as http://127.0.0.1:8080/v1, without a password")
    for option, seconds in (("timeout", timeout), ("patience", patience)):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 600:
            raise ValueError(f"{option}={short(seconds)}: expected seconds, above 0 and at most 600")
    if dimensions is not None and (isinstance(dimensions, bool) or not isinstance(dimensions, int) or dimensions < 1):
        raise ValueError(f"dimensions={short(dimensions)}: expected a whole number, 1 or more")
    if not isinstance(revision, str) or len(revision) > 20 or not revision.isprintable():
        raise ValueError(f"revision={short(revision)}: expected at most 20 printable characters")
    for option, prompt in (("query_prompt", query_prompt), ("document_prompt", document_prompt)):
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"{option}={short(prompt)}: expected a text, '' for none, or None for that of the family")
    family = of_name(model)
    return OpenAIEmbedder(
        model,
        base_url=url,
        api_key=_key(api_key_env, url, asked=base_url is None),
        revision=revision,
        dimensions=dimensions,
        prompts=Prompts(
            family.query if query_prompt is None else query_prompt,
            family.document if document_prompt is None else document_prompt,
        ),
        timeout=timeout,
        patience=patience,
    )


def _key(api_key_env: str | None, url: str, *, asked: bool) -> str | None:
    variable = api_key_env or ("OPENAI_API_KEY" if asked else None)
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key and (api_key_env or url == _HOME):
        raise EmbeddingError(f"the environment variable {variable} holds no key for {url}")
    if not key.isascii() or not key.isprintable():
        raise EmbeddingError(f"the environment variable {variable} holds no key: expected printable letters of ASCII")
    return key or None


def _asked_for(response: httpx.Response, pause: float) -> float:
    """Return how long the server asks us to wait, in seconds: no longer than is good for us."""
    said = response.headers.get("Retry-After", "")
    return min(float(said), LONGEST_PAUSE) if said.isascii() and said.isdigit() else pause


def _content(response: httpx.Response, url: str, until: float) -> bytes:
    if response.status_code != 200:
        remedy = _REMEDIES.get(response.status_code) or short(next(response.iter_bytes(), b"").decode(errors="replace"))
        raise EmbeddingError(f"{url} answers {response.status_code} {response.reason_phrase}: {remedy}")
    data = bytearray()
    for piece in response.iter_bytes():
        data += piece
        if len(data) > MOST_BYTES:
            raise EmbeddingError(f"{url} answers with more than {MOST_BYTES / 2**20:.0f} MB: that is not read")
        if time.monotonic() > until:
            raise EmbeddingError(f"{url} has not come to an end of its answer in time")
    return bytes(data)


def _vectors(data: bytes, count: int, dim: int | None, url: str) -> NDArray[np.float64]:
    """Return the vectors of an answer in the order of the texts. Raises EmbeddingError for any other answer."""
    try:
        rows = msgspec.json.decode(data, type=_Answer).data
    except (msgspec.DecodeError, RecursionError) as error:
        raise EmbeddingError(f"{url} does not answer as OpenAI's embeddings API does: {reason(error)}") from error
    if sorted(row.index for row in rows) != list(range(count)):
        raise EmbeddingError(f"{url} answers with {len(rows)} vectors for {count} texts, or not with one for each")
    rows.sort(key=lambda row: row.index)
    width = dim or len(rows[0].embedding)
    for row in rows:
        if not row.embedding or len(row.embedding) != width:
            raise EmbeddingError(f"{url} answers with a vector of {len(row.embedding)} numbers: expected {width}")
        if not any(row.embedding):
            raise EmbeddingError(f"{url} answers with a vector of zeros")
    return np.array([row.embedding for row in rows], dtype=np.float64)
