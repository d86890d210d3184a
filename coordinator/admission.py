"""Whether an agent may join: versions that agree, a usable name, numbers that make sense. Pure."""

import re

from agent.messages import LEAST_RATE, MOST_COUNT, MOST_RATE, Hello, Versions

__all__ = ["refusal"]

# More than any board has.
MOST_CORES = 1 << 16
# Names stand in plans, log lines and routing ids.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def refusal(hello: Hello, ours: Versions) -> str:
    """Return why an agent cannot join a coordinator of our versions, or "".

    Protocol, layout and numerics must be equal; the release may differ.
    """
    theirs = hello.versions
    if (theirs.protocol, theirs.layout, theirs.numerics) != (
        ours.protocol,
        ours.layout,
        ours.numerics,
    ):
        return (
            f"agent {hello.name[:64]!r} has {_text(theirs)}, the coordinator {_text(ours)}; "
            f"install the same headwise release on both"
        )
    if not _NAME.fullmatch(hello.name):
        return (
            f"agent name {hello.name[:64]!r} cannot be used; take 1 to 64 of A-Z a-z 0-9 . _ -, "
            f"beginning with a letter or digit"
        )
    speed, counts = hello.bytes_per_s, (hello.n_threads, hello.n_cores)
    if not 1 <= len(hello.instance_id) <= 64 or not all(1 <= n <= MOST_CORES for n in counts):
        return f"agent {hello.name!r} sent an incomplete HELLO; use the same headwise release"
    # NaN is within no bounds.
    known = speed == 0.0 or LEAST_RATE <= speed <= MOST_RATE
    if not (known and 0 <= hello.memory_bytes <= MOST_COUNT):
        return (
            f"agent {hello.name!r} offers {hello.memory_bytes} bytes of memory at {speed} "
            f"bytes per second; use the same headwise release"
        )
    return ""


def _text(v: Versions) -> str:
    return (
        f"headwise {v.software[:32]} (protocol {v.protocol}, layout {v.layout}, "
        f"numerics {v.numerics})"
    )
