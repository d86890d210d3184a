"""A plan that is made and told to its members, while another one is in force."""

from collections.abc import Callable
from typing import NamedTuple

from agent.ids import AgentName, Epoch
from agent.share import Assignment
from coordinator.engine import Engine
from coordinator.hot_link import HotLink
from coordinator.plan import Plan

__all__ = ["Prepared"]


class Prepared(NamedTuple):
    """A plan to come.

    Attributes:
        told: what each member is assigned.
        link: takes the members' HELLOs.
        make_engine: returns what carries rows through it, once all are linked.
    """

    plan: Plan
    epoch: Epoch
    told: dict[AgentName, Assignment]
    link: HotLink
    make_engine: Callable[[], Engine]
