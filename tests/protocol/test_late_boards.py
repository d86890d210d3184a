"""A serving coordinator and boards that keep it waiting: while they load, and while it writes."""

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from agent.frames import HEADER_BYTES, FrameType, Header, Wire, pack_header
from agent.ids import AgentName, InstanceId, Seq
from agent.messages import (
    Assignment,
    Heartbeat,
    Hello,
    Loading,
    Ready,
    Welcome,
    decode_coordinator_message,
    encode,
)
from agent.sockets import CONTROL, HOT, set_options
from agent.versions import our_versions
from coordinator import installer as installer_module
from coordinator import supervisor as supervisor_module
from coordinator.admin_messages import Failed, Generate, Reply
from coordinator.cluster import Cluster
from coordinator.inbox import Request
from coordinator.service import ENDING, Service
from tests.protocol.agent_harness import make_model
from tests.system.processes import free_port, wait_until

BEAT_MS = 100
# Far less than the deadline of a phase, far more than what has to happen.
SOON_S = 10.0
READY = {"": "ready", "a": "ready"}


class Board:
    """An agent that says all that is needed to be READY, or less, and never answers a step.

    Args:
        name: its name.
        port: the coordinator's.
        loads: whether it ever says that it is ready.
        dials: whether it dials the hot channel.
        brags: whether it says, for ever, that it has ever more bytes.
    """

    def __init__(
        self, name: str, port: int, loads: bool = True, dials: bool = True, brags: bool = False
    ) -> None:
        self._name = name
        self._port = port
        self._loads, self._dials, self._brags = loads, dials, brags
        self._claims = itertools.count(1, 1 << 30)
        self._told: Assignment | None = None
        self.n_steps = 0
        self._stop = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _dealer(self, kind: object, port: int, route: bytes) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        set_options(socket, kind)  # type: ignore[arg-type]
        socket.setsockopt(zmq.ROUTING_ID, route)
        socket.setsockopt(zmq.SNDTIMEO, 1000)
        socket.connect(f"tcp://127.0.0.1:{port}")
        return socket

    def _run(self) -> None:
        control = self._dealer(CONTROL, self._port, f"{self._name}/1".encode())
        hot: zmq.Socket[bytes] | None = None
        name, instance = AgentName(self._name), InstanceId("1")
        control.send(encode(Hello(name, instance, our_versions(), 1, 1, 1 << 33, 1e9)))
        while not self._stop.is_set():
            if control.poll(BEAT_MS):
                match decode_coordinator_message(control.recv()):
                    case Welcome() as welcome:
                        hot = self._dealer(HOT, welcome.hot_port, welcome.hot_route)
                    case Assignment() as told:
                        self._told = told
                        self._get_ready(control, hot, told)
            self._beat(control)
            while hot is not None and hot.poll(0):
                hot.recv()
                self.n_steps += 1
        control.close(linger=0)
        if hot is not None:
            hot.close(linger=0)

    def _get_ready(
        self, control: zmq.Socket[bytes], hot: zmq.Socket[bytes] | None, told: Assignment
    ) -> None:
        if self._loads:
            control.send(encode(Ready(told.epoch, 1, 1, 0, 0.1)))
        if self._loads and self._dials:
            assert hot is not None
            frame = bytearray(HEADER_BYTES)
            header = Header(FrameType.HELLO, Wire.F32, told.epoch, told.run_id, Seq(0))
            pack_header(frame, header._replace(rank=told.rank))
            hot.send(frame)

    def _beat(self, control: zmq.Socket[bytes]) -> None:
        control.send(encode(Heartbeat(next(self._claims), 1 << 33, 0)))
        if self._brags and self._told is not None:
            n_bytes = next(self._claims)
            control.send(encode(Loading(self._told.epoch, n_bytes, n_bytes + 1)))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._context.term()


class Coordinator:
    """A service in a thread of its own."""

    def __init__(self, model: Path) -> None:
        self.port = free_port()
        self._cluster = Cluster(
            model, bind=f"tcp://127.0.0.1:{self.port}", min_agents=0, place="spread", insecure=True
        )
        self.service = Service(self._cluster, 1, list, lambda: None)
        self.boards: list[Board] = []
        self.thread = threading.Thread(target=self.service.run)
        self.thread.start()

    def add(self, name: str, **habits: bool) -> Board:
        self.boards.append(Board(name, self.port, **habits))
        return self.boards[-1]

    def states(self) -> dict[str, str]:
        """Return the states of the agents, and the coordinator's own under ""."""
        status = self.service.desk.status()
        return {"": status.state} | {str(agent.name): agent.state for agent in status.agents}

    def ask(self, n_prompt: int = 40) -> Request:
        ask = Generate(prompt_ids=[5] * n_prompt, max_tokens=5)
        return self.service.desk.submit(ask)

    def close(self) -> None:
        # While weights are loaded it unwinds whoever calls it, who is the serving thread elsewhere.
        with contextlib.suppress(KeyboardInterrupt):
            self.service.stop()
        self.thread.join()
        for board in self.boards:
            board.close()
        self._cluster.close()


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    monkeypatch.setattr(installer_module, "LOAD_STALL_S", 1.0)
    monkeypatch.setattr(installer_module, "JOIN_S", 1.0, raising=False)
    monkeypatch.setattr(supervisor_module, "MIN_RETRY_S", 0.1)
    model = make_model(tmp_path / "model")
    path = model.directory
    model.close()
    coordinator = Coordinator(path)
    yield coordinator
    coordinator.close()


def last_reply(request: Request) -> Reply | None:
    """Return how a request ended; None if it has not, soon enough."""
    deadline_s = time.monotonic() + SOON_S
    while time.monotonic() < deadline_s:
        reply = request.next_reply(0.1)
        if reply is not None and request.is_last(reply):
            return reply
    return None


@pytest.mark.parametrize("habit", ["hangs", "brags", "does not dial"])
def test_a_board_that_never_gets_ready_is_set_aside(coordinator: Coordinator, habit: str) -> None:
    habits = {
        "hangs": {"loads": False},
        "brags": {"loads": False, "brags": True},
        "does not dial": {"dials": False},
    }
    for name in ("a", "b"):
        coordinator.add(name)
    coordinator.add("c", **habits[habit])
    wanted = {"": "ready", "a": "ready", "b": "ready", "c": "set aside"}
    assert wait_until(lambda: coordinator.states() == wanted, 30.0), coordinator.states()


def writing(coordinator: Coordinator) -> Request:
    """A request whose first phase a board never answers."""
    board = coordinator.add("a")
    assert wait_until(lambda: coordinator.states() == READY, 30.0)
    request = coordinator.ask()
    assert wait_until(lambda: board.n_steps > 0, 30.0)
    return request


def test_a_client_that_leaves_ends_a_phase_that_is_not_answered(coordinator: Coordinator) -> None:
    request = writing(coordinator)
    assert coordinator.states()[""] == "writing"
    epoch = coordinator.service.desk.status().epoch
    request.give_up("it left")
    # Nothing was wrong with the plan.
    assert wait_until(lambda: coordinator.states() == READY, SOON_S)
    status = coordinator.service.desk.status()
    assert (status.epoch, status.n_failed) == (epoch, 0)


def test_stop_ends_a_phase_that_is_not_answered(coordinator: Coordinator) -> None:
    request = writing(coordinator)
    coordinator.service.stop()
    assert last_reply(request) == Failed(ENDING)
    coordinator.thread.join(SOON_S)
    assert not coordinator.thread.is_alive()
