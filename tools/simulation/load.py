"""One run of a cluster under changing load, by policy. Pure, a discrete-event simulation.

Nothing happens between changes of the boards, samples and ends of copies.
"""

from collections.abc import Callable

from agent.ids import ModelId
from coordinator.plan import Plan
from coordinator.planner.place import make_plan
from coordinator.planner.replan import Conditions, replan
from kernels.errors import ResourceError
from tools.simulation.load_following import PREFILL_ROWS, Following
from tools.simulation.load_meter import Meter, Outcome
from tools.simulation.load_setting import BoardState, LoadSetting, samples, trace

__all__ = ["POLICIES", "LoadSetting", "Outcome", "simulate", "trace"]

MODEL = ModelId("simulated")
JUMP_EVERY_S = 5.0
POLICIES = ("static", "jump", "resident", "moved", "oracle")


def simulate(setting: LoadSetting, seed: int, policy: str) -> Outcome:
    """Run one policy on the trace of one seed; see POLICIES."""
    first = _best_plan(setting, setting.calm)
    assert first is not None
    runs: dict[str, Callable[[], Outcome]] = {
        "static": lambda: _static(setting, seed, first),
        "oracle": lambda: _oracle(setting, seed),
        "jump": lambda: _jumping(setting, seed, first),
        "resident": lambda: Following(setting, seed, first, resident=True).run(),
        "moved": lambda: Following(setting, seed, first, resident=False).run(),
    }
    return runs[policy]()


def _best_plan(setting: LoadSetting, state: BoardState) -> Plan | None:
    """Return the best plan for a state, or None if the boards that are here cannot hold it."""
    offers = setting.offers(state)
    try:
        return make_plan(MODEL, setting.geometry, offers, setting.request, setting.link).plan
    except ResourceError:
        return None


def _static(setting: LoadSetting, seed: int, plan: Plan) -> Outcome:
    """Keep the first plan; no token flows while a board of it is away."""
    meter = Meter(setting)
    meter.note(0.0, "first", plan)
    states = trace(setting, seed)
    ends = [at_s for at_s, _ in states[1:]] + [setting.duration_s]
    for (at_s, state), end_s in zip(states, ends, strict=True):
        meter.flow(plan, at_s, end_s, state)
    return meter.outcome()


def _oracle(setting: LoadSetting, seed: int) -> Outcome:
    """Always have the best plan for what the boards truly are, at once and for nothing."""
    meter = Meter(setting)
    plans: dict[BoardState, Plan | None] = {}
    before: Plan | None = None
    states = trace(setting, seed)
    ends = [at_s for at_s, _ in states[1:]] + [setting.duration_s]
    for (at_s, state), end_s in zip(states, ends, strict=True):
        if state not in plans:
            plans[state] = _best_plan(setting, state)
        plan = plans[state]
        if plan is None:
            meter.wait(at_s, end_s)
            continue
        if plan != before:
            meter.note(at_s, "best", plan)
        meter.flow(plan, at_s, end_s, state)
        before = plan
    return meter.outcome()


def _jumping(setting: LoadSetting, seed: int, plan: Plan) -> Outcome:
    """Go to the best plan for what sensors say, every 5 s; tokens wait for weights and KV."""
    meter = Meter(setting)
    meter.note(0.0, "first", plan)
    waits_until_s, next_s = 0.0, 0.0
    eager = Conditions(1e9, setting.cached_tokens, horizon_share=1.0, back_share=0.0)
    for now_s, measured, passed in samples(setting, seed):
        for from_s, to_s, state in passed:
            flows_from_s = min(to_s, max(from_s, waits_until_s))
            meter.wait(from_s, flows_from_s)
            meter.flow(plan, flows_from_s, to_s, state)
        if now_s < max(next_s, waits_until_s):
            continue
        next_s = now_s + JUMP_EVERY_S
        offers = setting.offers(measured)
        try:
            found = replan(plan, setting.geometry, offers, setting.request, setting.link, eager)
        except ResourceError:
            continue
        if found.moves:
            plan = found.plan
            waits_until_s = now_s + found.price.copy_s + found.price.stall_s
            if found.reason == "lost" and not setting.mirrored:
                waits_until_s += setting.cached_tokens * found.after.total_s / PREFILL_ROWS
            meter.note(waits_until_s, found.reason, plan, found.moved_bytes)
    return meter.outcome()
