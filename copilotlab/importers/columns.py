"""The columns that a query names, found without parsing it: dialects, macros and templates are in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_MOST_READ = 20_000  # characters of a query
_STRING = re.compile(r"'(?:[^'\\]|\\.|'')*'?")
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"?")
_COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_IDENTIFIER = re.compile(r"(?<![\w$.:@])([A-Za-z_]\w*)\b(?!\s*\()")
_SQL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "select from where group by order having limit offset as and or not in is null case when then else "
        "end distinct join left right inner outer full cross on using union all asc desc interval time "
        "timestamp cast between like ilike true false with over partition rows range int integer bigint "
        "float double decimal numeric varchar text char boolean current_date current_timestamp extract "
        "filter within set fill previous none linear",
    )
)
_AGGREGATE = re.compile(
    r"\b(?:count|sum|avg|mean|min|max|median|quantile\w*|percentile\w*|uniq\w*|stddev\w*|last|first)\s*\("
)
_ALIAS = re.compile(r"\bas\s+[\"`\[]?([A-Za-z_][\w ]{0,80}?)[\"`\]]?\s*$", re.IGNORECASE)
_FROM = re.compile(r"\bfrom\s+([\"`\[]?[\w.$]+[\"`\]]?(?:\.[\"`\[]?\w+[\"`\]]?)?)", re.IGNORECASE)
_SELECTED = re.compile(r"\bselect\b(.*?)(?:\bfrom\b|\Z)", re.IGNORECASE | re.DOTALL)
_GROUPED = re.compile(
    r"\bgroup\s+by\b(.*?)(?:\border\b|\bhaving\b|\blimit\b|\bfill\b|\)|;|\Z)", re.IGNORECASE | re.DOTALL
)

_PROM_GROUP = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)", re.IGNORECASE)
_PROM_WORDS = frozenset(
    re.findall(
        r"\w+",
        "by without on ignoring group_left group_right and or unless offset bool inf nan start end atan2  sum "
        "avg min max count topk bottomk quantile stddev stdvar group count_values",
    )
)
_PROM_METRIC = re.compile(r"(?<![\w$.:])([A-Za-z_:][\w:]*)\b(?!\s*\()")
_LEGEND = re.compile(r"\{\{\s*\.?([A-Za-z_]\w{0,80})\s*\}\}")


@dataclass(slots=True)
class Columns:
    """What a query counts, by what, and of which table; each name once or more."""

    measures: list[str] = field(default_factory=list)
    dimensions: list[str] = field(default_factory=list)
    source: str = ""


def names_in_expression(sql: str) -> list[str]:
    """Return the columns in a piece of SQL, such as ``SUM(price) / NULLIF(SUM(units), 0)``: each once, in its order."""
    words = _STRING.sub(" ", _COMMENT.sub(" ", sql[:_MOST_READ])).replace('"', " ").replace("`", " ")
    found = (name for name in _IDENTIFIER.findall(words) if name.lower() not in _SQL_WORDS)
    return list(dict.fromkeys(found))[:20]


def columns_of_sql(sql: str) -> Columns:
    """Return the columns that an SQL or InfluxQL query selects and groups by, and its first table."""
    sql = _COMMENT.sub(" ", sql[:_MOST_READ])
    found = Columns()
    if table := _FROM.search(sql):
        found.source = re.sub(r"[\"`\[\]]", "", table[1]).rpartition(".")[2]
    if selected := _SELECTED.search(sql):
        for part in _split(selected[1]):
            alias = _ALIAS.search(part)
            names = [alias[1]] if alias else names_in_expression(part)
            (found.measures if _AGGREGATE.search(part.lower()) else found.dimensions).extend(names[:3])
    for grouped in _GROUPED.findall(sql):
        found.dimensions += names_in_expression(grouped)
    return found


def _split(columns: str) -> list[str]:
    """Split at the commas that stand in no brackets."""
    parts, depth = [""], 0
    for c in columns:
        depth += (c == "(") - (c == ")")
        if c == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts[:64]


def columns_of_promql(query: str) -> Columns:
    """Return the metrics of a PromQL query, and the labels that it groups by. LogQL names no metrics: its labels."""
    words = _QUOTED.sub('""', query[:_MOST_READ])
    words = re.sub(r"\[\[\w+(?::\w+)?\]\]|\$\{[^{}]*\}|\$\w+", " ", words)
    found = Columns()
    for kind, labels in _PROM_GROUP.findall(words):
        if kind.lower() == "by":
            found.dimensions += [label.strip() for label in labels.split(",")]
    words = _PROM_GROUP.sub(" ", words)
    words = re.sub(r"\{[^{}]*\}|\[[^][]*\]", " ", words)
    words = re.sub(r"\|[^()\[\]{}]*", " ", words)  # the pipeline of LogQL
    found.measures = [name for name in _PROM_METRIC.findall(words) if name.lower() not in _PROM_WORDS]
    return found


def labels_of_legend(legend: str) -> list[str]:
    """Return the labels in a legend such as ``{{instance}} - {{ mode }}``."""
    return _LEGEND.findall(legend[:_MOST_READ])
