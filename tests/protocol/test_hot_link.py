"""The hot channel's end at the coordinator, with peers that send what nobody asked for."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from agent.frames import HEADER_BYTES, FrameType, Header, Wire, pack_header
from agent.ids import Epoch, Rank, RunId, Seq
from agent.sockets import HOT, set_options
from coordinator.gate import Evictor
from coordinator.hot_link import HotLink, HotPeer
from kernels.errors import AgentLostError

RUN, EPOCH = RunId(5), Epoch(1)
Context = zmq.Context[zmq.Socket[bytes]]


def frame(kind: FrameType, rank: int = 0, seq: int = 0) -> bytearray:
    out = bytearray(HEADER_BYTES)
    pack_header(out, Header(kind, Wire.F32, EPOCH, RUN, Seq(seq), rank=Rank(rank)))
    return out


class Rig:
    """A hot link and the members that dial it."""

    def __init__(self) -> None:
        self.context: Context = zmq.Context()
        self.others: Context = zmq.Context()
        self.lost = ""
        self.link = HotLink(self.context, "tcp://127.0.0.1:*", RUN, lambda _: self.lost)
        self._stop = threading.Event()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._threads: list[threading.Thread] = []

    def dial(self, route: bytes) -> zmq.Socket[bytes]:
        socket = self.others.socket(zmq.DEALER)
        set_options(socket, HOT)
        socket.setsockopt(zmq.ROUTING_ID, route)
        socket.setsockopt(zmq.SNDTIMEO, 5000)
        socket.connect(f"tcp://127.0.0.1:{self.link.port}")
        self._sockets.append(socket)
        return socket

    def join(self, *routes: bytes) -> list[zmq.Socket[bytes]]:
        sockets = [self.dial(route) for route in routes]
        for rank, socket in enumerate(sockets):
            socket.send(frame(FrameType.HELLO, rank))
        names = [route.decode() for route in routes]
        peers = [HotPeer(route) for route in routes]
        self.link.expect(names, peers, EPOCH, 4096)
        self.link.join(time.monotonic() + 10)
        return sockets

    def babble(self, socket: zmq.Socket[bytes], data: bytearray) -> None:
        """Have a thread send a frame over and over; the socket belongs to it from now on."""

        def run() -> None:
            while not self._stop.wait(0.02):
                socket.send(data)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        for socket in self._sockets:
            socket.close(linger=0)
        self.link.close()
        self.others.destroy(linger=0)
        self.context.term()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.mark.parametrize(
    "babbled",
    [
        frame(FrameType.PARTIAL, 0, seq=999),  # stale
        frame(FrameType.PARTIAL, 1),  # under another member's rank
        bytearray(b"nonsense"),
    ],
)
def test_who_sends_other_frames_cannot_keep_a_deadline_from_passing(
    rig: Rig, babbled: bytearray
) -> None:
    talker, _ = rig.join(b"talker", b"silent")
    rig.babble(talker, babbled)
    rig.link.next_seq()
    with pytest.raises(AgentLostError, match=r"did not answer within 0.5 s"):
        rig.link.exchange(frame(FrameType.STEP), [Rank(0), Rank(1)], 0.5)


def test_a_lost_member_is_noticed_while_another_one_babbles(rig: Rig) -> None:
    talker, _ = rig.join(b"talker", b"silent")
    rig.babble(talker, frame(FrameType.PARTIAL, 0, seq=999))
    rig.link.next_seq()
    rig.lost = "its process ended"
    with pytest.raises(AgentLostError, match="its process ended"):
        rig.link.exchange(frame(FrameType.STEP), [Rank(0), Rank(1)], 60.0)


def until_dropped(link: HotLink, n: int) -> None:
    deadline_s = time.monotonic() + 10
    while link.n_dropped < n:
        assert time.monotonic() < deadline_s, f"{link.n_dropped} dropped, not {n}"
        threading.Event().wait(0.005)
        link.drain()


def test_what_comes_between_two_requests_is_dropped_and_links_go_on(rig: Rig) -> None:
    (member,) = rig.join(b"member")
    stranger = rig.dial(b"stranger")
    for _ in range(30):
        stranger.send_multipart([bytes(100_000)] * 3)
        member.send(frame(FrameType.PARTIAL, 0, seq=7))
    until_dropped(rig.link, 60)
    seq = rig.link.next_seq()
    member.send(frame(FrameType.PARTIAL, 0, seq))
    (reply,) = rig.link.exchange(frame(FrameType.STEP), [Rank(0)], 10.0)
    assert reply.header.seq == seq


def test_unread_frames_of_a_peer_are_few(rig: Rig) -> None:
    """Whoever has a key may fill his own queue; what it holds is memory of the coordinator."""
    stranger = rig.dial(b"stranger")
    n_sent = 0
    while stranger.poll(500, zmq.POLLOUT):
        stranger.send(bytes(4 << 20))
        n_sent += 1
    # The others wait at the sender, in its own memory.
    assert n_sent <= HOT.high_water_mark + HOT.router_receives + 8
    stranger.close(linger=0)
    received: list[bytes] = []
    router = rig.link._socket
    while router.poll(200):
        received.append(router.recv_multipart()[1])
    # Reading makes room for what the kernel's buffers held.
    assert len(received) <= HOT.router_receives + 8


def evict_without_members(rig: Rig) -> Callable[[bytes], None]:
    return rig.link.evict


def evict_directly(rig: Rig) -> Callable[[bytes], None]:
    return Evictor(rig.context, rig.link._socket).evict


@pytest.mark.parametrize("how", [evict_without_members, evict_directly])
def test_more_agents_may_leave_than_a_process_has_sockets(
    rig: Rig, how: Callable[[Rig], Callable[[bytes], None]]
) -> None:
    """libzmq gives a socket back when the ROUTER's owner calls into it, and idle it does not."""
    evict = how(rig)
    for i in range(int(rig.context.get(zmq.MAX_SOCKETS)) + 100):
        evict(b"agent %d" % i)
    rig.link.drain()
    (member,) = rig.join(b"member")
    seq = rig.link.next_seq()
    member.send(frame(FrameType.PARTIAL, 0, seq))
    assert rig.link.exchange(frame(FrameType.STEP), [Rank(0)], 10.0)


def test_a_member_that_left_is_cut_off(rig: Rig) -> None:
    (member,) = rig.join(b"member")
    rig.link.evict(b"member")
    member.send(frame(FrameType.PARTIAL, 0, 1))
    rig.link.next_seq()
    with pytest.raises(AgentLostError, match="hot link is closed"):
        rig.link.exchange(frame(FrameType.STEP), [Rank(0)], 10.0)


def test_hellos_are_taken_and_all_else_dropped_while_members_load(rig: Rig) -> None:
    member, stranger = rig.dial(b"member"), rig.dial(b"stranger")
    rig.link.expect(["member"], [HotPeer(b"member")], EPOCH, 4096)
    member.send(frame(FrameType.HELLO))
    for _ in range(30):
        stranger.send(bytes(100_000))
    deadline_s = time.monotonic() + 10
    while rig.link.n_dropped < 30 or not rig.link.routes:
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.005)
        rig.link.take_hellos()
    rig.link.join(time.monotonic())
    assert rig.link.routes == [b"member"]
