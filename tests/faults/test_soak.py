"""A soak ends with a verdict, whatever happens in it: the test of that program, not of the cluster."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import redis

from copilotlab.lab.faults import FAULTS, Fault

PATH = Path(__file__).parents[1] / "benchmarks" / "soak.py"


@pytest.fixture
def soak(monkeypatch):
    """The program, with faults in quick succession and a process less to start."""
    spec = importlib.util.spec_from_file_location("soak", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BETWEEN_FAULTS", (0.1, 0.2))
    monkeypatch.setattr(module, "ENDS_WITHIN", 0.5)
    monkeypatch.setattr(module, "NODES", 2)
    monkeypatch.setattr(module, "PROCESSES", 2)
    return module


def play(soak, capsys, seconds=2.0):
    """The exit code, the verdict, and all that was printed."""
    code = soak.main(["--minutes", str(seconds / 60), "--seed", "7"])
    printed = capsys.readouterr().out
    return code, printed.splitlines()[-1], printed


def enter(monkeypatch, soak, start, end, scope="line"):
    """Play this fault and nothing else."""
    monkeypatch.setitem(FAULTS, "planted", Fault("planted", "a fault of this test", scope, start, end))
    monkeypatch.setattr(soak, "CHOSEN", ["planted"])


def nothing(_lab, _index):
    pass


def test_an_end_that_meets_another_fault_is_tried_again(soak, capsys, monkeypatch):
    ends = []

    def end(_lab, _index):
        ends.append(1)
        if len(ends) == 1:
            raise redis.ConnectionError("Error 32 while writing to socket. Broken pipe.")

    enter(monkeypatch, soak, nothing, end)
    code, verdict, printed = play(soak, capsys)
    assert (code, verdict) == (0, "verdict: seed 7 held"), printed
    assert "tried again 1: end of planted: ConnectionError 1" in printed
    assert "2 stores of" in printed


def test_what_a_fault_raises_at_its_beginning_and_at_its_end_is_in_the_verdict(soak, capsys, monkeypatch):
    def start(_lab, _index):
        raise redis.ConnectionError("a storm")

    def end(_lab, _index):
        raise redis.TimeoutError("a server that is frozen")

    enter(monkeypatch, soak, start, end)
    code, verdict, printed = play(soak, capsys, seconds=0.1)
    assert code == 1
    assert verdict == "verdict: seed 7 FAILED: 2 complaints", printed
    assert "the beginning of 'planted': ConnectionError: a storm" in printed
    assert "the end of 'planted': TimeoutError: a server that is frozen" in printed
    assert 'test_soak.py", line' in printed  # the traceback
    assert "2 stores of" in printed  # it was carried through, and all compared


def test_faults_that_are_on_end_although_the_soak_is_interrupted(soak, capsys, monkeypatch):
    ended = []

    def interrupted(_lab, _index):
        raise KeyboardInterrupt

    enter(monkeypatch, soak, interrupted, lambda _lab, index: ended.append(index))
    monkeypatch.setattr(soak.Soak, "_start", lambda self, fault, index: fault.start(self.cluster, index))
    monkeypatch.setattr(soak.Soak, "_attempt", attempt_but_for_faults(soak.Soak._attempt))
    code, verdict, printed = play(soak, capsys, seconds=60)
    assert (code, verdict) == (1, "verdict: seed 7 FAILED: 1 complaints"), printed
    assert "interrupted, the faults: KeyboardInterrupt: " in printed
    assert len(ended) == 1


def attempt_but_for_faults(attempt):
    """An interrupt comes between two faults as well as in one."""
    return lambda self, what, step: step() if "beginning" in what else attempt(self, what, step)


def test_a_process_that_ends_by_itself_is_in_the_verdict(soak, capsys, monkeypatch):
    def crash(lab, index):
        lab.process_of(index)._process.kill()
        lab.process_of(index)._process.wait()

    enter(monkeypatch, soak, crash, nothing)
    code, verdict, printed = play(soak, capsys, seconds=0.1)
    assert code == 1
    assert verdict.startswith("verdict: seed 7 FAILED"), printed
    assert "has ended by itself" in printed


def test_what_an_editor_raises_is_in_the_verdict_and_the_others_go_on(soak, capsys, monkeypatch):
    enter(monkeypatch, soak, nothing, nothing)
    edit = soak.Soak._edit

    def failing(self, process, chance):
        if process is self.slots[0]:
            raise TimeoutError("the process has not answered")
        return edit(self, process, chance)

    monkeypatch.setattr(soak.Soak, "_edit", failing)
    code, verdict, printed = play(soak, capsys)
    assert code == 1
    assert "editor 0: TimeoutError: the process has not answered" in printed
    assert "editor 1" not in printed
    assert verdict.startswith("verdict: seed 7 FAILED")


def test_a_cluster_that_does_not_start_is_a_verdict(soak, capsys, monkeypatch):
    monkeypatch.setattr(soak, "POLICY", {"probe_interval": -1})
    code, verdict, printed = play(soak, capsys)
    assert (code, verdict) == (1, "verdict: seed 7 FAILED: 1 complaints"), printed
    assert "the start of the cluster: EOFError" in printed


def test_a_soak_that_hangs_is_a_verdict(tmp_path):
    import subprocess
    import sys

    program = (
        "import sys, time; sys.argv[0] = 'soak.py'\n"
        f"sys.path[:0] = [{str(PATH.parent)!r}]\n"
        "import soak\n"
        "soak.OVERTIME = 0.5\n"
        "soak.Soak._set_up = lambda self: time.sleep(60)\n"
        "sys.exit(soak.main(['--minutes', '0', '--seed', '7']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-1] == "verdict: seed 7 FAILED: 1 complaints"
    assert "the soak itself hangs" in ended.stdout
    assert "in _set_up" in ended.stderr or "<lambda>" in ended.stderr


# --- what asks the processes ------------------------------------------------------------------------------------------


def test_an_answer_that_came_too_late_is_not_taken_for_the_next_one(soak):
    charts = [soak.Chart(chart_id=1, title="Revenue")]
    with soak.Processes(1, charts=charts, queries=["revenue"], policy={}) as cluster:
        (process,) = cluster.processes
        process.send("search", node="node-0", query="revenue")
        with pytest.raises(TimeoutError, match="has not answered for 0 s"):
            process.read(limit=0.0)
        assert isinstance(process.ask("status", node="node-0"), dict)
        process.kill()
        for _ in range(2):
            with pytest.raises((EOFError, BrokenPipeError)):
                process.ask("status", node="node-0")
        for _ in range(2):
            with pytest.raises(EOFError, match="has ended"):
                process.read()
