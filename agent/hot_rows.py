"""What a migration does with the pools that the hot loop owns: rows read, written, room made.

One piece of work at a time, at most 256 KiB, between two frames, in the order in which it came: a
step waits for one piece at most. An idle loop wakes up for work at once, and not only for frames;
while a migration is on, soon in the middle of a step, too.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import zmq

from agent.arrival import CopyLocal, Place, Room
from agent.bell import Bell
from agent.departure import Export
from agent.events import Event, LoadKey, PoolFailed, PoolJob, RowsMissing, RowsPlaced, RowsRead
from agent.ids import Epoch
from agent.kv_rows import copy_rows, export_rows, import_rows
from agent.member import Member
from agent.migration_messages import Group
from agent.mirror_pool import MirrorPool
from kernels.errors import HeadwiseError, WireError
from kernels.paging import PAGE_TOKENS

__all__ = ["WAKE_S", "HotRows"]

log = logging.getLogger(__name__)

# How long the loop receives before it takes itself for idle.
WAKE_S = 0.1
# How long it waits for the next frame of a step before it also listens for work.
STEP_S = 0.002
# How long an idle loop sleeps, unless a frame comes or somebody rings: waking up costs.
IDLE_S = 60.0
# Most tokens that a context grows by in one piece of work.
GROW_TOKENS = 64 * PAGE_TOKENS

HotSocket = zmq.Socket[bytes]


class HotRows:
    """The hot loop's queue of work on its pools.

    Args:
        pools: those of the hot loop's members and mirrors, by epoch.
        changed: is told that contexts have got other pages.
        tell: takes events for the control thread.

    Attributes:
        idle: whether the last wait for a frame was in vain; the hot loop says so.
    """

    def __init__(
        self,
        pools: Mapping[Epoch, Member | MirrorPool],
        changed: Callable[[], None],
        tell: Callable[[Event], None],
    ) -> None:
        self._pools = pools
        self._changed = changed
        self._tell = tell
        self._jobs: deque[PoolJob] = deque()
        self._copies: deque[PoolJob] = deque()
        self._expected = self._listens = False
        self.idle = False
        self._bell = Bell()

    # From any thread.

    def add(self, job: PoolJob) -> None:
        """Queue a piece of work; what goes over links comes first, others wait.

        More is expected, unless nobody waits for it.

        Copies on the board write other groups than pieces from elsewhere; one that is late by a
        cut or a release writes rows that are void, or finds none.
        """
        self._expected = self._expected or job.hurried
        (self._copies if isinstance(job.work, CopyLocal) else self._jobs).append(job)

    @property
    def expected(self) -> bool:
        """Whether there is work to come that somebody waits for."""
        return self._expected

    def expect_none(self) -> None:
        """Say that the migration is over."""
        self._expected = False

    def ring(self) -> None:
        """Wake the loop, if it listens."""
        self._bell.ring()

    # From the hot thread.

    @property
    def waiting(self) -> bool:
        """Whether there is work."""
        return bool(self._jobs or self._copies)

    def may_receive(self, socket: HotSocket) -> bool:
        """Tell whether the loop is to receive now; False = there was no frame, but look round.

        While a step runs receiving is how the loop waits.
        """
        if self._expected is not self._listens:
            self._listens = self._expected
            wait_s = STEP_S if self._listens else WAKE_S
            socket.setsockopt(zmq.RCVTIMEO, int(1000 * wait_s))
        if self.waiting:
            return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
        if not self.idle:
            return True
        return self._bell.wait(socket, IDLE_S)

    def do_next(self) -> None:
        """Do one piece of work, if there is one, and tell how it went."""
        if not self.waiting:
            return
        key, work, _ = (self._jobs or self._copies).popleft()
        try:
            done = self._do(key, work)
        except HeadwiseError as e:
            done = _failure(key, work, str(e))
        except Exception as e:
            log.exception("epoch=%d moving rows failed", key.epoch)
            done = _failure(key, work, f"internal error: {e!r}")
        if done is not None:
            self._tell(done)

    def close(self) -> None:
        """Forget all work and whom to tell: the loop's last act."""
        self._jobs.clear()
        self._copies.clear()
        # Otherwise the two would keep each other in memory.
        self._changed, self._tell = _nobody, _nobody

    def _do(self, key: LoadKey, work: Room | Place | CopyLocal | Export) -> Event | None:
        match work:
            case Export(number, epoch, kv_id, groups, first, n_tokens):
                pool = self._pool(epoch)
                local = _local(pool, epoch, groups)
                data = export_rows(pool.kv, kv_id, local, first, n_tokens)
                return RowsRead(key, number, data)
            case Room():
                self._make_room(key, work)
                return None
            case Place(number, kv_id, groups, first, n_tokens, rows):
                pool = self._pool(key.epoch)
                local = _local(pool, key.epoch, groups)
                import_rows(pool.kv, kv_id, local, first, n_tokens, rows)
                return RowsPlaced(key, number)
            case CopyLocal(number, epoch, kv_id, groups, first, n_tokens):
                source, target = self._pool(epoch), self._pool(key.epoch)
                from_groups = _local(source, epoch, groups)
                to_groups = _local(target, key.epoch, groups)
                copy_rows(source.kv, from_groups, target.kv, to_groups, kv_id, first, n_tokens)
                return RowsPlaced(key, number)

    def _make_room(self, key: LoadKey, room: Room) -> None:
        """Apply operations and let a context grow; far growth is taken up again next time."""
        pool = self._pool(key.epoch).kv
        self._changed()
        pool.apply(room.ops)
        if not room.n_tokens:
            return
        n_tokens = min(room.n_tokens, pool.n_tokens(room.kv_id) + GROW_TOKENS)
        pool.extend(room.kv_id, n_tokens)
        if n_tokens < room.n_tokens:
            self._jobs.appendleft(PoolJob(key, room._replace(ops=())))

    def _pool(self, epoch: int) -> Member | MirrorPool:
        pool = self._pools.get(Epoch(epoch))
        if pool is None:
            raise WireError(f"epoch {epoch} is not on this agent")
        return pool


def _nobody(*_: object) -> None:
    """Take what nobody wants to know."""


def _local(pool: Member | MirrorPool, epoch: int, groups: Sequence[Group]) -> list[int]:
    """Return the places in the pool of an epoch of some head groups."""
    try:
        return [pool.group_index[group.layer, group.group] for group in groups]
    except KeyError as e:
        layer, group = e.args[0]
        raise WireError(
            f"head group {group} of layer {layer} is not this agent's in epoch {epoch}"
        ) from e


def _failure(key: LoadKey, work: Room | Place | CopyLocal | Export, reason: str) -> Event:
    match work:
        case Export():
            return RowsRead(key, work.number, None)
        case CopyLocal():
            return RowsMissing(key, work.number, reason)
        case Room() | Place():
            return PoolFailed(key, reason)
