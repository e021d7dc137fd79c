"""What stands in deploy/ fits what is served: settings, paths and times; every alert is in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from copilotlab import ChartRepository, Node, load_embedder, picture
from copilotlab.monitoring import alerts
from copilotlab.service.app import create_app
from copilotlab.service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FILES = [
    DEPLOY / "Dockerfile",
    DEPLOY / "compose.yml",
    DEPLOY / "systemd" / "copilotlab@.service",
    DEPLOY / "kubernetes" / "copilotlab.yml",
]
DRAIN = 5.0  # seconds, in Kubernetes; elsewhere less
ENDS_WITHIN = DRAIN + 2 * Settings.model_fields["grace"].default  # the requests, then the node


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_that_is_set_is_one(path):
    named = set(re.findall(r"COPILOTLAB_([A-Z_]+)", path.read_text())) - {"CACHE"}
    assert named
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_kubernetes_asks_what_is_answered_lets_it_end_in_order_and_needs_no_root():
    deployment, service, budget = documents("kubernetes/copilotlab.yml")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    app = create_app(Node(ChartRepository(), load_embedder("hash")), Settings())
    served = set(app.openapi()["paths"])
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert set(probes.values()) <= served
    assert (probes["liveness"], probes["readiness"]) == ("/livez", "/readyz")
    assert {"name": "COPILOTLAB_DRAIN", "value": f"{DRAIN:g}"} in container["env"]
    assert pod["terminationGracePeriodSeconds"] > ENDS_WITHIN
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]):
        assert selector.items() <= labels.items()
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    assert {"token", "charts", "redis"} == {
        setting["valueFrom"]["secretKeyRef"]["key"]
        for setting in container["env"]
        if "secretKeyRef" in setting.get("valueFrom", {})
    }


def test_compose_runs_three_nodes_of_their_own_names_that_are_reached_from_this_machine_alone():
    (compose,) = documents("compose.yml")
    nodes = [service for service in compose["services"].values() if service["image"] == "copilotlab"]
    assert len({node["environment"]["COPILOTLAB_NODE_ID"] for node in nodes}) == len(nodes) == 3
    for node in nodes:
        assert node["read_only"]
        assert all(port.startswith("127.0.0.1:") for port in node["ports"])
        assert int(node["stop_grace_period"].rstrip("s")) > ENDS_WITHIN
        assert (ROOT / "deploy" / node["build"]["context"] / node["build"]["dockerfile"]).exists()


def test_the_image_runs_as_nobody_who_matters_and_copies_what_there_is():
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line


def test_the_unit_is_one_that_systemd_takes(tmp_path):
    unit = DEPLOY / "systemd" / "copilotlab@.service"
    seconds = re.search(r"^TimeoutStopSec=(\d+)$", unit.read_text(), re.MULTILINE)
    assert seconds
    assert int(seconds[1]) > ENDS_WITHIN
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    copy = tmp_path / "copilotlab@a.service"
    copy.write_text(unit.read_text().replace("/opt/copilotlab/bin/copilotlab", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if copy.name in line]
    assert not said, said


def test_each_alert_has_its_place_in_the_runbook_and_no_other_has():
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    known = {condition.name for condition in (*alerts.CONDITIONS, *picture.CLUSTER_CONDITIONS)}
    sections = re.split(r"^## ", runbook, flags=re.MULTILINE)[1:]
    assert {section.splitlines()[0] for section in sections} == known
    for section in sections:
        for part in ("**Means**", "**See**", "**Do**"):
            assert part in section, section.splitlines()[0]
