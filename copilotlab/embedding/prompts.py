"""What a model wants to read before a question, and before a text that is searched.

Many models are trained with such a prompt on each side, and find less without it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple


class Prompts(NamedTuple):
    """The prompt of questions and that of what is searched, each put before a text as it stands; "" for none."""

    query: str = ""
    document: str = ""


# By the model's name, for those whose files say nothing of it; the prompts are those of their authors' model cards.
# E5 (Wang et al., 2022 and 2024), but not its instructed forms; English BGE (Xiao et al., 2023); Nomic
# (Nussbaum et al., 2024); mxbai-embed and Snowflake's Arctic, which ask as BGE does.
_ASK = "Represent this sentence for searching relevant passages: "
_FAMILIES = (
    (r"(^|[/_-])e5-(small|base|large)(?!.*instruct)", Prompts("query: ", "passage: ")),
    (r"(^|[/_-])bge-(small|base|large)-en", Prompts(_ASK)),
    (r"(^|[/_-])nomic-embed-text", Prompts("search_query: ", "search_document: ")),
    (r"(^|[/_-])(mxbai-embed|snowflake-arctic-embed-(xs|s|m|l)$)", Prompts(_ASK)),
)
_QUERY = ("query", "question", "search_query", "s2p_query")
_DOCUMENT = ("document", "passage", "corpus", "search_document")  # the order of sentence-transformers, and Nomic's name


def mark(prompts: Prompts) -> str:
    """Return 8 hexadecimal digits that tell prompts apart, for a fingerprint."""
    return hashlib.blake2b("\0".join(prompts).encode(), digest_size=4).hexdigest()


def of_name(name: str) -> Prompts:
    """Return the prompts of the family that a model's name tells; none for others."""
    found = (prompts for pattern, prompts in _FAMILIES if re.search(pattern, name, re.IGNORECASE))
    return next(found, Prompts())


def of_model(name: str, prompts: Mapping[str, str], default: str | None) -> Prompts:
    """Return the prompts that the files of a model name, else those of its family.

    name: of the model. prompts, default: as config_sentence_transformers.json has them: prompts by name, and the name
    of the one that is taken where none is asked for.
    """
    usual = prompts.get(default or "") or ""
    given = [next((prompts[key] for key in keys if prompts.get(key)), "") for keys in (_QUERY, _DOCUMENT)]
    if any(given) or usual:
        return Prompts(given[0] or usual, given[1] or usual)
    return of_name(name)
