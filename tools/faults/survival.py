"""One stream, one lost board: the gap that the reader sees, and whether the text is the same."""

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from coordinator.admin_messages import Finished, Generate, Piece
from kernels.errors import HeadwiseError, RemoteError
from tools.faults.asking import Line
from tools.faults.board import Board
from tools.faults.schedule import Kind
from tools.faults.site import Site

__all__ = ["Survival", "limit_s", "longest_gap", "measure"]

WAIT_S = 120.0
# A stream that has not ended by then is given up.
READ_S = 600.0
# The limits of issue 5: until a silent board is noticed, for everything but prefill and pulling,
# and the part of the goodput that pulling shall reach.
NOTICE_S, RESUME_S, PULL_SHARE = 1.5, 1.0, 0.8


class Survival(NamedTuple):
    """What one loss did to a stream.

    Attributes:
        how: kill, freeze or cut.
        gap_s: the longest time between two tokens from the loss on; None if the stream failed.
        token_s: the median time between tokens before the loss.
        later_token_s: the median after the gap; None with fewer than two tokens.
        prefill_s: to the first token of the same context, read anew by the boards left; None if
            they could not.
        lost_bytes: weights that the lost board held; lost_head_groups likewise, over all layers.
        pulled_bytes: weights that the boards left had to pull for the plan without it.
        limit_s: what the gap may be, see `limit_s`; None if it has none.
        n_tokens: that came in all.
        equal: whether they are all those of the undisturbed run.
        reason: why the stream ended early, "" = it did not.
    """

    how: str
    gap_s: float | None
    token_s: float
    later_token_s: float | None
    prefill_s: float | None
    lost_bytes: int
    lost_head_groups: int
    pulled_bytes: int
    limit_s: float | None
    n_tokens: int
    equal: bool
    reason: str


class _Read(NamedTuple):
    """Tokens, the monotonic time of each, and why there are no more."""

    ids: list[int]
    times_s: list[float]
    reason: str


def measure(
    site: Site,
    how: Kind,
    name: str,
    prompt: list[int],
    wanted: list[int],
    at_token: int,
    goodput_bytes_per_s: float | None = None,
) -> Survival:
    """Lose a board at a token, read on to the end, and bring the board back.

    Args:
        site: ready, with nothing being written.
        how: kill, freeze or cut.
        name: the board to lose.
        prompt: token ids.
        wanted: all tokens of the text, from an undisturbed run.
        at_token: how many of them are there when the board is lost.
        goodput_bytes_per_s: of the coordinator's cable; None if it is not known.

    Raises:
        RemoteError: the cluster does not become ready again.
    """
    board = site.boards[name]
    (held,) = (agent for agent in site.status().agents if agent.name == name)
    pulled_bytes = site.pulled_bytes()
    ask = Generate(prompt_ids=prompt, max_tokens=len(wanted), wait_s=WAIT_S)
    read = _read(site, ask, at_token, lambda: _act(board, how))
    pulled_bytes = site.pulled_bytes() - pulled_bytes
    prefill_s = None
    try:
        prefill_s = _prefill_s(site, prompt + wanted[:at_token])
    except RemoteError as e:
        read = read._replace(reason=read.reason or f"the boards left do not serve: {e}")
    _undo(board, how)
    site.await_ready(*site.boards)
    gap_s, at = longest_gap(read.times_s, at_token)
    return Survival(
        how.value,
        None if read.reason else gap_s,
        _median_s(read.times_s[:at_token]) or 0.0,
        _median_s(read.times_s[at:]),
        prefill_s,
        held.weights_bytes,
        held.n_head_groups,
        pulled_bytes,
        limit_s(how, prefill_s, pulled_bytes, goodput_bytes_per_s),
        len(read.ids),
        read.ids == wanted,
        read.reason,
    )


def limit_s(
    how: Kind, prefill_s: float | None, pulled_bytes: int, goodput_bytes_per_s: float | None
) -> float | None:
    """Return how long a stream without a mirror may pause.

    Args:
        how: a board that is killed is noticed at once.
        prefill_s: of the context so far; None = nobody could read it.
        pulled_bytes: weights that had to be pulled.
        goodput_bytes_per_s: what TCP gets of the cable that all of them come over.
    """
    if prefill_s is None or (pulled_bytes and goodput_bytes_per_s is None):
        return None
    limit_s = RESUME_S + prefill_s + (0.0 if how is Kind.KILL else NOTICE_S)
    if pulled_bytes and goodput_bytes_per_s:
        limit_s += pulled_bytes / (PULL_SHARE * goodput_bytes_per_s)
    return limit_s


def longest_gap(times_s: Sequence[float], at_token: int) -> tuple[float | None, int]:
    """Return the longest time between two tokens from one on, and the token that ended it.

    Args:
        times_s: of all tokens.
        at_token: the number of tokens before which no gap counts; at least 1.
    """
    gaps = [(times_s[i] - times_s[i - 1], i) for i in range(at_token, len(times_s))]
    return max(gaps, key=lambda gap: gap[0], default=(None, len(times_s)))


def _read(site: Site, ask: Generate, at_token: int, act: Callable[[], None]) -> _Read:
    """Read a text; act as soon as so many tokens have come, without a pause in reading."""
    ids: list[int] = []
    times_s: list[float] = []
    reason = "the stream ended without a word"
    line = Line(site.path)
    acting = threading.Thread(target=act)
    watchdog = threading.Timer(READ_S, line.shut)
    watchdog.start()
    try:
        for reply in line.ask(ask):
            if isinstance(reply, Piece) and reply.id is not None:
                ids.append(reply.id)
                times_s.append(time.monotonic())
                if len(ids) == at_token:
                    acting.start()
            if isinstance(reply, Finished):
                reason = ""
    except HeadwiseError as e:
        reason = str(e)
    finally:
        watchdog.cancel()
        if acting.ident is not None:
            acting.join()
        line.close()
    return _Read(ids, times_s, reason)


def _prefill_s(site: Site, ids: list[int]) -> float:
    """Return the time to the first token after a prompt; the second time, when a plan is there."""
    ask = Generate(prompt_ids=ids, max_tokens=1, wait_s=WAIT_S)
    for _ in range(2):
        began_s = time.monotonic()
        ((_, came_s),) = site.text(ask)
    return came_s - began_s


def _median_s(times_s: list[float]) -> float | None:
    gaps = [later - earlier for earlier, later in itertools.pairwise(times_s)]
    return statistics.median(gaps) if gaps else None


def _act(board: Board, how: Kind) -> None:
    match how:
        case Kind.KILL:
            board.kill()
        case Kind.FREEZE:
            board.freeze()
        case Kind.CUT:
            board.cut()


def _undo(board: Board, how: Kind) -> None:
    match how:
        case Kind.KILL:
            board.start()
        case Kind.FREEZE:
            board.thaw()
        case Kind.CUT:
            board.mend()
