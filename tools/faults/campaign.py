"""One run: streams that are read without pause, and one fault after the other on their boards."""

import itertools
import sys
import time
from pathlib import Path
from typing import NamedTuple

from coordinator.status import Status
from kernels.errors import RemoteError
from tools.faults.process import wait_until
from tools.faults.prompts import Prompt, draw_prompts, read_undisturbed
from tools.faults.schedule import Aim, Fault, Kind, make_schedule
from tools.faults.site import Site, is_moving
from tools.faults.streams import Live, Phase, Streams
from tools.faults.strikes import Strikes
from tools.faults.survivors import Survivors
from tools.faults.verdict import Holding, Stream, Strike, Verdict, grown, judge, summary

__all__ = ["Campaign", "Options"]

# Boards that nothing is wrong with, which a fault leaves at least; one less of three.
MIN_HEALTHY = 2
# How long a fault waits for what it is aimed at; then it strikes whatever runs, then anyway.
AIM_S = {Aim.DECODE: 10.0, Aim.PREFILL: 20.0, Aim.MOVE: 4.0}
ANY_S = 30.0
# Of the context: shorter prompts are read before a fault can strike.
LONG_SHARE = 0.25
ROOM_S = 120.0
RECOVER_S = 150.0
# How often a fault takes aim again because the stream ended while it did.
MAX_AIMS = 5
PROVOKE_S = 4.0
REST_S = 60.0
N_RESTS = 20  # looks at what is held before the first fault: a client's thread ends late
LOOK_S = 0.05


class Options(NamedTuple):
    """What a run is like; see the options of `tools/soak.py`."""

    n_faults: int
    seed: int
    n_agents: int
    n_readers: int
    context_tokens: int
    max_tokens: int
    deadline_s: float
    verbose: bool


class Campaign:
    """Disturbs a site and judges what becomes of it.

    Args:
        site: with no boards yet; closed by its owner.
        model: its model.
        options: of the run.
    """

    def __init__(self, site: Site, model: Path, options: Options) -> None:
        self._site, self._model, self._options = site, model, options
        self._base = [f"board-{i + 1}" for i in range(options.n_agents)]
        self._guest_numbers = itertools.count(1)
        self._strikes = Strikes(site, self._tell)
        self._survivors = Survivors(model, options.context_tokens)
        self._began_s = time.monotonic()
        self._done: list[Strike] = []
        self._problems: list[str] = []
        self._leaks: list[str] = []

    def run(self) -> dict[str, object]:
        """Run to the end and return the report; the processes are still there.

        Raises:
            HeadwiseError: it could not even begin, or the coordinator has ended.
        """
        options = self._options
        self._site.await_listening()
        self._site.add(*self._base)
        self._site.await_ready(*self._base)
        drawn = draw_prompts(self._model, options.context_tokens, options.seed)
        prompts = read_undisturbed(self._site, drawn, options.context_tokens, options.max_tokens)
        before = self._resting()
        lengths = [(len(prompt.ids), len(prompt.wanted)) for prompt in prompts]
        self._tell(f"undisturbed texts, tokens of prompt and text: {lengths}")
        streams = Streams(
            self._site.path, prompts, options.n_readers, options.seed, options.deadline_s
        )
        try:
            for fault in make_schedule(options.n_faults, options.seed):
                self._carry_out(fault, streams)
            self._recover(streams)
            streams.stop()
            streams.ended += self._read_again(prompts, len(streams.ended))
            self._come_to_rest(before)
        except RemoteError as e:
            # The counts so far are worth reading all the same.
            self._problems.append(str(e))
        finally:
            streams.cut_off()
        return self._report(streams.ended)

    def leaked(self, pids: list[int]) -> list[str]:
        """Return all that leaked, with processes that outlived the site's end."""
        return self._leaks + [f"process {pid} outlived its site" for pid in pids]

    def _carry_out(self, fault: Fault, streams: Streams) -> None:
        """Wait for the moment, strike, and note what was struck."""
        targets = self._wait_for_room(fault, streams)
        at = min(int(fault.pick * len(targets)), len(targets) - 1)
        other = targets[at - 1]  # the same one if there is no other
        name = targets[at] if fault.kind is not Kind.JOIN else f"guest-{next(self._guest_numbers)}"
        for _ in range(MAX_AIMS):
            self._take_aim(fault, name, other, streams)
            # Asking takes a while, in which a prompt would have been read.
            in_move = fault.aim is not Aim.PREFILL and is_moving(self._site.status())
            # What runs now is what is struck; it may have ended since it was aimed at.
            if running := streams.running():
                break
        reading = [live for live in running if live.phase is Phase.PREFILL]
        self._strikes.strike(fault, name)
        # Pulling a cable takes a moment: the prompt must still be read after it.
        in_prefill = any(not live.tokens for live in reading)
        sufficed = self._look(streams)[1]
        numbers = tuple(live.number for live in running)
        self._done.append(Strike(fault, name, numbers, in_prefill, in_move, sufficed))
        doing = ", ".join(
            f"{live.number} in {live.phase.name} at {len(live.tokens)}" for live in running
        )
        self._tell(
            f"{fault.number} {fault.kind} {name} for {fault.hold_s:.1f} s, aim {fault.aim}; "
            f"streams: {doing or 'none'}{'; a move is in flight' if in_move else ''}"
        )

    def _wait_for_room(self, fault: Fault, streams: Streams) -> list[str]:
        """Wait until the fault leaves enough boards; return those that it may strike."""
        n_struck = int(fault.kind is not Kind.JOIN) + int(fault.aim is Aim.MOVE)
        not_before_s = time.monotonic() + fault.pause_s
        deadline_s = not_before_s + ROOM_S
        while True:
            targets = self._targets(self._tend(streams))
            n_left = min(MIN_HEALTHY, self._options.n_agents - 2)
            has_room = len(self._strikes.healthy) >= n_left + n_struck
            has_room = has_room and targets != [] and self._strikes.may(fault.kind)
            now_s = time.monotonic()
            if now_s >= not_before_s and has_room:
                return targets
            if now_s > deadline_s:
                raise RemoteError(
                    f"fault {fault.number} ({fault.kind}) found no board to strike in {ROOM_S:g} "
                    f"s: {self._site.told()}"
                )
            time.sleep(LOOK_S)

    def _look(self, streams: Streams) -> tuple[Status, bool]:
        """Return the status, and whether the boards left suffice; the streams are told."""
        status = self._site.status()
        suffice = self._survivors.suffice(status.agents, self._strikes.holding)
        streams.note(suffice)
        return status, suffice

    def _targets(self, status: Status) -> list[str]:
        """Return the healthy boards that work, by name."""
        ready = {a.name for a in status.agents if a.state == "ready"}
        return [name for name in self._strikes.healthy if name in ready]

    def _take_aim(self, fault: Fault, name: str, other: str, streams: Streams) -> None:
        """Wait until a stream does what the fault is aimed at; any will do after a while.

        Moves in flight are provoked by draining the other board, once a stream runs.
        """
        provoked = False

        def fits(live: Live) -> bool:
            if fault.aim is Aim.PREFILL:
                long_enough = len(live.prompt.ids) >= LONG_SHARE * self._options.context_tokens
                return live.phase is Phase.PREFILL and long_enough
            # Not at its last tokens: it would be over before the fault is felt.
            enough = min(fault.after_tokens, len(live.prompt.wanted) // 2)
            return live.phase is Phase.DECODE and live.n_left > 4 and len(live.tokens) >= enough

        began_s = time.monotonic()
        while (waited_s := time.monotonic() - began_s) < AIM_S[fault.aim] + ANY_S:
            status = self._tend(streams)
            if fault.aim is Aim.MOVE and provoked and waited_s < AIM_S[Aim.MOVE]:
                if streams.running() and is_moving(status):
                    return
                time.sleep(LOOK_S / 5)
                continue
            if streams.await_any(_runs if waited_s > AIM_S[fault.aim] else fits, LOOK_S):
                healthy = set(self._strikes.healthy) - {name}
                if fault.aim is not Aim.MOVE or provoked or other not in healthy:
                    return
                provoked = True
                self._strikes.provoke(other, PROVOKE_S + fault.hold_s)
                began_s = time.monotonic()

    def _tend(self, streams: Streams) -> Status:
        """Do what is due, and return how the cluster is."""
        self._strikes.require_running()
        self._strikes.heal_due()
        streams.give_up_late()
        return self._look(streams)[0]

    def _recover(self, streams: Streams) -> None:
        """Wait until every fault is over and all boards work again."""

        def whole() -> bool:
            here = {a.name for a in self._tend(streams).agents if a.state == "ready"}
            return here >= set(self._base) and self._strikes.quiet

        if not wait_until(whole, RECOVER_S):
            self._problems.append(f"not all boards came back in {RECOVER_S:g} s")
            self._problems.append(self._site.told())

    def _read_again(self, prompts: list[Prompt], n_before: int) -> list[Stream]:
        """Read every prompt once more, undisturbed, when all is good again."""
        found = []
        for number, prompt in enumerate(prompts, n_before + 1):
            streams = Streams(self._site.path, [prompt], 1, 0, self._options.deadline_s)
            streams.stop()
            found.append(streams.ended[0]._replace(number=number))
        return found

    def _resting(self) -> dict[str, Holding]:
        """Return the least that each process holds during a moment of rest."""
        least = self._site.holdings()
        for _ in range(N_RESTS):
            time.sleep(LOOK_S)
            least = {name: least[name].least(now) for name, now in self._site.holdings().items()}
        return least

    def _come_to_rest(self, before: dict[str, Holding]) -> None:
        """Compare what processes hold, as soon as they hold no more than before, or after all."""
        after: list[list[str]] = [[]]

        def at_rest() -> bool:
            after[0] = grown(before, self._site.holdings())
            return not after[0]

        wait_until(at_rest, REST_S)
        self._leaks = after[0]
        held = self._site.holdings()
        for name in sorted(before):
            self._tell(f"held by {name}: {before[name]} before, {held.get(name)} after")

    def _report(self, ended: list[Stream]) -> dict[str, object]:
        reasons: dict[str, int] = {}
        for stream in ended:
            verdict = judge(stream)
            if verdict is not Verdict.FINISHED:
                n = len(stream.tokens)
                text = f"{verdict.value}: {stream.reason[:120]}"
                reasons[text] = reasons.get(text, 0) + 1
                self._tell(
                    f"stream {stream.number} {verdict.value} after {n} of {len(stream.wanted)} "
                    f"tokens: {stream.ending} {stream.reason}"
                )
        report = summary(self._done, ended, self._leaks)
        report["reasons"] = reasons
        report["mishaps"] = self._strikes.mishaps
        report["problems"] = self._problems
        report["took_s"] = round(time.monotonic() - self._began_s, 1)
        return report

    def _tell(self, text: str) -> None:
        if self._options.verbose:
            print(f"{time.monotonic() - self._began_s:8.2f} {text}", file=sys.stderr, flush=True)


def _runs(live: Live) -> bool:
    return live.phase is not Phase.IN_LINE
