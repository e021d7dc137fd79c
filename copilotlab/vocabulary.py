"""Abbreviations and other names, and what they stand for: a question says both, so nothing is embedded again.

`data/vocabulary.csv` ships; people add their own.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from copilotlab.reasons import short

MOST_TERMS = 10_000
MOST_LETTERS = 200  # of a term, and of what it means
MOST_SAID = 20  # terms that are explained in one question

_PACKAGE = Path(__file__).parent
_WORD = re.compile(r"[\w&]+")

Terms = Mapping[str, str] | str | Path
"""Term -> what it means; or the path of a .csv file with the columns term and means."""


class Vocabulary:
    """What terms stand for.

        Vocabulary({"pvc": "persistent volume claim"}).explained("pvc almost full")
        # 'pvc almost full persistent volume claim'

    A term in small letters is known in any case, one with capitals only as it is written; both with an s at the end,
    too. It may be of several words.
    """

    def __init__(self, terms: Mapping[str, str]) -> None:
        self._means: dict[tuple[str, ...], dict[str, str]] = {}
        for term, means in terms.items():
            words = _WORD.findall(term)
            if words:
                self._means.setdefault(tuple(word.lower() for word in words), {})[" ".join(words)] = means
        self._longest = max(map(len, self._means), default=0)
        self._size = len(terms)

    def explained(self, question: str) -> str:
        """Return the question, and after it what the terms in it stand for."""
        words, place = _WORD.findall(question), 0
        said: list[str] = []
        while place < len(words) and len(said) < MOST_SAID:
            for count in range(min(self._longest, len(words) - place), 0, -1):
                if (means := self._meaning(words[place : place + count])) is not None:
                    said.append(means)
                    place += count
                    break
            else:
                place += 1
        return " ".join([question, *dict.fromkeys(said)])

    def _meaning(self, words: list[str]) -> str | None:
        for written in (words, [*words[:-1], words[-1].removesuffix("s")]):
            known = self._means.get(tuple(word.lower() for word in written))
            if known is not None:
                text = " ".join(written)
                if (means := known.get(text, known.get(text.lower()))) is not None:
                    return means
        return None

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"Vocabulary({self._size:,} terms)"


@cache
def shipped() -> Mapping[str, str]:
    """Read the terms that ship: from data/ in a checkout, else from the wheel."""
    places = (_PACKAGE.parent / "data" / "vocabulary.csv", _PACKAGE / "data" / "vocabulary.csv")
    for path in places:
        if path.is_file():
            return _read(path)
    raise FileNotFoundError(f"vocabulary.csv is neither at {places[0]} nor at {places[1]}: install copilotlab anew")


@cache
def _of_what_ships() -> Vocabulary:
    return Vocabulary(shipped())


def vocabulary_of(terms: Terms | None) -> Vocabulary:
    """Make a vocabulary of what ships and of one's own terms, which count where both have one.

    Raises TypeError for what is no such thing, ValueError for terms that make no sense or a file that cannot be read.
    """
    if terms is None:
        return _of_what_ships()
    if isinstance(terms, str | Path):
        own: Mapping[str, str] = _read(Path(terms))
    elif isinstance(terms, Mapping):
        own = terms
    else:
        raise TypeError(
            f'vocabulary={short(terms)}: expected a mapping, as in {{"k8s": "kubernetes"}}, or the path of a .csv file '
            "with the columns term and means"
        )
    if len(own) > MOST_TERMS:
        raise ValueError(f"a vocabulary of {len(own):,} terms: expected at most {MOST_TERMS:,}")
    for term, means in own.items():
        for value in (term, means):
            if not isinstance(value, str) or not _WORD.search(value) or len(value) > MOST_LETTERS:
                raise ValueError(
                    f"vocabulary, {short(term)}: {short(means)}: expected a term and what it means, each of 1 to "
                    f"{MOST_LETTERS} characters"
                )
    given = {term.lower() for term in own}
    return Vocabulary({**{term: means for term, means in shipped().items() if term.lower() not in given}, **own})


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            if not {"term", "means"} <= set(rows.fieldnames or ()):
                raise ValueError(f"vocabulary={str(path)!r}: expected the columns term and means in its first line")
            return {row["term"]: row["means"] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"vocabulary={str(path)!r} cannot be read: {error}") from error
