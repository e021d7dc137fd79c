"""What studies give, as a notebook shows it: a card with the figures, in which markup is shown and not obeyed."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import pytest

from copilotlab import Policy
from copilotlab.lab.faults import FAULTS, Fault
from copilotlab.markup import DOUBTFUL, GOOD
from copilotlab.studies.ablation import Outcome
from copilotlab.studies.collection import Collection
from copilotlab.studies.lexical import LexicalIndex
from copilotlab.studies.models import Recommendation
from copilotlab.studies.recovery import Experiment
from copilotlab.studies.timeouts import advise

MARKUP = "<script>alert('x')</script>&"
SHOWN = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;"


def collection() -> Collection:
    return Collection.read(
        pl.DataFrame({"chart_id": [1, 2], "title": ["Revenue", "Sick days"]}),
        pl.DataFrame({"query_id": [10], "text": [MARKUP]}),
        pl.DataFrame({"query_id": [10, 10], "chart_id": [1, 2], "relevance": [2, 1]}),
    )


def recommendation() -> Recommendation:
    return Recommendation(f"folder/{MARKUP}", f"Take folder/{MARKUP}: it is as good.")


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Experiment:
    fault = Fault(MARKUP, f"what {MARKUP} does", "server", lambda lab, index: None, lambda lab, index: None)
    monkeypatch.setitem(FAULTS, MARKUP, fault)
    return Experiment(MARKUP, Policy())


@pytest.mark.parametrize("make", [collection, recommendation])
def test_markup_in_names_is_shown_and_not_obeyed(make: Callable[[], Collection | Recommendation]) -> None:
    page = make()._repr_html_()
    assert SHOWN in page
    assert "<script" not in page


def test_an_experiment_is_a_card_before_it_ran_and_when_all_agree(experiment: Experiment) -> None:
    page = experiment._repr_html_()
    assert page.count(SHOWN) == 2
    assert "<script" not in page
    assert "not yet" in page
    assert DOUBTFUL in page
    experiment.agreed = 1.25
    assert "1.2 s after the fault" in experiment._repr_html_()
    assert GOOD in experiment._repr_html_()


def test_a_collection_says_how_much_is_in_it() -> None:
    page = collection()._repr_html_()
    assert "Charts</bdi></th><td" in page
    assert page.index(">2</bdi>") < page.index(">1</bdi>") < page.rindex(">2</bdi>")


def test_an_advice_says_what_follows_and_whether_that_is_tolerated() -> None:
    good, bad = advise(100_000, 140.0, 120.0), advise(100_000, 140.0, 5.0)
    assert "A batch timeout of 32 s" in good._repr_html_()
    assert "714 s" in good._repr_html_()
    assert GOOD in good._repr_html_()
    assert "more than is tolerated" in bad._repr_html_()
    assert DOUBTFUL in bad._repr_html_()


def test_an_outcome_says_whether_the_promise_held_and_what_it_cost() -> None:
    story = pl.DataFrame({"seconds": [0.0], "node": ["lab"], "event": [MARKUP], "detail": [MARKUP]})
    kept, broken = Outcome(True, 0, 2.5, 3, 1, 2, 1, story), Outcome(False, 7, None, 3, 1, 2, 1, story)
    for said in ("The promise is kept", "after 2.5 s", "3, of which 1 in vain", GOOD):
        assert said in kept._repr_html_()
    for said in ("The promise is broken", "7", "never", DOUBTFUL):
        assert said in broken._repr_html_()
    assert "<script" not in kept._repr_html_()


def test_a_lexical_index_says_how_many_texts_it_holds() -> None:
    assert repr(LexicalIndex(["revenue", "sick days"])) == "LexicalIndex(2 texts)"
