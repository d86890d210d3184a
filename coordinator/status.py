"""How the cluster is: plain data made of the register of agents and the plan in force. Pure."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from agent.ids import AgentName, Epoch
from agent.messages import Loading
from agent.share import count_atoms, indices
from coordinator.forecast import forecast_of
from coordinator.membership import Agent, AgentState
from coordinator.plan import Member, Plan
from kernels.layout import COLUMNS_PER_ATOM, VOCAB_ROWS_PER_ATOM, Geometry

__all__ = [
    "AgentStatus",
    "MirrorStatus",
    "MoveStatus",
    "Status",
    "agent_statuses",
    "missing_text",
]


class AgentStatus(msgspec.Struct, frozen=True):
    """One agent.

    Attributes:
        state: joined, loading, ready, lost, left, drained, cordoned or set aside.
        loading_percent: how far its weights are on the board, while it loads them.
        coming_epoch: the plan to come that it gets ready for while it serves another, 0 = none.
        coming_percent: how far the weights of that are on the board, 100 once it is ready.
        memory_offered_bytes: its budget.
        memory_free_bytes: available on the board now; None before the first heartbeat.
        memory_forecast_bytes: what will be free once all admitted contexts are as long as they may
            get, with weights counted as used; None before the first heartbeat.
        kv_free_pages: pages of each head group that no context has written to, of the plan that it
            holds; None before its first heartbeat under that plan.
        n_head_groups: held, counted over all layers; n_columns likewise.
        kv_used_bytes: those of its KV pages that contexts have written to.
        bytes_per_s: how fast its kernels read, in real phases once it has worked, else at its
            start.
        is_measured: which of the two.
        call_s: the fixed cost of a kernel call besides, if it is known.
        round_trip_s: of its link by the last probe, else the least in five minutes, if known.
        exchange_s: how long a phase's frames are under way to it and back, software and other
            members' frames included; None until it has worked under the plan in force.
        goodput_bytes_per_s: what its bulk link carries, if measured.
        major_faults: pages that had to be read from its disk since it joined.
        temperature_c: of its processor, if its kernel says.
        throttled: whether its processor is slowed down for heat or lack of power; likewise.
        reason: why it is gone, or what failed last.
    """

    name: AgentName
    state: str
    loading_percent: float | None = None
    memory_offered_bytes: int = 0
    memory_free_bytes: int | None = None
    weights_bytes: int = 0
    kv_bytes: int = 0
    kv_free_pages: int | None = None
    n_head_groups: int = 0
    n_columns: int = 0
    n_vocab_rows: int = 0
    n_threads: int = 0
    bytes_per_s: float = 0.0
    round_trip_s: float | None = None
    kv_used_bytes: int = 0
    is_measured: bool = False
    call_s: float | None = None
    exchange_s: float | None = None
    goodput_bytes_per_s: float | None = None
    major_faults: int = 0
    temperature_c: float | None = None
    throttled: bool | None = None
    software: str = ""
    machine: str = ""
    reason: str = ""
    coming_epoch: int = 0
    coming_percent: float | None = None
    memory_forecast_bytes: int | None = None


class MoveStatus(msgspec.Struct, frozen=True):
    """A migration that is under way.

    Attributes:
        epoch: the plan that it leads to; names the migration.
        from_epoch: the plan in force.
        n_groups: head groups that move, counted over all layers.
        have_tokens: rows that are where they shall be, summed over texts and targets.
        want_tokens: rows that shall be there by now, likewise.
        state: for people, such as "copying".
    """

    epoch: int
    from_epoch: int
    n_groups: int
    have_tokens: int
    want_tokens: int
    state: str


class MirrorStatus(msgspec.Struct, frozen=True):
    """The second copy of keys and values.

    Attributes:
        lag_tokens: rows that it lacks, over all texts; None: there is none.
        holders: who has a copy of whose rows, for people.
        reason: why there is none, or none of some; "" = all is mirrored.
    """

    lag_tokens: int | None
    holders: str
    reason: str


class Status(msgspec.Struct, frozen=True, tag="status"):
    """The whole cluster.

    Attributes:
        state: waiting (too few agents), loading, ready or writing.
        run_id: number of this run, 16 hex digits.
        epoch: number of the plan in force, 0 = none.
        n_frames_dropped: hot frames that nobody waited for or that could not be read.
        problem: why the last plan could not be installed, "" = it could.
        n_messages_dropped: control messages that were unreadable or of the wrong sender.
        n_pulls_dropped: bulk messages that were no request, and answers that found no taker.
        n_pulls_refused: bulk requests for what was not granted.
        n_keys_refused: handshakes with a key that nobody was given, or that was revoked.
        move: the migration that is under way, if there is one.
        mirror: the second copy of keys and values; None: nobody asked for one.
    """

    state: str
    model: str
    model_id: str
    run_id: str
    epoch: int
    pid: int
    port: int
    uptime_s: float
    min_agents: int
    n_served: int
    n_failed: int
    n_waiting: int
    n_frames_dropped: int
    problem: str
    software: str
    agents: list[AgentStatus]
    n_messages_dropped: int = 0
    n_pulls_dropped: int = 0
    n_pulls_refused: int = 0
    n_keys_refused: int = 0
    move: MoveStatus | None = None
    mirror: MirrorStatus | None = None


def agent_statuses(
    agents: Sequence[Agent],
    plan: Plan | None,
    epoch: Epoch,
    geometry: Geometry,
    drained: Collection[AgentName],
    set_aside: Collection[AgentName],
    exchange_s: Mapping[AgentName, float] = MappingProxyType({}),
    cordoned: Collection[AgentName] = (),
) -> list[AgentStatus]:
    """Return one status for each agent known, and for names that never came but are drained."""
    members = {m.agent: m for m in plan.members} if plan else {}
    found = []
    for agent in agents:
        holding = agent.state is AgentState.READY and agent.epoch == epoch
        member = members.get(agent.name) if holding else None
        state = _state(agent, drained, cordoned, set_aside)
        status = _status(agent, member, geometry, state, set_aside)
        under_way_s = exchange_s.get(agent.name) if member else None
        found.append(msgspec.structs.replace(status, exchange_s=under_way_s, **_measured(agent)))
    known = {agent.name for agent in agents}
    wished = dict.fromkeys(cordoned, "cordoned") | dict.fromkeys(drained, "drained")
    found += [AgentStatus(name, state) for name, state in wished.items() if name not in known]
    return sorted(found, key=lambda status: status.name)


def _status(
    agent: Agent,
    member: Member | None,
    geometry: Geometry,
    state: str,
    set_aside: Collection[AgentName],
) -> AgentStatus:
    hello, heartbeat, loading, ready = agent.hello, agent.heartbeat, agent.loading, agent.ready
    percent = _percent(loading) if agent.state is AgentState.LOADING else None
    coming = agent.coming
    held = _held(member, geometry) if member else {}
    if not agent.alive:
        ready = None
    of_plan = heartbeat if ready and heartbeat and heartbeat.epoch == ready.epoch else None
    return AgentStatus(
        agent.name,
        state,
        percent,
        hello.memory_bytes,
        heartbeat.memory_available_bytes if heartbeat else None,
        ready.weights_bytes if ready else 0,
        ready.kv_pool_bytes if ready else 0,
        of_plan.kv_free_pages if of_plan else None,
        n_threads=hello.n_threads,
        software=hello.versions.software,
        machine=hello.machine,
        reason="" if agent.alive and agent.name not in set_aside else agent.reason,
        coming_epoch=coming.epoch if coming else 0,
        coming_percent=(100.0 if coming.ready else _percent(coming.loading)) if coming else None,
        **held,
    )


def _percent(loading: Loading | None) -> float:
    return 100.0 * loading.done_bytes / max(loading.total_bytes, 1) if loading else 0.0


def _measured(agent: Agent) -> dict[str, Any]:
    """Return what heartbeats have told; of an agent that is gone only what it was like."""
    found, beat = agent.measured, agent.heartbeat if agent.alive else None
    forecast = forecast_of(agent)
    return {
        "bytes_per_s": found.rate.value or agent.hello.bytes_per_s,
        "is_measured": found.rate.value is not None,
        "call_s": found.call.value,
        "round_trip_s": beat.round_trip_s if beat else None,
        "goodput_bytes_per_s": found.goodput.value if beat else None,
        "major_faults": found.n_faults,
        "kv_used_bytes": beat.kv_bytes if beat else 0,
        "temperature_c": beat.temperature_c if beat else None,
        "throttled": beat.throttled if beat else None,
        "memory_forecast_bytes": forecast.left_bytes if forecast else None,
    }


def _state(
    agent: Agent,
    drained: Collection[AgentName],
    cordoned: Collection[AgentName],
    set_aside: Collection[AgentName],
) -> str:
    if not agent.alive:
        return str(agent.state.value)
    if agent.name in drained:
        return "drained"
    if agent.name in set_aside:
        return "set aside"
    if agent.name in cordoned:
        return "cordoned"
    if agent.state in (AgentState.LOADING, AgentState.READY):
        return str(agent.state.value)
    return "joined"


def _held(member: Member, geometry: Geometry) -> dict[str, Any]:
    vocab_rows = [
        min(VOCAB_ROWS_PER_ATOM, geometry.vocab_size - VOCAB_ROWS_PER_ATOM * i)
        for i in indices(member.vocab)
    ]
    columns = [
        min(COLUMNS_PER_ATOM, geometry.n_columns - COLUMNS_PER_ATOM * i)
        for share in member.layers
        for i in indices(share.columns)
    ]
    return {
        "n_head_groups": sum(count_atoms(share.head_groups) for share in member.layers),
        "n_columns": sum(columns),
        "n_vocab_rows": sum(vocab_rows),
    }


def missing_text(
    n_missing: int, usable: Sequence[AgentName], known: Mapping[AgentName, str]
) -> str:
    """Return who is awaited and who is here, such as `1 more agent: here are pi-1, pi-2`.

    Args:
        n_missing: how many more are needed.
        usable: who is here and may be used.
        known: names in the key store that are not used, each with why.
    """
    here = f"here are {', '.join(usable)}" if usable else "none is here"
    if len(usable) == 1:
        here = f"here is {usable[0]}"
    absent = "; ".join(f"{name} {why}" for name, why in sorted(known.items()))
    return (
        f"{n_missing} more agent{'s' if n_missing > 1 else ''}: {here}"
        f"{'; ' if absent else ''}{absent}"
    )
