"""Several services as processes, as `make serve` starts them."""

from __future__ import annotations

import httpx
import pytest

from copilotlab.lab.services import Services


def test_services_serve_one_catalogue_and_leave_nothing_behind(tmp_path):
    file = tmp_path / "charts.csv"
    file.write_text("chart_id,title\n1,Revenue by region\n2,Late flights\n")
    with Services(2, model="hash", charts=file, flags=["--drain", "0"]) as services:
        services.wait_ready()
        for url in services.urls.values():
            token = {"Authorization": f"Bearer {services.token}"}
            assert httpx.get(f"{url}/livez").status_code == 200
            assert "<title>" in httpx.get(f"{url}/admin").text
            assert httpx.get(f"{url}/v1/charts", headers=token).json()["chart_ids"] == [1, 2]
        processes = list(services.processes.values())
        assert repr(services) == "Services(2 of 2 running, 'hash')"
    assert [process.returncode for process in processes] == [0, 0]


def test_a_service_that_does_not_come_up_is_named_with_what_it_said_and_the_others_end():
    services = Services(2, model="no-such-model")
    with pytest.raises(RuntimeError, match=r"node-.: it does not serve: .*no model is called 'no-such-model'"):
        services.start()
    assert all(process.returncode is not None for process in services.processes.values())


def test_a_number_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="nodes=0: expected 1 to 16"):
        Services(0)
