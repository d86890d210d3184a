"""When a target has to be told what to have of a text, and what it is told. Pure."""

from dataclasses import dataclass

import msgspec

from agent.ids import Epoch, RunId
from agent.migration_messages import Want
from coordinator.migration_text import Copy, Text

__all__ = ["News", "Pace", "is_due", "want_of"]


@dataclass(frozen=True)
class Pace:
    """Deadlines and bounds.

    Attributes:
        prepare_s: until every target has nearly all of every text.
        stall_s: without news of any target while rows are missing.
        hold_s: how long a text may wait for its last rows; then it goes on in the old epoch.
        retry_s: until it is held again.
        end_s: until every agent has freed what lost.
        resend_s: until an order without an answer is sent again.
        pause_tokens: most rows that a text may lack anywhere when it is held.
        prefill_pause_tokens: the same while its prompt is read.
        chase_tokens: a target that has all is told of newer rows once there are so many.
        look_s: longest time between two looks that counts for `stall_s`.
    """

    prepare_s: float = 600.0
    stall_s: float = 45.0
    hold_s: float = 1.0
    retry_s: float = 1.0
    end_s: float = 10.0
    resend_s: float = 1.0
    pause_tokens: int = 8
    prefill_pause_tokens: int = 1024
    chase_tokens: int = 4
    look_s: float = float("inf")


class News:
    """When targets told something new last, in time in which somebody listened.

    Args:
        now_s: monotonic time.
        look_s: as in `Pace`: what was said in a longer pause has waited to be read.
    """

    def __init__(self, now_s: float, look_s: float) -> None:
        self._look_s = look_s
        self._last_s = self._looked_s = now_s

    def note(self, now_s: float) -> None:
        """Note that there is some, or that none is waited for."""
        self._last_s = now_s

    def silent_s(self, now_s: float) -> float:
        """Return for how long there has been none; called with every look."""
        unheard_s = max(0.0, now_s - self._looked_s - self._look_s)
        self._looked_s = now_s
        self._last_s = min(now_s, self._last_s + unheard_s)
        return now_s - self._last_s


def is_due(text: Text, copy: Copy, pace: Pace, now_s: float) -> bool:
    """Tell whether a target has to be told, or told again."""
    answered = copy.version == text.version
    held = text.held_s is not None
    if answered and copy.have >= text.n_tokens:
        return False
    if copy.asked_version != text.version or held > copy.urgent:
        return True
    if now_s - copy.sent_s >= pace.resend_s:
        return True
    newer = text.n_tokens - copy.asked
    if held:
        return newer > 0
    return answered and copy.have >= copy.asked and newer >= pace.chase_tokens


def want_of(text: Text, copy: Copy, run_id: RunId, epoch: Epoch, parent: Text | None) -> Want:
    """Return the order for one target; `parent` is the text whose rows it may share there."""
    want = Want(
        run_id, epoch, text.kv_id, text.version, text.n_tokens, copy.floor, text.reserve_tokens,
        copy.urgent, text.gone,
    )  # fmt: skip
    if parent is None or parent.version != text.fork_version or text.version:
        return want
    shared = min(text.fork_tokens, text.n_tokens)
    return msgspec.structs.replace(
        want, fork_of=parent.kv_id, fork_version=parent.version, fork_tokens=shared
    )
