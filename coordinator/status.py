"""How the cluster is: plain data made of the register of agents and the plan in force. Pure."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from agent.ids import AgentName, Epoch
from agent.share import count_atoms, indices
from coordinator.membership import Agent, AgentState
from coordinator.plan import Member, Plan
from kernels.layout import COLUMNS_PER_ATOM, VOCAB_ROWS_PER_ATOM, Geometry

__all__ = ["AgentStatus", "Status", "agent_statuses", "missing_text"]


class AgentStatus(msgspec.Struct, frozen=True):
    """One agent.

    Attributes:
        state: joined, loading, ready, lost, left, drained or set aside.
        loading_percent: how far its weights are on the board, while it loads them.
        memory_offered_bytes: its budget.
        memory_free_bytes: available on the board now; None before the first heartbeat.
        kv_free_pages: pages of each head group that no context has written to, of the plan that it
            holds; None before its first heartbeat under that plan.
        n_head_groups: held, counted over all layers; n_columns likewise.
        round_trip_s: the least of its control link in the last five minutes, if known.
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
    software: str = ""
    machine: str = ""
    reason: str = ""


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


def agent_statuses(
    agents: Sequence[Agent],
    plan: Plan | None,
    epoch: Epoch,
    geometry: Geometry,
    drained: Collection[AgentName],
    set_aside: Collection[AgentName],
) -> list[AgentStatus]:
    """Return one status for each agent known, and for drained names that never came."""
    members = {m.agent: m for m in plan.members} if plan else {}
    found = []
    for agent in agents:
        holding = agent.state is AgentState.READY and agent.epoch == epoch
        member = members.get(agent.name) if holding else None
        found.append(_status(agent, member, geometry, drained, set_aside))
    known = {agent.name for agent in agents}
    found += [AgentStatus(name, "drained") for name in drained if name not in known]
    return sorted(found, key=lambda status: status.name)


def _status(
    agent: Agent,
    member: Member | None,
    geometry: Geometry,
    drained: Collection[AgentName],
    set_aside: Collection[AgentName],
) -> AgentStatus:
    hello, heartbeat, loading, ready = agent.hello, agent.heartbeat, agent.loading, agent.ready
    percent = None
    if agent.state is AgentState.LOADING:
        percent = 100.0 * loading.done_bytes / max(loading.total_bytes, 1) if loading else 0.0
    held = _held(member, geometry) if member else {}
    if not agent.alive:
        ready = None
    of_plan = heartbeat if ready and heartbeat and heartbeat.epoch == ready.epoch else None
    return AgentStatus(
        agent.name,
        _state(agent, drained, set_aside),
        percent,
        hello.memory_bytes,
        heartbeat.memory_available_bytes if heartbeat else None,
        ready.weights_bytes if ready else 0,
        ready.kv_pool_bytes if ready else 0,
        of_plan.kv_free_pages if of_plan else None,
        n_threads=hello.n_threads,
        bytes_per_s=hello.bytes_per_s,
        round_trip_s=heartbeat.round_trip_s if heartbeat and agent.alive else None,
        software=hello.versions.software,
        machine=hello.machine,
        reason="" if agent.alive and agent.name not in set_aside else agent.reason,
        **held,
    )


def _state(agent: Agent, drained: Collection[AgentName], set_aside: Collection[AgentName]) -> str:
    if not agent.alive:
        return str(agent.state.value)
    if agent.name in drained:
        return "drained"
    if agent.name in set_aside:
        return "set aside"
    if agent.state in (AgentState.LOADING, AgentState.READY):
        return str(agent.state.value)
    return "joined"


def _held(member: Member, geometry: Geometry) -> dict[str, int]:
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
