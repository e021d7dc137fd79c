"""Make the catalogue that ships from the subject files.

    python data/make_catalogue.py            writes charts.parquet, questions.parquet and judgements.parquet
    python data/make_catalogue.py --check    says whether the three files are what the subject files make

People wrote subjects/*.toml (what a business measures, how it is broken down, what somebody might ask) and
wording.toml (how teams title and describe charts). This script turns every measure into the handful of
charts that teams would have made of it, with the copies and look-alikes that real catalogues collect, and
grades every question against every chart from what the question's writer listed.

Every choice is a hash of what it is for, never a clock or a shared random stream. So the result is the same
on every machine, and editing one measure changes that measure's charts only.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl

DATA = Path(__file__).resolve().parent

KINDS = ("direct", "synonym", "abbreviation", "no_shared_words", "typo", "vague")
SPLITS = ("dev", "test")

CHART_COLUMNS: dict[str, pl.DataType] = {
    "chart_id": pl.Int64(),
    "title": pl.String(),
    "description": pl.String(),
    "chart_type": pl.String(),
    "dimensions": pl.List(pl.String()),
    "measures": pl.List(pl.String()),
    "source": pl.String(),
    "tags": pl.List(pl.String()),
}
QUESTION_COLUMNS: dict[str, pl.DataType] = {
    "query_id": pl.Int64(),
    "text": pl.String(),
    "subject": pl.String(),
    "kind": pl.String(),
    "split": pl.String(),
}
JUDGEMENT_COLUMNS: dict[str, pl.DataType] = {
    "query_id": pl.Int64(),
    "chart_id": pl.Int64(),
    "relevance": pl.Int64(),
}

T = TypeVar("T")


class CatalogueError(ValueError):
    """The subject files are wrong. The message lists every fault found, a line each."""


# What people wrote ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Something a business counts. `name` and `related` are written subject.key; `dimensions` are keys.

    `aliases` are other names for the same thing, as another team would call it.
    """

    name: str
    label: str
    aliases: tuple[str, ...]
    description: str
    source: str
    tags: tuple[str, ...]
    dimensions: tuple[str, ...]
    related: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What somebody asks, and what answers it: `measures` as subject.key, `dimensions` as keys; () is any."""

    text: str
    subject: str
    kind: str
    measures: tuple[str, ...]
    dimensions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One subject file: `key` is its file's name, `dimensions` go from key to label."""

    key: str
    name: str
    tags: tuple[str, ...]
    dimensions: dict[str, str]
    measures: dict[str, Measure]
    questions: tuple[Question, ...]


def read_subjects(folder: Path) -> list[Subject]:
    """Read every subject file of a folder, by name; raises CatalogueError with all that is wrong with them."""
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise CatalogueError(f"no subject file (*.toml) in {folder}")
    faults: list[str] = []
    subjects = []
    for path in paths:
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            faults.append(f"{path.name}: not valid TOML: {error}")
            continue
        subjects.append(_subject(path.stem, _Reader(path.name, table, faults)))
    faults.extend(_wrong_references(subjects))
    if faults:
        raise CatalogueError("\n".join(faults))
    return subjects


class _Reader:
    """Take typed values out of one TOML table; note faults instead of stopping at the first."""

    def __init__(self, where: str, table: Mapping[str, Any], faults: list[str]) -> None:
        self.where, self.table, self.faults = where, table, faults

    def fault(self, message: str) -> None:
        self.faults.append(f"{self.where}: {message}")

    def only(self, *keys: str) -> None:
        for key in self.table:
            if key not in keys:
                self.fault(f"unknown key {key!r}; known here: {', '.join(keys)}")

    def text(self, key: str) -> str:
        value = self.table.get(key)
        if not isinstance(value, str) or not value.strip():
            self.fault(f"{key} must be a text that is not empty, not {value!r}")
            return ""
        return value.strip()

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            self.fault(f"{key} must be a list of texts, not {value!r}")
            return ()
        for item in _repeated(value):
            self.fault(f"{key} lists {item!r} twice")
        return tuple(value)

    def tables(self, key: str) -> Iterator[_Reader]:
        value = self.table.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            self.fault(f"there must be at least one [[{key}]]")
            return
        for number, table in enumerate(value, 1):
            name = table.get("key") or table.get("text") or f"number {number}"
            yield _Reader(f"{self.where}, {key} {name!r}", table, self.faults)


def _subject(key: str, reader: _Reader) -> Subject:
    reader.only("name", "tags", "dimensions", "measures", "questions")
    dimensions = reader.table.get("dimensions")
    if not isinstance(dimensions, dict) or not all(isinstance(v, str) and v for v in dimensions.values()):
        reader.fault("[dimensions] must be a table of key = label")
        dimensions = {}
    if not any(dimension_kind(label) == "time" for label in dimensions.values()):
        reader.fault("[dimensions] has no time dimension, such as month")
    measures = [_measure(key, dimensions, table) for table in reader.tables("measures")]
    questions = [_question(key, table) for table in reader.tables("questions")]
    for name in _repeated(measure.name for measure in measures):
        reader.fault(f"measure {name!r} is there twice")
    for label in _repeated(measure.label.lower() for measure in measures):
        reader.fault(f"two measures are labelled {label!r}")
    for text in _repeated(question.text.lower() for question in questions):
        reader.fault(f"question {text!r} is there twice")
    return Subject(
        key=key,
        name=reader.text("name"),
        tags=reader.texts("tags"),
        dimensions=dict(dimensions),
        measures={measure.name: measure for measure in measures},
        questions=tuple(questions),
    )


def _measure(subject: str, dimensions: Mapping[str, str], reader: _Reader) -> Measure:
    reader.only("key", "label", "aliases", "description", "source", "tags", "dimensions", "related")
    breakdowns = reader.texts("dimensions")
    if not breakdowns:
        reader.fault("dimensions must list at least one breakdown")
    for unknown in (dimension for dimension in breakdowns if dimension not in dimensions):
        reader.fault(f"unknown dimension {unknown!r}; [dimensions] has {', '.join(dimensions)}")
    return Measure(
        name=f"{subject}.{reader.text('key')}",
        label=reader.text("label"),
        aliases=reader.texts("aliases"),
        description=reader.text("description"),
        source=reader.text("source"),
        tags=reader.texts("tags"),
        dimensions=tuple(dimension for dimension in breakdowns if dimension in dimensions),
        related=tuple(_full_name(subject, name) for name in reader.texts("related")),
    )


def _question(subject: str, reader: _Reader) -> Question:
    reader.only("text", "kind", "measures", "dimensions")
    kind = reader.text("kind")
    if kind not in KINDS:
        reader.fault(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    measures = reader.texts("measures")
    if not measures:
        reader.fault("measures must list what answers the question")
    return Question(
        text=reader.text("text"),
        subject=subject,
        kind=kind,
        measures=tuple(_full_name(subject, name) for name in measures),
        dimensions=reader.texts("dimensions"),
    )


def _full_name(subject: str, name: str) -> str:
    return name if "." in name else f"{subject}.{name}"


def _repeated(values: Iterable[T]) -> list[T]:
    return [value for value, times in Counter(values).items() if times > 1]


def _wrong_references(subjects: Sequence[Subject]) -> Iterator[str]:
    """Faults that only the whole shows: references across files, and questions that nothing answers."""
    measures = {name: measure for subject in subjects for name, measure in subject.measures.items()}
    dimensions = {subject.key: subject.dimensions for subject in subjects}
    asked: dict[str, str] = {}
    for subject in subjects:
        for measure in subject.measures.values():
            for name in measure.related:
                if name not in measures:
                    yield f"{subject.key}.toml, measure {measure.name!r}: unknown related measure {name!r}"
        for question in subject.questions:
            where = f"{subject.key}.toml, question {question.text!r}"
            known = set(subject.dimensions)
            for name in question.measures:
                if name not in measures:
                    yield f"{where}: unknown measure {name!r}"
                known |= dimensions.get(name.split(".")[0], {}).keys()
            for dimension in question.dimensions:
                if dimension not in known:
                    yield f"{where}: unknown dimension {dimension!r}; known: {', '.join(sorted(known))}"
            answers = [measures[name] for name in question.measures if name in measures]
            if question.dimensions and not any(set(m.dimensions) & set(question.dimensions) for m in answers):
                yield f"{where}: no chart of grade 2, as none of its measures has one of its dimensions"
            first = asked.setdefault(question.text.lower(), subject.key)
            if first != subject.key:
                yield f"{where}: {first}.toml asks the same"


# Choices ----------------------------------------------------------------------------------------------------


def _number(*key: str) -> int:
    return int.from_bytes(blake2b("\x1f".join(key).encode(), digest_size=8).digest(), "big")


def pick(options: Sequence[T], *key: str) -> T:
    """Return the option that belongs to this key: the same on every machine and in every run."""
    return options[_number(*key) % len(options)]


def chance(percent: int, *key: str) -> bool:
    """Return whether this key is among the given percentage of keys."""
    return _number(*key) % 100 < percent


# Words ------------------------------------------------------------------------------------------------------

WORDING: dict[str, Any] = tomllib.loads((DATA / "wording.toml").read_text(encoding="utf-8"))

SHORT_FORM = re.compile(
    r"\b(" + "|".join(sorted(WORDING["short_forms"], key=len, reverse=True)) + r")\b", re.IGNORECASE
)
SMALL_WORDS = {"and", "by", "for", "of", "per", "vs"}


def dimension_kind(label: str) -> str:
    """Return what sort of breakdown a label names, and so what fits: time, cycle, place, band, many or few."""
    words = re.findall(r"[a-z0-9]+", label.lower())
    for kind, labels in WORDING["labels"].items():
        if " ".join(words) in labels:
            return str(kind)
    for kind, last_words in WORDING["last_words"].items():
        if words and words[-1] in last_words:
            return str(kind)
    return "few"


def adds_up(measure: Measure) -> bool:
    """Return whether a measure's parts make up its total, as far as its words tell: so a pie can show it."""
    words = re.findall(r"\w+|%", f"{measure.label} {measure.description}".lower())
    return set(words).isdisjoint(WORDING["averages"]["words"])


def within(label: str) -> str:
    """A label inside a sentence: its first letter small, unless the first word is an abbreviation."""
    first = re.split(r"[\s-]", label)[0]
    return label if len(first) == 1 or any(c.isupper() for c in first[1:]) else label[0].lower() + label[1:]


def opening(text: str) -> str:
    """A text at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def plural(label: str) -> str:
    """A label's plural inside a sentence: countries of Country, lengths of service of Length of service."""
    head, joint, rest = within(label).partition(" of ")
    if head.endswith("y") and head[-2:-1] not in "aeiou":
        head = head[:-1] + "ies"
    elif head.endswith(("s", "x", "ch", "sh")):
        head += "es"
    else:
        head += "s"
    return head + joint + rest


# Charts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A chart before it has its number. `key` says what it was made from; `part`: it shows a part only."""

    key: str
    measures: tuple[Measure, ...]
    dimensions: tuple[str, ...]
    labels: tuple[str, ...]
    title: str
    description: str
    chart_type: str
    source: str
    tags: tuple[str, ...]
    part: bool = False


def make_charts(subjects: Sequence[Subject]) -> list[Draft]:
    """Yield all charts of the catalogue, subject by subject."""
    return [
        chart
        for subject in subjects
        for measure in subject.measures.values()
        for original in _charts_of(subject, measure)
        for chart in (original, *_copies(subject, original))
    ]


def _charts_of(subject: Subject, measure: Measure) -> Iterator[Draft]:
    """Yield the charts made of one measure: one for each breakdown, and some that look at it otherwise."""
    name = measure.name
    kinds = {dimension: dimension_kind(subject.dimensions[dimension]) for dimension in measure.dimensions}
    for dimension, kind in kinds.items():
        design = kind
        if kind == "place" and chance(50, name, dimension, "map"):
            design = "map"
        elif kind in ("few", "band") and adds_up(measure) and chance(40, name, dimension, "shares"):
            design = "shares"
        yield _draft(subject, design, (measure,), (dimension,))

    times = [dimension for dimension, kind in kinds.items() if kind == "time"]
    others = [dimension for dimension, kind in kinds.items() if kind != "time"]
    if chance(14, name, "total"):
        yield _draft(subject, "total", (measure,), ())
    if chance(10, name, "target"):
        yield _draft(subject, "target", (measure,), (pick(measure.dimensions, name, "of target"),))
    if times and chance(12, name, "years"):
        yield _draft(subject, "years", (measure,), (times[0],))
    if times and others and chance(20, name, "time pair"):
        yield _draft(subject, "time_pair", (measure,), (times[0], pick(others, name, "of time pair")))
    if len(others) > 1 and chance(14, name, "pair"):
        first = pick(range(len(others)), name, "of pair")
        yield _draft(subject, "pair", (measure,), (others[first], others[first - 1]))
    dots = [dimension for dimension in others if kinds[dimension] in ("many", "place")]
    partners = [
        (subject.measures[other], dot)
        for other in measure.related
        if other in subject.measures
        for dot in dots
        if dot in subject.measures[other].dimensions
    ]
    if partners and chance(15, name, "scatter"):
        partner, dot = pick(partners, name, "partner")
        yield _draft(subject, "scatter", (measure, partner), (dot,))


def _draft(subject: Subject, design: str, measures: tuple[Measure, ...], dimensions: tuple[str, ...]) -> Draft:
    """One chart of a design in wording.toml."""
    measure = measures[0]
    key = "/".join((measure.name, design, *dimensions))
    labels = tuple(subject.dimensions[dimension] for dimension in dimensions)
    patterns = WORDING["designs"][design]
    by_alias = bool(measure.aliases) and chance(25, key, "by alias")
    called = pick(measure.aliases, key, "alias") if by_alias else measure.label
    words = _words((replace(measure, label=called), *measures[1:]), labels)
    others = [within(name) for name in (measure.label, *measure.aliases) if name != called]
    words["also"] = f"Also called {' or '.join(others)}." if others else ""
    # Not every time has an adjective, as "Monthly net revenue" needs it.
    titles = [title for title in patterns["titles"] if "each" in words or "{each}" not in title.lower()]
    words["remark"] = pick(patterns["remarks"], key, "remark").format(**words)
    words["note"] = pick(WORDING["descriptions"]["notes"], key, "note")
    thin = chance(12, key, "thin")
    descriptions = WORDING["descriptions"]["thin" if thin else "full"]
    tags = [
        *(subject.tags if chance(75, key, "tags") else subject.tags[:1]),
        *(() if thin else measure.tags),
        *(measure.aliases[:1] if chance(15, key, "alias as tag") else ()),
    ]
    return Draft(
        key=key,
        measures=measures,
        dimensions=dimensions,
        labels=labels,
        title=_in_a_style(pick(titles, key, "title").format(**words), key),
        # A pattern with an empty part leaves one space too many.
        description=" ".join(pick(descriptions, key, "description").format(**words).split()),
        chart_type=pick(patterns["types"], key, "type"),
        source=measure.source,
        tags=tuple(dict.fromkeys(tags)),
    )


def _words(measures: Sequence[Measure], labels: Sequence[str]) -> dict[str, str]:
    """What the patterns are filled with; wording.toml says what each stands for."""
    words = {
        "about": measures[0].description,
        "source": measures[0].source,
        "by": "by " + " and ".join(within(label) for label in labels) if labels else "in total",
    }
    for letter, measure in zip("mn", measures, strict=False):
        words |= {letter: within(measure.label), letter.upper(): measure.label}
    for letter, label in zip("de", labels, strict=False):
        words |= {letter: within(label), letter.upper(): opening(label)}
        words |= {f"{letter}s": plural(label), f"{letter.upper()}s": opening(plural(label))}
    if labels and (each := WORDING["adjectives"].get(labels[0].lower())):
        words |= {"each": each, "Each": opening(each)}
    return words


def _in_a_style(title: str, key: str) -> str:
    """The same title as a hastier or tidier colleague would have typed it."""
    if chance(8, key, "short forms"):
        title = opening(SHORT_FORM.sub(lambda word: WORDING["short_forms"][word[0].lower()], title))
    if chance(8, key, "capitals"):
        title = " ".join(word if word in SMALL_WORDS else opening(word) for word in title.split())
    elif chance(5, key, "small letters"):
        title = title.lower()
    if chance(4, key, "prefix"):
        title = pick(WORDING["titles"]["prefixes"], key, "prefix") + title
    return title


def _copies(subject: Subject, chart: Draft) -> Iterator[Draft]:
    """The copy that somebody made of a chart and nobody removed, and the one that shows a part only."""
    if chance(9, chart.key, "copy"):
        title = pick(WORDING["copies"]["titles"], chart.key, "copy title")
        description = pick(WORDING["copies"]["descriptions"], chart.key, "copy description")
        yield replace(
            chart,
            key=f"{chart.key}/copy",
            title=title.format(title=chart.title),
            description=description.format(description=chart.description).strip(),
        )
    marks = [mark for place, mark in WORDING["parts"].items() if place in subject.dimensions]
    if marks and set(chart.dimensions).isdisjoint(WORDING["parts"]) and chance(3, chart.key, "part"):
        yield replace(chart, key=f"{chart.key}/part", title=f"{chart.title} ({marks[0]})", part=True)


# Grades -----------------------------------------------------------------------------------------------------


def grade(question: Question, chart: Draft, related: Iterable[str]) -> int:
    """Grade how well a chart answers a question.

    2: it shows a measure that the question's writer listed, by a breakdown that the writer listed.
    1: a listed measure by another breakdown or for a part only, or a related measure by a fitting breakdown.
    0: all else. A copy is graded as its original is.
    """
    fits = not question.dimensions or not set(question.dimensions).isdisjoint(chart.dimensions)
    shown = {measure.name for measure in chart.measures}
    if not shown.isdisjoint(question.measures):
        return 2 if fits and not chart.part else 1
    return 1 if fits and not shown.isdisjoint(related) else 0


def split_questions(questions: Sequence[Question]) -> dict[Question, str]:
    """dev or test for each question: half and half within every kind, and about so within every subject."""
    splits: dict[Question, str] = {}
    for kind in KINDS:
        # The questions of one kind stand in a row, subject after subject, and every second one goes to dev.
        of_kind = [question for question in questions if question.kind == kind]
        of_kind.sort(key=lambda question: (question.subject, _number(question.text, "split")))
        turn = _number(kind, "first split")
        splits |= {question: SPLITS[(turn + place) % 2] for place, question in enumerate(of_kind)}
    return splits


# The catalogue ----------------------------------------------------------------------------------------------


class Catalogue(NamedTuple):
    """Three frames, each ordered by its ids; their columns are CHART_, QUESTION_ and JUDGEMENT_COLUMNS."""

    charts: pl.DataFrame
    questions: pl.DataFrame
    judgements: pl.DataFrame


def make_catalogue(subjects: Sequence[Subject]) -> Catalogue:
    """Charts, questions and judgements; raises CatalogueError if no chart answers a question fully."""
    charts = make_charts(subjects)
    chart_ids = _ids((chart.key for chart in charts), digits=8)
    questions = [question for subject in subjects for question in subject.questions]
    query_ids = _ids((question.text for question in questions), digits=6)
    splits = split_questions(questions)
    judgements = list(_judgements(subjects, charts, chart_ids, query_ids))
    answered = {query_id for query_id, _, relevance in judgements if relevance == 2}
    unanswered = [question.text for question in questions if query_ids[question.text] not in answered]
    if unanswered:
        raise CatalogueError("no chart of grade 2 for: " + "; ".join(unanswered))
    chart_rows = [
        (
            chart_ids[chart.key],
            chart.title,
            chart.description,
            chart.chart_type,
            list(chart.labels),
            [measure.label for measure in chart.measures],
            chart.source,
            list(chart.tags),
        )
        for chart in charts
    ]
    question_rows = [(query_ids[q.text], q.text, q.subject, q.kind, splits[q]) for q in questions]
    return Catalogue(
        pl.DataFrame(chart_rows, schema=CHART_COLUMNS, orient="row").sort("chart_id"),
        pl.DataFrame(question_rows, schema=QUESTION_COLUMNS, orient="row").sort("query_id"),
        pl.DataFrame(judgements, schema=JUDGEMENT_COLUMNS, orient="row").sort("query_id", "chart_id"),
    )


def _judgements(
    subjects: Sequence[Subject],
    charts: Sequence[Draft],
    chart_ids: Mapping[str, int],
    query_ids: Mapping[str, int],
) -> Iterator[tuple[int, int, int]]:
    """(query_id, chart_id, relevance) wherever the grade is above 0."""
    related = {name: measure.related for subject in subjects for name, measure in subject.measures.items()}
    by_measure: dict[str, list[Draft]] = defaultdict(list)
    for chart in charts:
        for measure in chart.measures:
            by_measure[measure.name].append(chart)
    for subject in subjects:
        for question in subject.questions:
            near = {other for name in question.measures for other in related[name]}
            candidates = (chart for name in near.union(question.measures) for chart in by_measure[name])
            for chart in dict.fromkeys(candidates):
                if relevance := grade(question, chart, near):
                    yield query_ids[question.text], chart_ids[chart.key], relevance


def _ids(keys: Iterable[str], digits: int) -> dict[str, int]:
    """Number each key by that key alone, except for the rare two that would get the same number."""
    lowest = 10 ** (digits - 1)
    keys_by_id: dict[int, str] = {}
    for key in sorted(set(keys)):
        attempts = (lowest + _number(key, "id", str(attempt)) % (9 * lowest) for attempt in count())
        keys_by_id[next(number for number in attempts if number not in keys_by_id)] = key
    return {key: number for number, key in keys_by_id.items()}


# Files ------------------------------------------------------------------------------------------------------


def read(folder: Path = DATA) -> Catalogue:
    """The three files of a folder."""
    return Catalogue(*(pl.read_parquet(folder / f"{name}.parquet") for name in Catalogue._fields))


def write(catalogue: Catalogue, folder: Path = DATA) -> None:
    """Write the three files into a folder."""
    for name, frame in catalogue._asdict().items():
        frame.write_parquet(folder / f"{name}.parquet", compression="zstd", compression_level=19)


def check(folder: Path = DATA) -> list[str]:
    """List how a folder's files differ from what its subject files make, a line each; [] if they do not.

    Rows are compared, not bytes: another polars may write the same rows otherwise.
    """
    differences = []
    made = make_catalogue(read_subjects(folder / "subjects"))
    for name, frame in made._asdict().items():
        path = folder / f"{name}.parquet"
        if not path.exists():
            differences.append(f"{path.name} is missing")
        elif not (found := pl.read_parquet(path)).equals(frame) or found.schema != frame.schema:
            differences.append(
                f"{path.name} ({found.height} rows) is not what the subject files make ({frame.height} rows)"
            )
    return differences


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make the catalogue that ships from data/subjects/*.toml.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the files are stale")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            differences = check()
            print("\n".join(differences) or "the three files are what the subject files make")
            return 1 if differences else 0
        catalogue = make_catalogue(read_subjects(DATA / "subjects"))
    except CatalogueError as error:
        print(error, file=sys.stderr)
        return 1
    write(catalogue)
    print(", ".join(f"{frame.height} {name}" for name, frame in catalogue._asdict().items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
