"""A coordinator that is starting, while its threads are at work already."""

import threading
from typing import Any

import pytest

from coordinator import cluster as cluster_module
from coordinator.cluster import Cluster
from coordinator.probes import Probes
from tests.system.processes import DEADLINE_S, free_port
from weights.demo import demo_path


def test_links_may_be_measured_before_plans_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real_choose, real_installer = threading.Event(), Probes.choose, cluster_module.Installer

    def choose(self: Probes, *args: Any) -> Any:
        try:
            return real_choose(self, *args)
        finally:
            asked.set()

    def installer(*args: Any, **options: Any) -> Any:
        asked.clear()
        assert asked.wait(DEADLINE_S)
        return real_installer(*args, **options)

    monkeypatch.setattr(Probes, "choose", choose)
    monkeypatch.setattr(cluster_module, "Installer", installer)
    bind = f"tcp://127.0.0.1:{free_port()}"
    with Cluster(demo_path(), bind=bind, min_agents=0, insecure=True) as cluster:
        assert cluster.control.agents() == []
        assert cluster.control._n_mishaps == 0
