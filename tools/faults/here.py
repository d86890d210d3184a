"""Boards as processes of their own, and their coordinator as a `Cluster` of this process."""

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coordinator.cluster import Cluster
from tools.faults.board import Board
from tools.faults.cables import Cables
from tools.faults.direct import DirectCables
from tools.faults.inside import inside
from tools.faults.lab import COORDINATOR_SPACE, LabCables

__all__ = ["cluster_here"]

WAIT_S = 120.0


@contextlib.contextmanager
def cluster_here(
    rates: Mapping[str, float | None],
    model: Path,
    root: Path,
    lab_rate: str | None = None,
    **options: Any,
) -> Iterator[Cluster]:
    """Run boards that map the model, and a cluster of them; both end with the context.

    Args:
        rates: of each board's name the weight bytes per second that it plays; None: its own.
        model: directory.
        root: for logs and keys.
        lab_rate: of an emulated network, such as "1gbit", whose first host this process is, with
            keys; None: all on the loopback interface, in clear.
        options: of `Cluster`.
    """
    mark = secrets.token_hex(8)
    lab = LabCables(len(rates), lab_rate, root, mark) if lab_rate else None
    cables: Cables = lab or DirectCables()
    boards: list[Board] = []
    try:
        for name, rate in rates.items():
            boards.append(Board(name, cables, ("--model-dir", model, "-v"), rate, root, mark))
        address = lab.address if lab else "127.0.0.1"
        with (
            inside(COORDINATOR_SPACE) if lab else contextlib.nullcontext(),
            Cluster(
                model, bind=f"tcp://{address}:{cables.port}", min_agents=len(rates), wait_s=WAIT_S,
                insecure=lab is None, keys=lab.store if lab else None, **options,
            ) as cluster,
        ):  # fmt: skip
            yield cluster
    finally:
        for board in boards:
            board.process.end()
        cables.close()
