"""The cluster: membership, planner, sequences, gather, sampling, and the Python API.

    from coordinator import Cluster

    with Cluster(local=3) as cluster:
        for token in cluster.generate("Once upon a time", max_tokens=100):
            print(token.text, end="", flush=True)

Names are imported when they are first used, so that the pure parts stay light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.cluster import Cluster
    from coordinator.generation import Generation
    from coordinator.results import Result, Timings, Token
    from coordinator.sampling import SamplingOptions

__all__ = ["Cluster", "Generation", "Result", "SamplingOptions", "Timings", "Token"]

_HOMES = {
    "Cluster": "coordinator.cluster",
    "Generation": "coordinator.generation",
    "Result": "coordinator.results",
    "SamplingOptions": "coordinator.sampling",
    "Timings": "coordinator.results",
    "Token": "coordinator.results",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'coordinator' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
