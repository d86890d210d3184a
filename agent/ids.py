"""Distinct types for the numbers and names that travel between processes.

A `KvId` is one growing context, an `Epoch` one version of the plan, a `Rank` one member's
place in it (the order in which partial sums are added), a `RunId` one life of a coordinator.
"""

from typing import NewType

__all__ = ["AgentName", "Epoch", "InstanceId", "KvId", "ModelId", "Rank", "RunId", "Seq"]

AgentName = NewType("AgentName", str)
InstanceId = NewType("InstanceId", str)
ModelId = NewType("ModelId", str)
KvId = NewType("KvId", int)
Epoch = NewType("Epoch", int)
Rank = NewType("Rank", int)
RunId = NewType("RunId", int)
Seq = NewType("Seq", int)
