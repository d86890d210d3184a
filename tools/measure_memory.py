"""What becomes of a text whose board runs out of memory under a real cgroup limit. Needs root.

`python tools/measure_memory.py --shape ../shared/models/configs/smollm2_135m.json` makes a random
q8 model of that shape and two boards that share it. One of them is in a cgroup whose limit leaves
enough at first; then something else on the board takes more and more, until what the plan at hand
needs does not fit any more. Heads must leave it, and the text end on its last token. Then two
boards without any limit write the same text by the plan that was in force in the end. The last
line is one JSON object; ends with 1 if a limit of the measurement was not kept.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agent.emulation import parse_rate
from agent.shell import parse_size_bytes, run_verb
from coordinator.admin_messages import Generate
from coordinator.plan import Plan
from coordinator.status import AgentStatus
from kernels.errors import HeadwiseError, InputError, RemoteError
from tools.faults.ballast import Ballast
from tools.faults.cgroups import GroupedCables, MemoryGroup
from tools.faults.here import cluster_here
from tools.faults.process import wait_until
from tools.faults.scratch import add_model_arguments, scratch
from tools.faults.site import Site
from weights.directory import ModelDirectory

__all__ = ["add_arguments", "run"]

MIB = 1 << 20
WAIT_S = 120.0
LOOK_S = 0.2
# A heartbeat that was sent under a new plan has come by then.
BEAT_S = 1.0
# Heartbeats tell of what the ballast has taken.
TOLD_S = 10.0
TIGHT, ROOMY = "tight", "roomy"
# The limits of issue 5.
TIME_RATIO, FAULT_SHARE, FORECAST_SHARE = 1.3, 0.01, 0.05
# Tokens after the last change of plan that are not counted.
SETTLE_TOKENS = 4


class _Seen(NamedTuple):
    """A plan in force.

    Attributes:
        n_tokens: of the text when it came into force.
        at_s: monotonic, when that was.
        forecast_bytes: what the tight board said soon afterwards that will be used in the end,
            weights and ballast included.
    """

    n_tokens: int
    epoch: int
    at_s: float
    forecast_bytes: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the measurement."""
    add = parser.add_argument
    add_model_arguments(parser)
    add("--limit", type=parse_size_bytes, default=384 * MIB, metavar="SIZE", help="(384M)")
    add("--bytes-per-s", type=parse_rate, default=1e9, help="rate of the boards (1e9)")
    add("--at", type=int, default=50, metavar="TOKEN", help="when memory gets scarce (50)")
    add("-n", "--tokens", type=int, default=1200, help="of the text (1200)")
    add("-c", "--ctx", type=int, default=2048, help="longest context (2048)")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 1 if a limit was not kept.

    Raises:
        HeadwiseError: it could not begin, or a text was not written.
    """
    if not 1 <= args.at < args.tokens < args.ctx:
        raise InputError(f"--at {args.at} --tokens {args.tokens} --ctx {args.ctx} must rise")
    with scratch(args) as (root, model):
        report = _measure(args, model, root)
    print(json.dumps(report))
    return int(not report["ok"])


def _measure(args: argparse.Namespace, model: Path, root: Path) -> dict[str, object]:
    with ModelDirectory.open(model) as directory:
        vocab_size = directory.config.vocab_size
    rng = random.Random(1)
    prompt = [rng.randrange(vocab_size) for _ in range(8)]
    ask = Generate(prompt_ids=prompt, max_tokens=args.tokens, wait_s=WAIT_S)
    _forget_pages(model)
    with _limited(args, model, root) as (site, group):
        forecast = _forecast_bytes(site, args)
        wanted = [id for id, _ in site.text(ask)]
        (first,) = (agent for agent in site.status().agents if agent.name == TIGHT)
        used_bytes = group.anonymous_bytes + first.weights_bytes
        text = _Squeezed(site, group, ask, args)
        n_oom_kills = group.n_oom_kills
        plan = site.plan()
    free_s = _same_plan(args, model, root / "free", plan, prompt)
    from_token = text.seen[-1].n_tokens + SETTLE_TOKENS
    token_s, free_token_s = (_median_s(times[from_token:]) for times in (text.times_s, free_s))
    errors = [abs(forecast - used_bytes) / used_bytes]
    if text.seen[-1].forecast_bytes is not None:
        errors.append(abs(text.seen[-1].forecast_bytes - text.used_bytes) / text.used_bytes)
    error = max(errors)
    ratio = token_s / free_token_s if token_s and free_token_s else None
    n_faults = text.after.major_faults - text.before.major_faults
    report = {
        "limit_bytes": args.limit,
        "ballast_bytes": text.ballast_bytes,
        "n_tokens": len(text.ids),
        "equal": text.ids == wanted,
        "n_different_tokens": len(set(wanted)),
        "n_plans": len(text.seen),
        "held_before_bytes": text.before.weights_bytes + text.before.kv_bytes,
        "held_after_bytes": text.after.weights_bytes + text.after.kv_bytes,
        "left_before_bytes": text.before.memory_forecast_bytes,
        "left_after_bytes": text.after.memory_forecast_bytes,
        "oom_kills": n_oom_kills,
        "major_faults": n_faults,
        "last_plan_from_token": from_token,
        "token_s": token_s,
        "unlimited_token_s": free_token_s,
        "token_ratio": ratio,
        "forecast_bytes": [forecast, text.seen[-1].forecast_bytes],
        "used_bytes": [used_bytes, text.used_bytes],
        "forecast_errors": errors,
    }
    report["ok"] = bool(
        report["equal"] and len(wanted) == args.tokens and not n_oom_kills and len(text.seen) > 1
        and n_faults <= FAULT_SHARE * len(text.ids) and ratio is not None and ratio <= TIME_RATIO
        and error <= FORECAST_SHARE
    )  # fmt: skip
    return report


@contextlib.contextmanager
def _limited(
    args: argparse.Namespace, model: Path, root: Path
) -> Iterator[tuple[Site, MemoryGroup]]:
    """Two boards that are ready, the tight one in a cgroup."""
    with contextlib.ExitStack() as stack:
        group = MemoryGroup(args.limit)
        stack.callback(group.close)
        # By memory alone: what boards seem to be able to do shall not move heads besides.
        place = ("--min-agents", "2", "--place", "spread")
        serve = ("--exact", "-c", str(args.ctx), *place, "-v")
        boards: tuple[str | Path, ...] = ("--model-dir", model, "-v")
        cables, mark = GroupedCables({TIGHT: group}), secrets.token_hex(8)
        site = Site(model, cables, serve, boards, args.bytes_per_s, root, mark)
        stack.callback(site.close)
        site.await_listening()
        site.add(TIGHT, ROOMY)
        site.await_ready(TIGHT, ROOMY)
        yield site, group


def _same_plan(
    args: argparse.Namespace, model: Path, root: Path, plan: Plan, prompt: list[int]
) -> list[float]:
    """Return when each token came of the same text, by one plan and without a limit."""
    root.mkdir()
    rates = dict.fromkeys((TIGHT, ROOMY), args.bytes_per_s)
    with cluster_here(
        rates, model, root, plan=plan, exact=True, context_tokens=args.ctx
    ) as cluster:
        generation = cluster.generate(prompt_ids=prompt, max_tokens=args.tokens)
        return [time.monotonic() for _ in generation]


def _forget_pages(model: Path) -> None:
    """Take a model out of the page cache: who reads it first pays for it in its cgroup."""
    for path in model.iterdir():
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _forecast_bytes(site: Site, args: argparse.Namespace) -> int:
    """Return what the tight board says before a text that will be used in its end."""
    (board,) = (agent for agent in site.status().agents if agent.name == TIGHT)
    if board.memory_forecast_bytes is None:
        raise RemoteError(f"board {TIGHT!r} does not say how much memory it will have left")
    return int(args.limit) - board.memory_forecast_bytes


class _Squeezed:
    """A text during which a board's memory is taken by something else.

    Attributes:
        ids: tokens.
        times_s: monotonic, of each.
        seen: plans in force while it was written, the first one first.
        before: the tight board when it began.
        after: when it had ended.
        ballast_bytes: what was taken.
        used_bytes: of the group in the end, the board's weights included.
    """

    def __init__(
        self, site: Site, group: MemoryGroup, ask: Generate, args: argparse.Namespace
    ) -> None:
        self._site, self._limit_bytes = site, args.limit
        self._n_tokens = 0
        self.seen: list[_Seen] = []
        self._over = threading.Event()
        # Whether heartbeats have told of all that the ballast takes.
        self._is_told = False
        self._ballast = Ballast(group)
        self.before = self._look()
        self._error: HeadwiseError | None = None
        taker = threading.Thread(target=self._take)

        def take_in_time(n_tokens: int) -> None:
            self._n_tokens = n_tokens
            if n_tokens == args.at:
                taker.start()

        try:
            tokens = site.text(ask, take_in_time)
            self.after = self._look()
            self.ballast_bytes = self._ballast.n_bytes
            self.used_bytes = group.anonymous_bytes + self.after.weights_bytes
        finally:
            self._over.set()
            if taker.ident is not None:
                taker.join()
            self._ballast.close()
        if self._error is not None:
            raise self._error
        self.ids = [id for id, _ in tokens]
        self.times_s = [at_s for _, at_s in tokens]

    def _take(self) -> None:
        """Take more than would be left if nothing changed, little by little."""
        left_bytes = step_bytes = self._left_bytes()
        try:
            while self._ballast.n_bytes < left_bytes + 16 * MIB and not self._over.is_set():
                now_bytes = self._left_bytes()
                step_bytes = min(step_bytes, max(4 * MIB, (now_bytes - 80 * MIB) // 3))
                self._ballast.grow(step_bytes)
                # Nothing is taken faster than heartbeats tell of it.
                wait_until(lambda b=now_bytes: self._left_bytes() != b, TOLD_S)  # type: ignore[misc]
            self._is_told = True
            while not self._over.wait(LOOK_S):
                self._look()
        except HeadwiseError as e:
            self._error = e

    def _left_bytes(self) -> int:
        return self._look().memory_forecast_bytes or 0

    def _look(self) -> AgentStatus:
        """Return how the tight board is, and note plans that have come into force."""
        status = self._site.status()
        (board,) = (agent for agent in status.agents if agent.name == TIGHT)
        now_s, left_bytes = time.monotonic(), board.memory_forecast_bytes
        if not self.seen or status.epoch not in (0, self.seen[-1].epoch):
            self.seen.append(_Seen(self._n_tokens, status.epoch, now_s))
        last = self.seen[-1]
        is_due = last.forecast_bytes is None and now_s > last.at_s + BEAT_S and status.move is None
        if is_due and self._is_told and left_bytes is not None:
            self.seen[-1] = last._replace(forecast_bytes=self._limit_bytes - left_bytes)
        return board


def _median_s(times_s: list[float]) -> float | None:
    gaps = [later - earlier for earlier, later in itertools.pairwise(times_s)]
    return statistics.median(gaps) if gaps else None


if __name__ == "__main__":
    sys.exit(run_verb("measure_memory", "A board runs out of memory.", (add_arguments, run)))
