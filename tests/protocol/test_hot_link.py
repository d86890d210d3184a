"""The hot channel's end at the coordinator, with peers that send what nobody asked for."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from agent.frames import HEADER_BYTES, FrameType, Header, Wire, pack_header
from agent.ids import AgentName, Epoch, Rank, RunId, Seq
from agent.sockets import HOT, set_options
from coordinator.evictor import Evictor
from coordinator.hot_link import HotLink, HotPeer
from coordinator.hot_socket import HotSocket
from kernels.errors import AgentLostError, LateAgentsError

RUN, EPOCH, NEXT = RunId(5), Epoch(1), Epoch(2)
Context = zmq.Context[zmq.Socket[bytes]]


def frame(kind: FrameType, rank: int = 0, seq: int = 0, epoch: Epoch = EPOCH) -> bytearray:
    out = bytearray(HEADER_BYTES)
    pack_header(out, Header(kind, Wire.F32, epoch, RUN, Seq(seq), rank=Rank(rank)))
    return out


class Rig:
    """A hot link and the members that dial it."""

    def __init__(self) -> None:
        self.context: Context = zmq.Context()
        self.others: Context = zmq.Context()
        self.lost = ""
        self.socket = HotSocket(self.context, "tcp://127.0.0.1:*", RUN)
        self._stop = threading.Event()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._threads: list[threading.Thread] = []

    def dial(self, route: bytes) -> zmq.Socket[bytes]:
        socket = self.others.socket(zmq.DEALER)
        set_options(socket, HOT)
        socket.setsockopt(zmq.ROUTING_ID, route)
        socket.setsockopt(zmq.SNDTIMEO, 5000)
        socket.connect(f"tcp://127.0.0.1:{self.socket.port}")
        self._sockets.append(socket)
        return socket

    def join(self, *routes: bytes) -> list[zmq.Socket[bytes]]:
        sockets = [self.dial(route) for route in routes]
        for rank, socket in enumerate(sockets):
            socket.send(frame(FrameType.HELLO, rank))
        self.link = self.expect(*routes)
        self.link.join(time.monotonic() + 10)
        return sockets

    def expect(self, *routes: bytes, epoch: Epoch = EPOCH) -> HotLink:
        names = [AgentName(route.decode()) for route in routes]
        peers = [HotPeer(route) for route in routes]
        return self.socket.expect(names, peers, epoch, 4096, lambda _: self.lost)

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
        self.socket.close()
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


def until_dropped(socket: HotSocket, n: int) -> None:
    deadline_s = time.monotonic() + 10
    while socket.n_dropped < n:
        assert time.monotonic() < deadline_s, f"{socket.n_dropped} dropped, not {n}"
        threading.Event().wait(0.005)
        socket.drain()


def test_what_comes_between_two_requests_is_dropped_and_links_go_on(rig: Rig) -> None:
    (member,) = rig.join(b"member")
    stranger = rig.dial(b"stranger")
    for _ in range(30):
        stranger.send_multipart([bytes(100_000)] * 3)
        member.send(frame(FrameType.PARTIAL, 0, seq=7))
    until_dropped(rig.socket, 60)
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
    router = rig.socket._socket
    while router.poll(200):
        received.append(router.recv_multipart()[1])
    # Reading makes room for what the kernel's buffers held.
    assert len(received) <= HOT.router_receives + 8


def evict_without_members(rig: Rig) -> Callable[[bytes], None]:
    return rig.socket.evict


def evict_directly(rig: Rig) -> Callable[[bytes], None]:
    return Evictor(rig.context, rig.socket._socket).evict


@pytest.mark.parametrize("how", [evict_without_members, evict_directly])
def test_more_agents_may_leave_than_a_process_has_sockets(
    rig: Rig, how: Callable[[Rig], Callable[[bytes], None]]
) -> None:
    """libzmq gives a socket back when the ROUTER's owner calls into it, and idle it does not."""
    evict = how(rig)
    for i in range(int(rig.context.get(zmq.MAX_SOCKETS)) + 100):
        evict(b"agent %d" % i)
    rig.socket.drain()
    (member,) = rig.join(b"member")
    seq = rig.link.next_seq()
    member.send(frame(FrameType.PARTIAL, 0, seq))
    assert rig.link.exchange(frame(FrameType.STEP), [Rank(0)], 10.0)


def test_a_member_that_left_is_cut_off(rig: Rig) -> None:
    (member,) = rig.join(b"member")
    seq = rig.link.next_seq()
    monitor = member.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    rig.socket.evict(b"member")
    with pytest.raises(AgentLostError, match="hot link is closed"):
        rig.link.exchange(frame(FrameType.STEP), [Rank(0)], 10.0)
    assert monitor.poll(10_000)
    # It dials again by itself, under the same route.
    member.send(frame(FrameType.PARTIAL, 0, seq))
    with pytest.raises(AgentLostError, match="hot link is closed"):
        rig.link.next_seq()


def test_hellos_are_taken_and_all_else_dropped_while_members_load(rig: Rig) -> None:
    member, stranger = rig.dial(b"member"), rig.dial(b"stranger")
    link = rig.expect(b"member")
    member.send(frame(FrameType.HELLO))
    for _ in range(30):
        stranger.send(bytes(100_000))
    deadline_s = time.monotonic() + 10
    while rig.socket.n_dropped < 30 or not link.joined:
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.005)
        link.take_hellos()
    link.join(time.monotonic())
    assert link.routes == [b"member"]


def answer(rig: Rig, link: HotLink, socket: zmq.Socket[bytes], *before: bytearray) -> None:
    """Exchange one frame on a link whose member sends other frames before it answers."""
    seq = rig.socket.next_seq()
    for other in before:
        socket.send(other)
    socket.send(frame(FrameType.PARTIAL, 0, seq, link.epoch))
    (reply,) = link.exchange(frame(FrameType.STEP), [Rank(0)], 10.0)
    assert (reply.header.epoch, reply.header.seq) == (link.epoch, seq)


def test_an_exchange_takes_the_hellos_of_the_plan_to_come(rig: Rig) -> None:
    (kept,) = rig.join(b"kept")
    coming = rig.expect(b"kept", b"new", epoch=NEXT)
    assert not coming.joined
    new = rig.dial(b"new")
    new.send(frame(FrameType.HELLO, 1, epoch=NEXT))
    hello = frame(FrameType.HELLO, 0, epoch=NEXT)
    answer(rig, rig.link, kept, hello)
    deadline_s = time.monotonic() + 10
    while not coming.joined:
        assert time.monotonic() < deadline_s
        answer(rig, rig.link, kept)
    assert coming.routes == [b"kept", b"new"]
    assert rig.socket.n_dropped == 0
    assert rig.link.routes == [b"kept"]


def test_links_of_two_epochs_serve_side_by_side_and_drop_each_others_frames(rig: Rig) -> None:
    (kept,) = rig.join(b"kept")
    coming = rig.expect(b"kept", epoch=NEXT)
    kept.send(frame(FrameType.HELLO, epoch=NEXT))
    coming.join(time.monotonic() + 10)
    for link, other in ((rig.link, NEXT), (coming, EPOCH), (rig.link, NEXT)):
        # A late reply of the other plan, even with a number that is awaited here, is no reply.
        late = frame(FrameType.PARTIAL, 0, rig.socket.last_seq + 1, other)
        answer(rig, link, kept, late, frame(FrameType.ERROR, 0, 7, other))
    assert rig.socket.n_dropped == 6


@pytest.mark.parametrize("how", ["exchange", "drain", "join"])
def test_a_hello_under_another_route_or_rank_or_epoch_joins_nothing(rig: Rig, how: str) -> None:
    talker, stranger = rig.join(b"talker", b"stranger")
    coming = rig.expect(b"talker", epoch=NEXT)
    stranger.send(frame(FrameType.HELLO, 0, epoch=NEXT))
    stranger.send(frame(FrameType.HELLO, 1, epoch=NEXT))
    stranger.send(frame(FrameType.HELLO, 0, epoch=Epoch(9)))
    while rig.socket.n_dropped < 3:
        if how == "exchange":
            seq = rig.socket.next_seq()
            for rank, socket in enumerate((talker, stranger)):
                socket.send(frame(FrameType.PARTIAL, rank, seq))
            rig.link.exchange(frame(FrameType.STEP), [Rank(0), Rank(1)], 10.0)
        elif how == "drain":
            rig.socket.drain()
        else:
            with pytest.raises(LateAgentsError, match="talker"):
                coming.join(time.monotonic())
    assert not coming.joined
    talker.send(frame(FrameType.HELLO, 0, epoch=NEXT))
    coming.join(time.monotonic() + 10)
    assert coming.routes == [b"talker"]


def test_a_link_that_ended_takes_nothing_and_keeps_nobody(rig: Rig) -> None:
    kept, _ = rig.join(b"kept", b"leaver")
    coming = rig.expect(b"kept", epoch=NEXT)
    kept.send(frame(FrameType.HELLO, epoch=NEXT))
    coming.join(time.monotonic() + 10)
    rig.link.end()
    rig.link.end()
    assert rig.link.ended
    assert not coming.ended
    # Whoever is in the other plan only is nobody's member: its link is not worth a socket.
    assert rig.socket._member_routes == {b"kept"}
    answer(rig, coming, kept, frame(FrameType.HELLO, 0), frame(FrameType.PARTIAL, 0, 1))
    assert rig.socket.n_late == 2
    rig.socket.evict(b"kept")
    rig.socket.next_seq()
    with pytest.raises(AgentLostError, match="hot link is closed"):
        coming.exchange(frame(FrameType.STEP, epoch=NEXT), [Rank(0)], 10.0)


def test_last_words_of_a_member_whose_link_was_ended_are_not_worth_a_line(rig: Rig) -> None:
    rig.join(b"stays", b"leaver")
    made_up = b"\0\1\2\3\4"  # libzmq renames a link whose route another one takes
    header = Header(FrameType.PARTIAL, Wire.F32, EPOCH, RUN, Seq(1), rank=Rank(1))
    assert not rig.link._sort_in(made_up, header, Seq(1), {})
    assert (rig.socket.n_dropped, rig.socket.n_late) == (1, 0)
    rig.socket.evict(b"leaver")
    assert not rig.link._sort_in(made_up, header, Seq(1), {})
    assert (rig.socket.n_dropped, rig.socket.n_late) == (1, 1)
    header = header._replace(rank=Rank(0))  # the other one's is still its own
    assert not rig.link._sort_in(made_up, header, Seq(1), {})
    assert (rig.socket.n_dropped, rig.socket.n_late) == (2, 1)


def test_a_plan_to_come_that_ends_leaves_the_one_in_force_alone(rig: Rig) -> None:
    (kept,) = rig.join(b"kept")
    coming = rig.expect(b"kept", b"new", epoch=NEXT)
    coming.end()
    answer(rig, rig.link, kept, frame(FrameType.HELLO, 0, epoch=NEXT))
    assert rig.socket.n_late == 1
    rig.socket.evict(b"kept")
    rig.socket.next_seq()
    with pytest.raises(AgentLostError, match="hot link is closed"):
        rig.link.exchange(frame(FrameType.STEP), [Rank(0)], 10.0)


def test_numbers_of_frames_are_of_all_epochs_and_never_come_twice(rig: Rig) -> None:
    rig.join(b"kept")
    coming = rig.expect(b"kept", epoch=NEXT)
    numbers = [rig.link.next_seq(), coming.next_seqs(3), rig.link.next_seqs(2), coming.next_seq()]
    assert numbers == [numbers[0] + n for n in (0, 1, 4, 6)]
