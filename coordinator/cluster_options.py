"""What a cluster is asked for, checked before anything is started. Pure."""

from agent.address import is_loopback
from coordinator.local import MAX_LOCAL_AGENTS
from coordinator.plan import MAX_MEMBERS
from kernels.errors import InputError, PromptError
from weights.directory import ModelDirectory

__all__ = ["DEFAULT_CONTEXT_TOKENS", "check_numbers", "checked_context", "endpoints"]

DEFAULT_CONTEXT_TOKENS = 2048
MAX_WAIT_S = 7 * 86400.0


def check_numbers(local: int, bind: str | None, min_agents: int, wait_s: float) -> None:
    """Raise InputError if a number of agents or a waiting time makes no sense."""
    if local and bind is not None:
        raise InputError(
            "local agents and agents that dial in cannot be mixed; give --local or --bind, and "
            "start `headwise agent` on this machine too if it shall take part"
        )
    if not 0 <= local <= MAX_LOCAL_AGENTS:
        raise InputError(f"{local} local agents asked for; 1 to {MAX_LOCAL_AGENTS} are possible")
    if not 0 <= min_agents <= MAX_MEMBERS:
        raise InputError(f"{min_agents} agents to wait for; 0 to {MAX_MEMBERS} are possible")
    # Written so that NaN fails.
    if not 0.0 <= wait_s <= MAX_WAIT_S:
        raise InputError(f"{wait_s:g} s to wait for agents; 0 to {MAX_WAIT_S:g} are possible")


def checked_context(wanted: int | None, directory: ModelDirectory) -> int:
    """Return the longest context to serve; the model's, at most 2048, if none is wanted.

    Raises:
        PromptError: more than the model allows.
    """
    limit = directory.config.context_tokens
    if wanted is None:
        return min(limit, DEFAULT_CONTEXT_TOKENS)
    if not 2 <= wanted <= limit:
        raise PromptError(f"context of {wanted} tokens; this model allows 2 to {limit}")
    return wanted


def endpoints(bind: str | None, has_keys: bool) -> tuple[str, str, str]:
    """Return the control, hot and bulk endpoints for `bind`, or free loopback ports.

    Raises:
        InputError: no endpoint, or one beyond loopback without keys.
    """
    if bind is None:
        return ("tcp://127.0.0.1:*",) * 3
    host, _, port = bind.removeprefix("tcp://").rpartition(":")
    if (
        not bind.startswith("tcp://")
        or not host
        or not (port.isascii() and port.isdecimal() and len(port) <= 5)
    ):
        raise InputError(f"cannot bind {bind!r}; write it like tcp://127.0.0.1:7070")
    if not 1 <= int(port) <= 65533:
        raise InputError(f"cannot bind {bind!r}; ports 1 to 65533 leave room for the next two")
    if not has_keys and not is_loopback(host.strip("[]")):
        raise InputError(
            f"{host} is reachable from other machines, and links to it need keys: run `headwise "
            f"keys init` here, then `headwise keys add NAME` for each agent (--insecure is for "
            f"loopback addresses only)"
        )
    first, second, third = (f"tcp://{host}:{int(port) + i}" for i in range(3))
    return first, second, third
