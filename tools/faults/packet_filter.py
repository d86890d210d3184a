"""A packet filter on an emulated host: nobody can open a connection to it. Needs root and nft."""

import json
import shutil
import subprocess
from collections.abc import Sequence

from kernels.errors import ResourceError
from tools.faults.lab import prefix_of

__all__ = ["n_refused", "refuse_connections"]

CALL_S = 10.0
TABLE = "headwise-closed"
# Only what opens a TCP connection from elsewhere: answers to the host's own calls pass.
RULES = f"""
table inet {TABLE} {{
  chain in {{
    type filter hook input priority 0; policy accept;
    iif lo accept
    tcp flags & (syn | ack) == syn counter drop
  }}
}}
"""


def refuse_connections(host: str) -> None:
    """Drop whatever opens a TCP connection to one of the lab's hosts, such as h2; until it ends.

    Raises:
        ResourceError: there is no nft, or it failed.
    """
    if shutil.which("nft") is None:
        raise ResourceError("there is no nft; install the nftables package")
    _nft(host, ("-f", "-"), RULES)


def n_refused(host: str) -> int:
    """Return how many packets that open a connection were dropped at the host.

    Raises:
        ResourceError: the filter is not there.
    """
    listed = json.loads(_nft(host, ("-j", "list", "table", "inet", TABLE)))["nftables"]
    steps = [step for item in listed if "rule" in item for step in item["rule"]["expr"]]
    return sum(int(step["counter"]["packets"]) for step in steps if "counter" in step)


def _nft(host: str, words: Sequence[str], text: str = "") -> str:
    command = [*prefix_of(host), "nft", *words]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, timeout=CALL_S
    )
    if done.returncode:
        raise ResourceError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    return done.stdout
