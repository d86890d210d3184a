"""Agents only dial out: nothing can connect to one, not even while head groups move."""

import psutil
import pytest

from agent.messages import Heartbeat, Ready
from agent.migration_messages import Begun, Depart, Group, Share
from tests.protocol.agent_harness import assignment, make_model, running


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("listens") / "model") as directory:
        yield directory


def sockets(agent):
    """The IP sockets of an agent and of the processes that it has started."""
    process = psutil.Process(agent.popen.pid)
    return [c for p in (process, *process.children(recursive=True)) for c in p.net_connections()]


def check_dials_only(agent, *ports):
    found = sockets(agent)
    assert not [c for c in found if c.status == psutil.CONN_LISTEN]
    assert not [c for c in found if c.type.name != "SOCK_STREAM"]
    dialled = {c.raddr.port for c in found if c.status == psutil.CONN_ESTABLISHED}
    assert dialled == set(ports)


def test_an_agent_listens_nowhere_while_it_serves_and_while_rows_may_be_read_from_it(
    directory, tmp_path
):
    with running(directory, tmp_path) as (coordinator, agent):
        control, hot = (coordinator._port(s) for s in (coordinator.control, coordinator.hot))
        coordinator.join(assignment(directory, coordinator.run_id, groups=(0, 2)))
        check_dials_only(agent, control, hot)
        told = assignment(directory, coordinator.run_id, 2, groups=(0, 1))
        assert isinstance(coordinator.assign(told, (Ready,)), Ready)
        share = Share(0, "a", "b", (Group(0, 1), Group(1, 1)))
        coordinator.tell(Depart(coordinator.run_id, 2, 1, (share,)))
        assert not coordinator.until(Begun).arrives
        # It offers its link every second; a server without a relay drops that.
        while not coordinator.bulk.n_dropped:
            coordinator.until(Heartbeat)
        check_dials_only(agent, control, hot, coordinator.bulk.port)


def test_a_listening_socket_would_be_found(directory, tmp_path):
    with running(directory, tmp_path) as (coordinator, _):
        found = psutil.Process().net_connections()
        ports = {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN}
        assert coordinator.port in ports
