"""What an agent writes, on its way from the control socket to terminals, tables and logs."""

import json
import logging
from collections.abc import Iterator

import pytest
import zmq

import coordinator.control as control_module
from agent.ids import AgentName, Epoch, InstanceId, RunId
from agent.messages import AgentMessage, Bye, Failed, Heartbeat, Hello, Welcome, encode
from agent.messages import decode_coordinator_message as decode
from agent.sockets import CONTROL, set_options
from agent.versions import our_versions
from coordinator.control import Control
from coordinator.logs import set_up
from coordinator.membership import Agent, AgentState
from coordinator.plain_text import MAX_REASON_CHARS, clean, one_line
from tests.system.processes import wait_until

ESCAPES = "\x1b[2J\x1b]0;owned\x07\n\x9b31m"
WAIT_MS = 10_000


class Rig:
    """A control channel and one agent that says what it is told to."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.control = Control(self._context, "tcp://127.0.0.1:*", RunId(5), 1, 2)
        self._socket = self._context.socket(zmq.DEALER)
        set_options(self._socket, CONTROL)
        self._socket.setsockopt(zmq.SNDTIMEO, WAIT_MS)
        self._socket.setsockopt(zmq.ROUTING_ID, b"pi-1/1")
        self._socket.connect(f"tcp://127.0.0.1:{self.control.port}")

    def say(self, message: AgentMessage) -> None:
        self._socket.send(encode(message))

    def hears(self) -> object:
        assert self._socket.poll(WAIT_MS), "nothing came"
        return decode(self._socket.recv())

    def join(self, software: str = "0.1.0", machine: str = "aarch64") -> Agent:
        self.say(hello("pi-1", software, machine))
        assert isinstance(self.hears(), Welcome)
        return self.agent()

    def agent(self) -> Agent:
        return self.control.agents()[0]

    def close(self) -> None:
        self._socket.close(linger=0)
        self.control.close()
        self._context.term()


def hello(name: str, software: str = "0.1.0", machine: str = "aarch64") -> Hello:
    ours = our_versions()
    theirs = type(ours)(software, ours.protocol, ours.layout, ours.numerics)
    return Hello(AgentName(name), InstanceId("1"), theirs, 4, 4, 1 << 30, 1e9, machine)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(control_module, "FAREWELL_S", 0.01)
    rig = Rig()
    yield rig
    rig.close()


def test_what_an_agent_says_of_itself_can_be_printed(rig: Rig) -> None:
    agent = rig.join(ESCAPES + "v" * 100_000, ESCAPES + "m" * 100_000)
    for text in (agent.hello.versions.software, agent.hello.machine):
        assert text.isprintable()
        assert text.startswith("\\x1b[2J\\x1b]0;owned\\x07\\n\\x9b31m")
        assert len(text) <= 65


def test_why_it_leaves_can_be_printed(rig: Rig) -> None:
    rig.join()
    rig.say(Bye(ESCAPES + "x" * 900_000))
    assert wait_until(lambda: rig.agent().state is AgentState.LEFT)
    reason = rig.agent().reason
    assert reason.isprintable()
    assert reason.startswith("it left: \\x1b[2J")
    assert len(reason) < MAX_REASON_CHARS + 20


@pytest.fixture
def handlers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("handlers_as_before")
def test_why_it_leaves_cannot_speak_for_another(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(True, logging.INFO)
    rig.join()
    rig.say(Bye("agent=pi-2 epoch=99 level=critical"))
    assert wait_until(lambda: rig.agent().state is AgentState.LEFT)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (lost,) = [line for line in lines if " lost " in line["event"]]
    assert (lost["agent"], lost["epoch"], lost["level"]) == ("pi-1", 0, "info")


def test_a_message_that_cannot_be_read_is_not_quoted_at_length(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.join()
    kind = b"\xdb\x00\x0d\xbb\xa0" + b"\x1b" * 900_000
    rig._socket.send(b"\x81\xa4type" + kind)
    assert wait_until(lambda: rig.control.n_dropped == 1)
    assert "control: dropped message of " in caplog.text
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 2 * MAX_REASON_CHARS


def test_a_name_that_must_be_cut_is_no_name(rig: Rig) -> None:
    rig.say(hello("a" * 65))
    refused = rig.hears()
    assert "cannot be used" in str(refused)
    assert rig.control.agents() == []


def test_failures_are_cleaned_and_numbers_that_cannot_be_are_left_out() -> None:
    assert clean(Failed(Epoch(3), "a\x1b[1mb")) == Failed(Epoch(3), "a\\x1b[1mb")
    for odd in (float("nan"), float("inf"), -1.0, 1e9):
        assert clean(Heartbeat(1, 2, 3, round_trip_s=odd)) == Heartbeat(1, 2, 3)
    for message in (Heartbeat(1, 2, 3, round_trip_s=0.25), hello("pi-1"), Bye("häßlich 日本")):
        assert clean(message) == message


def test_one_line_keeps_to_its_length() -> None:
    assert one_line("abc", 3) == "abc"
    assert one_line("abcd", 3) == "abc…"
    assert one_line("\n" * 1000, 6) == "\\n\\n\\n…"
    # What turns the direction of writing is escaped too.
    assert one_line("x\u202ey\u2028") == "x\\u202ey\\u2028"
