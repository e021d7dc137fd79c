"""Titles and descriptions become plain words; what only looks like markup or a template stays."""

from __future__ import annotations

import pytest

from copilotlab.importers.words import description_of, listed, title_of


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("<h1>Sales</h1><p class='x' data-y=\"a b\">of <b>all</b><br/>shops</p>", "Sales of all shops"),
        ("<script>alert('x < y')</script><style>p {}</style>Sales<!-- draft -->", "Sales"),
        ("R&amp;D &lt;5&#37; &copy 2024 a&b", "R&D <5% &copy 2024 a&b"),
        (
            "versions < 7.0, `<--- 500`, <namespace>, a<b and c>d",
            "versions < 7.0, `<--- 500`, <namespace>, a<b and c>d",
        ),
        (
            "See [the docs](https://example.org/a_(b)) **now**, __init__ and snake__case",
            "See the docs now, init and snake__case",
        ),
        ("### Revenue\n\nper day\n```sql\nselect 1\n```\nin euros", "Revenue per day in euros"),
        ("WITH x AS (select 1) SELECT a, b FROM x WHERE c", ""),
        ("Select a region from the list", "Select a region from the list"),
        ("n/a", ""),
        ("  TBD ", ""),
        ("half \ud800 a pair, a null \x00 and\ttabs", "half a pair, a null and tabs"),
    ],
)
def test_a_description_is_text(given: str, plain: str) -> None:
    assert description_of(given, 10_000) == plain


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("Load of $host on ${zone:csv} by [[job]]", "Load of Server on zone by job"),
        ("Errors / $__rate_interval, $5 of $$ and {{ legend }}", "Errors / rate interval, $5 of $$ and legend"),
        ("{% if x %}Sales{% endif %} of {{ filter_values('region')[0] }}{# note #}", "Sales of region"),
        ("{{ }} [[]] ${}", "[[]] ${}"),
    ],
)
def test_a_template_becomes_its_label_or_a_plain_word(given: str, plain: str) -> None:
    assert title_of(given, 500, {"host": "Server", "zone": ""}) == plain


def test_a_dollar_sign_is_money_where_a_tool_has_no_such_variables() -> None:
    assert title_of("Revenue in $USD", 500) == "Revenue in $USD"


def test_what_is_too_long_is_cut_after_a_word_and_lists_have_each_word_once() -> None:
    assert title_of("word " * 200, 20) == "word word word…"
    assert title_of("x" * 100, 20) == "x" * 19 + "…"
    assert listed([" a ", "", "a", "b\n c", "d"], 2, 10) == ["a", "b c"]


def test_long_texts_that_almost_match_take_no_time() -> None:
    """Each of these takes minutes where a pattern goes back over what it has read."""
    for piece in (
        "<a ",
        "<p x=",
        '<b c="',
        "[",
        "[a](",
        "{{",
        "${",
        "**a",
        "```",
        "with a (",
        "<!--",
        "{%",
        "select a,",
    ):
        description_of(piece * 20_000, 10_000)
