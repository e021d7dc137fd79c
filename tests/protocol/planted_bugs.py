"""The test of the tests: bugs planted into the protocol, one at a time, each of which has to be found.

    python tests/protocol/planted_bugs.py            the table of all of them (`make planted-bugs`)
    python tests/protocol/planted_bugs.py tombstones  only those with that word in their name

Each bug is planted into a copy of the package; then the state machine, without shrinking, looks for a scenario that
breaks a promise. What it does not find in time is left to the other protocol tests. Exit code 1 if a bug is not found,
if one cannot be planted since the code has moved on, or if the code as it is fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = int(os.environ.get("COPILOTLAB_SCENARIOS", "4000"))
SEED = int(os.environ.get("COPILOTLAB_SEED", "1"))


class Edit(NamedTuple):
    """``old`` stands exactly once in ``file``, a path inside the package; ``new`` takes its place."""

    file: str
    old: str
    new: str


class Bug(NamedTuple):
    """What is wrong, what it costs whoever meets it, and how it gets in."""

    name: str
    why: str
    edits: tuple[Edit, ...]


BUGS = (
    Bug(
        "no epoch check on receipt",
        "what a holder said before it lost its lease arrives late, and its old manifest is obeyed",
        (Edit("protocol/view.py", "return epoch > known or epoch == known == 0", "return True"),),
    ),
    Bug(
        "flag deleted unconditionally",
        "a holder that lost its lease ends the next holder's: two batches at a time",
        (
            Edit(
                "protocol/scripts/release_lease.lua",
                "redis.call('GET', KEYS[1]) ~= ARGV[1]",
                "not redis.call('GET', KEYS[1])",
            ),
        ),
    ),
    Bug(
        "publishes under a lost lease",
        "two batches are heard at a time",
        (Edit("protocol/scripts/keep_lease.lua", "redis.call('GET', KEYS[1]) ~= ARGV[1]", "false"),),
    ),
    Bug(
        "lease taken although held",
        "two batches run at a time",
        (Edit("protocol/scripts/take_lease.lua", "if lease ~= '' and not", "if false and not"),),
    ),
    Bug(
        "epoch starts again with the server",
        "after a lost memory every node takes the new batch for an old one, and drops it",
        (
            Edit(
                "protocol/scripts/take_lease.lua",
                "math.max(counted(redis.call('GET', KEYS[2])), tonumber(ARGV[4]))",
                "0",
            ),
        ),
    ),
    Bug(
        "lost memory never noticed",
        "a server that came back empty is taken for a blink: no rebuild follows",
        (Edit("protocol/scripts/beat.lua", "redis.call('SET', KEYS[3], 'true')", ""),),
    ),
    Bug(
        "cancelled rebuild counts as done",
        "a rebuild that failed in the middle is never done again",
        (
            Edit(
                "protocol/batch.py",
                'recovered = outcome == "published" and self.kind == "rebuild" and self.whole',
                "recovered = True",
            ),
        ),
    ),
    Bug(
        "part of the catalogue counts as a rebuild",
        "the rebuild that is owed after a lost memory never comes",
        (
            Edit("protocol/batch.py", 'self.kind == "rebuild" and self.whole', 'self.kind == "rebuild"'),
            Edit("protocol/batches.py", "if grant is not None and grant.owed:", "if False:"),
        ),
    ),
    Bug(
        "tombstones ignored",
        "a record that was on its way when its chart was deleted brings the chart back",
        (Edit("store/admission.py", "rank[0] > self.tombstones.get(chart_id, -1) and ", ""),),
    ),
    Bug(
        "older revisions accepted",
        "two updates in different orders leave nodes different",
        (Edit("store/admission.py", "            return rank > held\n", "            return True\n"),),
    ),
    Bug(
        "tie of equal revisions not settled",
        "the same words embedded twice while Redis was away stay different for ever",
        (Edit("store/admission.py", "            return rank > held\n", "            return rank[0] > held[0]\n"),),
    ),
    Bug(
        "retains regardless of age",
        "what came in since the manifest was written is thrown away by it",
        (Edit("store/store.py", "gone = gone[now.rows.revisions[gone] <= revision]", "pass"),),
    ),
    Bug(
        "no claim",
        "a change told to three nodes is embedded three times",
        (Edit("protocol/scripts/admit.lua", "        if free then", "        if true then"),),
    ),
    Bug(
        "gaps and digests ignored",
        "a node that missed something never knows",
        (
            Edit("protocol/peers.py", "        return missed\n", "        return False\n"),
            Edit("protocol/peers.py", "        return settled\n", "        return False\n"),
            Edit("protocol/view.py", "            if suspect_all:\n", "            if False:\n"),
            Edit("protocol/view.py", "            if slept:\n", "            if False:\n"),
        ),
    ),
    Bug(
        "nothing handed over, and no peer asked",
        "what was embedded while Redis was away is embedded again",
        (
            Edit("protocol/outbox.py", "owed[:HANDED_OVER]", "[]"),
            Edit("protocol/inquiry.py", "        for peer in left:\n", "        for peer in left[:0]:\n"),
        ),
    ),
    Bug(
        "who was cut off with a lease is not waited for",
        "its batch is taken over while it goes on with it, and all that it makes until it is back is made twice",
        (Edit("protocol/batches.py", "left_by = grant.left_by if grant.left_by != context.node_id else", "left_by ="),),
    ),
    Bug(
        "who comes back in the middle of a batch is not asked",
        "a new node that rebuilds after a lost memory embeds what others hold, who are not back yet",
        (
            Edit(
                "protocol/inquiry.py",
                "if not self.has_asked and self",
                "if self.has_asked:\n            return True\n        if self",
            ),
        ),
    ),
    Bug(
        "a batch does not wait for its own word",
        "it embeds what was said before it began, and is not received yet",
        (Edit("protocol/inquiry.py", "self._coordinator.echoed < self._announced or answered", "answered"),),
    ),
    Bug(
        "silence by the clock",
        "a node that lags behind takes the others for silent, and embeds what is on its way to it",
        (
            Edit(
                "protocol/coordinator.py",
                "        return self._heard_to\n",
                "        return self.context.clock.now()\n",
            ),
        ),
    ),
    Bug(
        "a batch without its lease is admitted",
        "it embeds what the next holder, or whoever is told, embeds too",
        (Edit("protocol/scripts/admit.lua", "if in_batch then", "if in_batch and lease ~= '' then"),),
    ),
    Bug(
        "a change that changes again is waited for anew",
        "a chart that is saved every few seconds, by nobody who tells, is never embedded",
        (Edit("protocol/backlog.py", "known.due = min(known.due, due)", "known.due = due"),),
    ),
    Bug(
        "deferral forgotten",
        "a change left to a batch that has passed it, or that dies, waits until somebody adopts it",
        (
            Edit(
                "protocol/changes.py",
                "self._backlog.add(chart_id, revision, self._context.clock.now() + patience)",
                "pass",
            ),
        ),
    ),
    Bug(
        "repository never compared",
        "what was changed by nobody who told is never found",
        (
            Edit(
                "protocol/sync.py",
                "            self._follower.look()\n",
                "            self._follower.has_read or self._follower.look()\n",
            ),
        ),
    ),
    Bug(
        "deletions of the repository ignored",
        "a chart deleted by nobody who told is found for ever",
        (
            Edit("store/store.py", "gone = (deleted & (held >= 0) & (held <= revisions)) | (", "gone = ("),
            Edit("protocol/follower.py", "if compare and self._context.policy.ordered and since and", "if False and"),
        ),
    ),
    Bug(
        "saved before it is embedded",
        "where the model fails, update_chart raises although the chart was changed",
        (
            Edit(
                "node.py",
                "vector = self._vector_of(replica, chart, need)\n        try:\n",
                "self.charts.save(chart)\n        vector = self._vector_of(replica, chart, need)\n        try:\n",
            ),
        ),
    ),
    Bug(
        "published, come what may",
        "the caller is told that the others know, while Redis is away",
        (
            Edit(
                "node.py",
                'outcome: Outcome = "published" if told else "local"',
                'outcome: Outcome = "published"',
            ),
        ),
    ),
    Bug(
        "unchanged, come what may",
        "the caller is told that nothing is to be done, while this node lacks the chart",
        (Edit("node.py", "and held == (known.revision, chart.content_hash):", "and True:"),),
    ),
    Bug(
        "the repository is followed by its revisions alone",
        "one that was restored and written past its old revision leaves charts of a past that it has not",
        (Edit("protocol/follower.py", "if compare and self._context.policy.ordered and since and", "if False and"),),
    ),
    Bug(
        "what the repository has said does not outrank a peer",
        "a record of words that it has not, at a revision that it has, stays for ever",
        (
            Edit("store/admission.py", "if rank[0] <= self.settled:", "if False:"),
            Edit("protocol/follower.py", "if compare and self._context.policy.ordered and since and", "if False and"),
        ),
    ),
    Bug(
        "whoever may publish is believed",
        "a deletion that somebody forged takes a chart from every node",
        (Edit("protocol/events.py", "if not compare_digest(", "if False and not compare_digest("),),
    ),
    Bug(
        "another catalogue is heard",
        "staging deletes its chart 2, and production's is gone",
        (
            Edit("protocol/events.py", "if incarnation != identity.incarnation:", "if False:"),
            Edit("protocol/events.py", "if not compare_digest(", "if False and not compare_digest("),
        ),
    ),
    Bug(
        "the dead keep their leases and claims",
        "what was left to a batch whose holder died waits for five minutes",
        (Edit("protocol/scripts/standing.lua", "redis.call('EXISTS', ALIVE .. session) == 1", "true"),),
    ),
    Bug(
        "a row that cannot be read stops a batch",
        "one row that was edited by hand, and a new node stays empty",
        (
            Edit(
                "protocol/follower.py",
                "self.skip(row.chart_id, row.revision, row.content_hash, row.column, row.reason)",
                "raise ValueError(row.reason)",
            ),
        ),
    ),
    Bug(
        "a text that the model fails on stops a batch",
        "one text, and all that is embedded after it is not",
        (Edit("protocol/batch.py", "            return self._made_again(*todo[0])\n", "            raise\n"),),
    ),
    Bug(
        "what was skipped is skipped for ever",
        "a row that was mended never comes in",
        (
            Edit("protocol/follower.py", "if mended and self.adopt_edits(mended):", "if False:"),
            Edit("protocol/follower.py", "now >= skipped.again", "False"),
        ),
    ),
    Bug(
        "a batch does not wait for what others have claimed",
        "the same script run twice: a rebuild that publishes nothing, and says that all went well",
        (Edit("protocol/worklist.py", "                self._left.append(item)\n", ""),),
    ),
    Bug(
        "what was deleted after the look is brought back by it",
        "a whole look that takes as long as a deletion brings back the chart that every node saw deleted",
        (Edit("store/store.py", " | np.isin(chart_ids, removed_since))", ")"),),
    ),
    Bug(
        "what was deleted while it was made comes back",
        "a chart that is deleted while its update hangs is found again, by nodes that have seen the deletion",
        (
            Edit("store/admission.py", "        if removed:\n", "        if False:\n"),
            Edit(
                "protocol/changes.py",
                " and self._correct(chart.chart_id) == head:",
                " and (self._correct(chart.chart_id), True):",
            ),
        ),
    ),
    Bug(
        "a batch waits for its peers for ever",
        "as long as somebody comes under a new name and answers nothing, nothing is embedded",
        (Edit("protocol/inquiry.py", "if silent >= LONGEST_SILENCE * transfers.patience:", "if False:"),),
    ),
    Bug(
        "a lease that could not be given back is kept",
        "after an outage at the end of a batch nobody may begin one until the lease has run out",
        (Edit("protocol/replica.py", "            self.batches.give_back()\n", ""),),
    ),
    Bug(
        "the version of a setting does not grow",
        "what is turned on again stays off, since an older word counts as much",
        (
            Edit("protocol/toggles.py", "version = min(latest + 1, MAX_VERSION)", "version = 1"),
            Edit("protocol/toggles.py", "setting.version, setting.at, setting", "setting.version, setting"),
        ),
    ),
    Bug(
        "a setting is said once",
        "a node whose word was lost, or that was away, never learns what was set",
        (Edit("protocol/hearing.py", "        self._gossip.heard_beat(source)\n", ""),),
    ),
)


class CodeMovedOn(ValueError):
    """A bug cannot be planted: what it replaces is not there, or is there more than once."""


def plant(bug: Bug, package: Path) -> None:
    """Make the edits of ``bug`` in the package that lies at ``package``. Raises CodeMovedOn."""
    for file, old, new in bug.edits:
        path = package / file
        text = path.read_text()
        if text.count(old) != 1:
            raise CodeMovedOn(f"{bug.name}: {old!r} stands {text.count(old)} times in {file}, expected once")
        path.write_text(text.replace(old, new))


def hunt(bug: Bug | None, scenarios: int = SCENARIOS) -> dict[str, object]:
    """Look for ``bug``, or, without one, at the code as it is, in a process of its own: found, how soon, by what."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__", ".hypothesis")
        for part in ("copilotlab", "tests/protocol"):
            shutil.copytree(ROOT / part, copy / part, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if bug is not None:
            plant(bug, copy / "copilotlab")
        searched = _run(copy, "tests/protocol/planted_bugs.py", "--here", str(scenarios))
        if searched.returncode:
            return {"found": True, "scenarios": 0, "seconds": 0.0, "by": f"it does not even run: {searched.stderr}"}
        answer: dict[str, object] = json.loads(searched.stdout.splitlines()[-1])
        if not answer["found"]:
            others = [f"--ignore=tests/protocol/{name}.py" for name in ("test_state_machine", "test_planted_bugs")]
            tested = _run(copy, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "tests/protocol", *others)
            failed = [line for line in tested.stdout.splitlines() if line.startswith("FAILED")]
            answer |= {"found": bool(failed), "by": failed[0].partition(" - ")[0] if failed else ""}
    return answer


def _run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the package, and the tests, that lie in ``copy``."""
    paths = {"PYTHONPATH": os.pathsep.join([str(copy), str(copy / "tests" / "protocol")])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=copy, env=os.environ | paths, capture_output=True, text=True, check=False)


def hunt_here(scenarios: int) -> dict[str, object]:
    """Run the state machine on the package that this process imports."""
    import logging

    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test
    from test_state_machine import Protocol
    from world import Broken

    logging.disable()
    tried = 0

    class Counted(Protocol):
        def __init__(self) -> None:
            nonlocal tried
            tried += 1
            super().__init__()

    Counted._hypothesis_internal_use_seed = SEED  # what hypothesis.seed sets, which takes functions only
    profile = settings(
        Protocol.TestCase.settings,
        max_examples=scenarios,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    begun = time.process_time()
    by = ""
    try:
        run_state_machine_as_test(Counted, settings=profile)
    except Broken as error:
        by = str(error)
    except Exception as error:  # noqa: BLE001 - a planted bug may end in anything; that it does is how it is found
        by = repr(error)
    return {"found": bool(by), "scenarios": tried, "seconds": time.process_time() - begun, "by": by}


def main(words: list[str]) -> int:
    chosen = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    print(f"seed {SEED}; up to {SCENARIOS:,} scenarios each; seconds of processor time\n")
    print(f"{'bug':48}{'found':>6}{'scenarios':>11}{'seconds':>9}  by")
    as_it_is = hunt(None)
    _show("(the code as it is)", as_it_is)
    missed = []
    for bug in chosen:
        result = hunt(bug)
        _show(bug.name, result)
        if not result["found"]:
            missed.append(bug.name)
    print(f"\n{len(chosen) - len(missed)} of {len(chosen)} bugs were found")
    if missed:
        print(f"NOT FOUND: {', '.join(missed)}")
    if as_it_is["found"]:
        print("THE CODE AS IT IS BREAKS A PROMISE")
    return 1 if missed or as_it_is["found"] else 0


def _show(name: str, result: dict[str, object]) -> None:
    found = "yes" if result["found"] else "no"
    by = str(result["by"]).splitlines()[0][:90] if result["by"] else ""
    print(f"{name:48}{found:>6}{result['scenarios']:>11,}{result['seconds']:>9.1f}  {by}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(hunt_here(int(sys.argv[2]))))
    else:
        sys.exit(main(sys.argv[1:]))
