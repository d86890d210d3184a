"""The texts that are open, and which plan each of them is written by.

A text outlives plans. While heads migrate, each text changes over to the new plan at a boundary of
its own (`move`); when a board is lost, `recover` finds a plan without it, and whoever writes the
text fills it again from its token ids. One thread uses this, the one that owns the hot link.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.ids import KvId
from agent.kv_ops import KvOp, KvOpCode
from agent.vocab_payload import SamplerRow, TopRow
from coordinator.engine import Engine
from coordinator.rows import Rows, StepTimes
from kernels.errors import AgentLostError, PlanError, RemoteError

__all__ = ["Answer", "Follower", "Text", "Texts", "UnwantedError"]

Answer = list[list[TopRow]] | npt.NDArray[np.float32]

# Losses in a row without one new row in between; more boards than a cluster has.
MAX_LOSSES = 16
# So many rows of a step are enough to tell what a prompt takes.
MANY_ROWS = 8


class UnwantedError(RemoteError):
    """The text being written is to end: nobody waits for it, or the coordinator ends."""


class Follower(Protocol):
    """What follows the texts while it moves them; see `move`."""

    def engine_for_new(self) -> Engine:
        """Return what a text that opens now is written by."""

    def opened(self, kv_id: KvId, reserve_tokens: int) -> None:
        """A text is open, without rows."""

    def begins(self, kv_id: KvId) -> None:
        """A step of a text is about to begin; returns when it may."""

    def ended(self, kv_id: KvId, n_tokens: int, prefill: bool) -> None:
        """A step is over; the text has n_tokens rows on all members."""

    def closed(self, kv_id: KvId) -> None:
        """A text is released."""


class Text:
    """One open context and the engine that carries its rows; made by `Texts.new`.

    Attributes:
        kv_id: its number.
        n_tokens: rows that the members of its plan hold.
        engine: carries them; None before it is opened and once it is closed.
    """

    def __init__(self, texts: "Texts", kv_id: KvId) -> None:
        self._texts = texts
        self._reserve_tokens = 0
        self._n_losses = self._furthest = 0
        self.kv_id = kv_id
        self.n_tokens = 0
        self.engine: Engine | None = None

    @property
    def max_rows(self) -> int:
        """Most rows of one step."""
        return self.engine.max_rows if self.engine is not None else 1

    @property
    def reserve_tokens(self) -> int:
        """Tokens for which every member keeps pages."""
        return self._reserve_tokens

    def open(self, reserve_tokens: int) -> None:
        """Open the context on every member, with room for so many tokens.

        Raises:
            RemoteError: no plan is in force, or none could be found in place of a lost one.
        """
        self._reserve_tokens = reserve_tokens
        try:
            self._open()
        except AgentLostError as e:
            self.reopen(e)

    def step(
        self,
        x: npt.NDArray[np.float32],
        first: int,
        samplers: Sequence[SamplerRow],
        times: StepTimes | None = None,
        prefill: bool = False,
    ) -> Answer:
        """Carry rows at positions first .. first + len(x) - 1; as `Engine.step`.

        Args:
            x: embeddings, (n_rows, D) f32, unchanged.
            first: position of the first row; all before it have been carried.
            samplers: what the vocab holders need for each of the last rows.
            times: see `Engine.step`.
            prefill: nobody waits for the token after these rows.

        Raises:
            AgentLostError: a member is gone, and the rows with it: `reopen`.
            RemoteError: as `Engine.step`.
        """
        follower = self._texts.follower
        if follower is not None:
            follower.begins(self.kv_id)
        engine = self.engine
        if engine is None or engine.ended:
            raise AgentLostError("the plan that the text was written by is gone")
        rows = Rows([self.kv_id] * len(x), list(range(first, first + len(x))))
        began_s = time.perf_counter()
        answer = engine.step(x, rows, samplers, times)
        self._texts.note(len(x), time.perf_counter() - began_s)
        self.n_tokens = max(self.n_tokens, first + len(x))
        if self.n_tokens > self._furthest:
            # Rows that had been carried before are no progress: a board that dies of the same row
            # each time, and comes back, must not keep a text for ever.
            self._furthest, self._n_losses = self.n_tokens, 0
        follower = self._texts.follower
        if follower is not None:
            follower.ended(self.kv_id, self.n_tokens, prefill)
        return answer

    def reopen(self, why: RemoteError) -> None:
        """Open the context anew under a plan that is in force or found now.

        It has no rows then, or those that a mirror has kept: `n_tokens`.

        Raises:
            RemoteError: there is none, and why.
        """
        while True:
            self._n_losses += 1
            if self._n_losses > MAX_LOSSES:
                raise why
            failed = self.engine
            self._texts.replace_plan(failed, why)
            if self.engine is not None and self.engine is not failed and not self.engine.ended:
                return  # it was moved, with the rows that were left
            self.n_tokens = 0
            try:
                self._open()
            except AgentLostError as e:
                why = e
            else:
                return

    def close(self) -> None:
        """Free the context on every member; whoever is gone has freed it."""
        self._texts.forget(self.kv_id)
        engine, self.engine = self.engine, None
        if engine is None or engine.ended:
            return
        with contextlib.suppress(RemoteError):
            engine.control_kv([KvOp(KvOpCode.RELEASE, self.kv_id)])
        if self._texts.follower is not None:
            self._texts.follower.closed(self.kv_id)

    def _open(self) -> None:
        self.engine = engine = self._texts.engine_for_new()
        engine.control_kv([KvOp(KvOpCode.OPEN, self.kv_id, self._reserve_tokens)])
        self._texts.keep(self)
        if self._texts.follower is not None:
            self._texts.follower.opened(self.kv_id, self._reserve_tokens)


class Texts:
    """The open texts of one coordinator.

    Args:
        engine: returns what carries rows through the plan in force; PlanError if there is none.
        recover: called with what made a plan useless: puts another one into force, or raises
            what a text's reader is to be told.

    Attributes:
        follower: what moves texts to another plan just now; None = nothing does.
    """

    def __init__(
        self, engine: Callable[[], Engine], recover: Callable[[RemoteError], None]
    ) -> None:
        self._engine = engine
        self._recover = recover
        self._open: dict[KvId, Text] = {}
        self.follower: Follower | None = None
        # What a row took lately where many are computed at a time, and where it is alone.
        self._many_s = self._alone_s = 0.0

    @property
    def row_s(self) -> float:
        """What a row takes where many are computed at a time, as far as is known; 0 = it is not."""
        return self._many_s or self._alone_s

    def note(self, n_rows: int, seconds: float) -> None:
        """Take note of what a step took."""
        if n_rows >= MANY_ROWS:
            self._many_s = seconds / n_rows
        elif n_rows == 1:
            self._alone_s = seconds

    def new(self, kv_id: KvId) -> Text:
        """Return a text that is not open yet."""
        return Text(self, kv_id)

    def here(self) -> list[Text]:
        """Return the open texts."""
        return list(self._open.values())

    def get(self, kv_id: KvId) -> Text | None:
        """Return an open text."""
        return self._open.get(kv_id)

    def engine_for_new(self) -> Engine:
        """Return what a text that opens now is written by; PlanError if no plan is in force."""
        follower = self.follower
        return self._engine() if follower is None else follower.engine_for_new()

    def replace_plan(self, failed: Engine | None, why: RemoteError) -> None:
        """See to it that a plan is in force that does not use the engine that failed."""
        if failed is None or failed.ended:
            with contextlib.suppress(PlanError):
                if not self.engine_for_new().ended:
                    return  # another text has met with the same loss before
        # What has failed just now ends a migration as well, wherever that was to lead.
        self._recover(why)

    def keep(self, text: Text) -> None:
        """Note that a text is open."""
        self._open[text.kv_id] = text

    def forget(self, kv_id: KvId) -> None:
        """Note that a text is closed."""
        self._open.pop(kv_id, None)
