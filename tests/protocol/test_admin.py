"""The admin socket between a real client and a real server, with a desk that only pretends."""

import os
import re
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.ids import AgentName
from coordinator import admin, admin_client
from coordinator.admin import AdminServer, refuse_second
from coordinator.admin_client import AdminClient, find_coordinator
from coordinator.admin_messages import (
    Cordon,
    Done,
    Drain,
    Failed,
    Generate,
    GetPlan,
    GetStatus,
    LivePlan,
    Notice,
    Piece,
    Question,
    Status,
    Stop,
    decode_reply,
)
from coordinator.admin_path import admin_path, connect, find_admin_path, make_admin_directory
from coordinator.inbox import Inbox, Request
from kernels.errors import InputError, PlanError, RemoteError, ResourceError
from tests.system.processes import wait_until

STATUS = Status("ready", "m", "id", "0", 1, 2, 7070, 3.0, 1, 0, 0, 0, 0, "", "0.1.0", [])


class PretendedDesk:
    """Keeps what it is asked; answers with what is at hand."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.drained: dict[AgentName, bool] = {}
        self.cordoned: set[AgentName] = set()
        self.holding = False
        self.stopped = False

    def submit(self, ask: Generate) -> Request:
        return self.inbox.submit(ask)

    def status(self) -> Status:
        return STATUS

    def live_plan(self) -> LivePlan:
        raise PlanError("no plan is in force")

    def drain(self, name: AgentName, on: bool) -> None:
        self.drained[name] = on

    def cordon(self, name: AgentName) -> None:
        self.cordoned.add(name)

    def is_cordoned(self, name: AgentName) -> bool:
        return name in self.cordoned and not self.holding

    def holds(self, name: AgentName) -> bool:
        return self.holding

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return admin_path(7070)


@pytest.fixture
def desk() -> PretendedDesk:
    return PretendedDesk()


@pytest.fixture
def server(path: Path, desk: PretendedDesk) -> Iterator[AdminServer]:
    server = AdminServer(path, desk)
    yield server
    server.close()


def asked(path: Path, question: Question) -> object:
    with AdminClient(connect(path), 7070) as client:
        return client.answer(question)


def the_request(desk: PretendedDesk) -> Request:
    assert wait_until(lambda: bool(desk.inbox.waiting()))
    request = desk.inbox.take()
    assert request is not None
    return request


def test_questions_reach_the_desk(server: AdminServer, path: Path, desk: PretendedDesk) -> None:
    assert asked(path, GetStatus()) == STATUS
    assert asked(path, Drain(AgentName("a"))) == Done("agent 'a' has no work any more")
    assert asked(path, Drain(AgentName("a"), on=False)) == Done("agent 'a' may be used")
    assert desk.drained == {"a": False}
    done = Done("agent 'b' keeps what it has and is given nothing new")
    assert asked(path, Cordon(AgentName("b"))) == done
    assert desk.cordoned == {"b"}
    assert asked(path, Stop()) == Done("the coordinator is stopping")
    assert desk.stopped
    with pytest.raises(RemoteError, match="no plan is in force"):
        asked(path, GetPlan())


def test_answers_stream_to_whoever_asked(
    server: AdminServer, path: Path, desk: PretendedDesk
) -> None:
    def serve() -> None:
        request = the_request(desk)
        request.say(Notice("wait"))
        request.notice(Notice("twice is once"))
        request.notice(Notice("twice is once"))
        for i in range(100):
            request.say(Piece(i, "ä\n"))
        request.say(Failed("that is all"))

    thread = threading.Thread(target=serve)
    thread.start()
    with AdminClient(connect(path), 7070) as client:
        replies = client.ask(Generate(prompt_ids=[1]))
        assert next(replies) == Notice("wait")
        assert next(replies) == Notice("twice is once")
        assert [next(replies) for _ in range(100)] == [Piece(i, "ä\n") for i in range(100)]
        with pytest.raises(RemoteError, match="that is all"):
            next(replies)
    thread.join()


def test_a_client_that_leaves_gives_its_request_up(
    server: AdminServer, path: Path, desk: PretendedDesk
) -> None:
    client = connect(path)
    client.sendall(b'{"type":"generate"}\n')
    request = the_request(desk)
    assert request.given_up == ""
    client.close()
    assert wait_until(lambda: bool(request.given_up))


def test_a_client_that_does_not_read_is_given_up(
    server: AdminServer, path: Path, desk: PretendedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "SEND_S", 0.2)
    with connect(path) as client:
        client.sendall(b'{"type":"generate"}\n')
        request = the_request(desk)

        def say_more() -> bool:
            request.say(Piece(1, "x" * 10_000))
            return bool(request.given_up)

        assert wait_until(say_more)


def test_a_queue_that_is_full_gives_the_request_up() -> None:
    request = Inbox().submit(Generate())
    for _ in range(5000):
        request.say(Piece(1, ""))
    assert "reads too slowly" in request.given_up
    while isinstance(reply := request.next_reply(0.0), Piece):
        pass
    assert isinstance(reply, Failed)
    assert Request.is_last(reply)


def test_a_drain_waits_until_the_agent_is_free(
    server: AdminServer, path: Path, desk: PretendedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "TELL_S", -1.0)
    desk.holding = True
    with AdminClient(connect(path), 7070) as client:
        replies = client.ask(Drain(AgentName("a")))
        assert next(replies) == Notice("what agent 'a' holds is being moved to others")
        desk.holding = False
        assert next(replies) == Done("agent 'a' has no work any more")


def test_a_cordon_waits_until_it_is_heeded(
    server: AdminServer, path: Path, desk: PretendedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "TELL_S", -1.0)
    desk.holding = True
    with AdminClient(connect(path), 7070) as client:
        replies = client.ask(Cordon(AgentName("a")))
        why = "agent 'a' is cordoned when the present plan has been loaded"
        assert next(replies) == Notice(why)
        desk.holding = False
        assert next(replies) == Done("agent 'a' keeps what it has and is given nothing new")


def test_who_says_nothing_is_sent_away(
    server: AdminServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "ASK_S", 0.2)
    with connect(path) as client:
        client.sendall(b'{"type":')
        assert b"no whole question came within" in client.recv(4096)
        assert client.recv(4096) == b""


def test_a_line_without_end_is_cut(
    server: AdminServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "MAX_QUESTION_BYTES", 1000)
    with connect(path) as client:
        client.sendall(b"x" * 3000)
        assert b"cannot be read" in client.recv(4096)
    assert asked(path, GetStatus()) == STATUS


def test_more_clients_than_there_is_room_for(server: AdminServer, path: Path) -> None:
    clients = [connect(path) for _ in range(admin.MAX_CLIENTS)]
    try:
        with connect(path) as one_more:
            answer = decode_reply(one_more.recv(4096))
        assert answer == Failed("32 clients are connected; try again later")
    finally:
        for client in clients:
            client.close()
    assert wait_until(lambda: _answers(path))


def _answers(path: Path) -> bool:
    try:
        return asked(path, GetStatus()) == STATUS
    except RemoteError:
        return False


def test_a_stale_socket_file_is_replaced(path: Path, desk: PretendedDesk) -> None:
    make_admin_directory(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert find_admin_path(7070) is None
    refuse_second(path)
    server = AdminServer(path, desk)
    assert asked(path, GetStatus()) == STATUS
    server.close()
    assert not path.exists()


def test_a_live_coordinator_is_not_replaced(
    server: AdminServer, path: Path, desk: PretendedDesk
) -> None:
    with pytest.raises(ResourceError, match=rf"already running .* \(pid {os.getpid()}\)"):
        AdminServer(path, desk)
    assert asked(path, GetStatus()) == STATUS


def test_closing_ends_connections_and_leaves_a_successors_file(
    path: Path, desk: PretendedDesk
) -> None:
    server = AdminServer(path, desk)
    with AdminClient(connect(path), 7070) as client:
        assert isinstance(client.answer(Stop()), Done)
        path.unlink()
        path.touch()
        server.close()
        assert client.wait_closed(5.0)
    assert path.exists()


def test_only_the_owner_may_enter(server: AdminServer, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_directory_that_others_may_enter_is_refused(path: Path, desk: PretendedDesk) -> None:
    path.parent.mkdir(mode=0o700)
    path.parent.chmod(0o755)
    with pytest.raises(ResourceError, match=f"run: chmod 700 {re.escape(str(path.parent))}"):
        AdminServer(path, desk)


def test_a_runtime_directory_that_is_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="set XDG_RUNTIME_DIR to a directory of yours"):
        make_admin_directory(admin_path(7070))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "x" * 200)
    with pytest.raises(ResourceError, match="at most 107 are possible"):
        admin_path(7070)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert admin_path(7070) == Path(f"/tmp/headwise-{os.getuid()}/7070.sock")


@pytest.fixture
def serving(desk: PretendedDesk) -> Iterator[Callable[[int], None]]:
    servers: list[AdminServer] = []
    yield lambda port: servers.append(AdminServer(admin_path(port), desk))
    for server in servers:
        server.close()


def test_which_coordinator_is_meant(path: Path, serving: Callable[[int], None]) -> None:
    with pytest.raises(RemoteError, match="no coordinator of yours runs on this machine; start"):
        find_coordinator(None)
    serving(8001)
    with find_coordinator(None) as client:
        assert client.port == 8001
    serving(8002)
    with pytest.raises(InputError, match="several coordinators run, on ports 8001, 8002"):
        find_coordinator(None)
    serving(7070)
    with find_coordinator(None) as client:
        assert client.port == 7070
    with find_coordinator(8002) as client:
        assert client.port == 8002
    with pytest.raises(RemoteError, match="on port 9; start"):
        find_coordinator(9)
    with pytest.raises(InputError, match="port 0; 1 to 65535"):
        find_coordinator(0)


def test_a_coordinator_that_says_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_client, "ANSWER_S", 0.2)
    make_admin_directory(path)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(os.fspath(path))
        mute.listen()
        with pytest.raises(RemoteError, match=r"port 7070 has not answered for 0\.2 s"):
            asked(path, GetStatus())


def test_a_coordinator_of_another_version(path: Path) -> None:
    make_admin_directory(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        other.listen()
        with AdminClient(connect(path), 7070) as client:
            accepted, _ = other.accept()
            with accepted:
                accepted.sendall(b'{"type":"song"}\n')
            with pytest.raises(RemoteError, match="cannot be read"):
                client.answer(GetStatus())
