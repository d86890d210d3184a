"""What the planner is told of the boards that are here: measured values, once there are. Pure."""

import statistics
from collections.abc import Sequence

from agent.ids import AgentName
from agent.read_rate import ASSUMED_CALL_S
from coordinator.forecast import offered_bytes
from coordinator.membership import Agent
from coordinator.planner.place import Costs, Link, Offer

__all__ = ["LOOPBACK", "costs_of", "link_of", "link_of_trips", "offers_of"]

# Loopback round trips as measured by tools/bench_exchange.py: the least that is reckoned with.
LOOPBACK = Link(hop_s=150e-6, bytes_per_s=1e9)
# What ZeroMQ and its threads add to the kernel's round trip (reference/transport.md section 5).
SOFTWARE_S = 150e-6


def offers_of(agents: Sequence[Agent], to_the_last: bool = False) -> list[Offer]:
    """Return what each agent offers, in the order of `agents`; see `forecast.offered_bytes`.

    Kernels in real phases are slower than the one that an agent times when it starts. Until an
    agent has worked, its speed at the start is scaled as that of the others turned out.
    """
    found = [
        a.measured.rate.value / a.hello.bytes_per_s
        for a in agents
        if a.measured.rate.value is not None and a.hello.bytes_per_s > 0.0
    ]
    scale = statistics.median(found) if found else 1.0
    return [
        Offer(
            a.name,
            offered_bytes(a, to_the_last),
            a.measured.rate.value or scale * a.hello.bytes_per_s,
            a.hello.n_threads,
            link_of([a]),
        )
        for a in agents
    ]


def link_of(agents: Sequence[Agent], names: Sequence[AgentName] | None = None) -> Link:
    """Return the links that a plan for these agents is to reckon with: the slowest of theirs.

    Args:
        agents: those that are here.
        names: which of them; None for all.
    """
    chosen = [a.measured for a in agents if names is None or a.name in names]
    trips = [m.round_trip.value for m in chosen if m.round_trip.value is not None]
    goodputs = [m.goodput.value for m in chosen if m.goodput.value is not None]
    return link_of_trips(trips, goodputs)


def link_of_trips(trips_s: Sequence[float], goodputs: Sequence[float]) -> Link:
    """Return the slowest of some links.

    Args:
        trips_s: round trips that the kernel measured.
        goodputs: bytes per second.
    """
    hops = [(trip_s + SOFTWARE_S) / 2 for trip_s in trips_s]
    return Link(max([LOOPBACK.hop_s, *hops]), min([LOOPBACK.bytes_per_s, *goodputs]))


def costs_of(agents: Sequence[Agent]) -> Costs:
    """Return fixed costs that go with the rates of these agents."""
    calls = [a.measured.call_s for a in agents if a.measured.rate.value is not None]
    return Costs(call_s=statistics.median(calls) if calls else ASSUMED_CALL_S)
