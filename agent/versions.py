"""The version numbers that two processes of one cluster compare before they share a plan."""

from agent.frames import PROTOCOL_VERSION
from agent.messages import Versions

__all__ = ["LAYOUT_VERSION", "NUMERICS_VERSION", "SOFTWARE_VERSION", "our_versions"]

# The release, as in pyproject.toml (a test compares them).
SOFTWARE_VERSION = "0.1.0"
# Canonical tiles, atoms and KV pages (kernels/layout.py, kernels/paging.py).
LAYOUT_VERSION = 1
# The order of additions: kernels with equal numbers give bit-equal results.
NUMERICS_VERSION = 2


def our_versions() -> Versions:
    """Return the versions of this process."""
    return Versions(SOFTWARE_VERSION, PROTOCOL_VERSION, LAYOUT_VERSION, NUMERICS_VERSION)
