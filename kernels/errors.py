"""The one tree of errors that users of headwise see.

HeadwiseError
├── InputError            what the user handed over is wrong: fix the input
│   ├── ModelError        model files: config, safetensors, manifest, atoms, tokenizer
│   ├── PlanError         a plan that misses, doubles or cannot hold atoms
│   ├── PromptError       prompt or sampling options
│   └── UsageError        options that do not go together
├── ResourceError         this machine or cluster has too little: memory, disk, KV pages
└── RemoteError           another process failed: agents, links, protocol
    ├── AgentLostError    an agent died, froze or was cut off
    │   └── LateAgentsError   agents did not get ready for a plan in time
    ├── FaultyAgentError  an agent answers with numbers that cannot be right
    └── WireError         a frame or message that does not follow docs/wire.md

Each text says what happened, the values, and what to do. The command line prints
`error: TEXT` and ends with exit code 1 (2 for wrong usage). The tree lives in `kernels`
because imports run downhill only and every room needs it.
"""

from collections.abc import Iterable

__all__ = [
    "AgentLostError",
    "FaultyAgentError",
    "HeadwiseError",
    "InputError",
    "LateAgentsError",
    "ModelError",
    "PlanError",
    "PromptError",
    "RemoteError",
    "ResourceError",
    "UsageError",
    "WireError",
]


class HeadwiseError(Exception):
    """Any failure that headwise explains to its user."""


class InputError(HeadwiseError):
    """What the user handed over is wrong."""


class ModelError(InputError):
    """Model files that are missing, damaged or unsupported."""


class PlanError(InputError):
    """A plan that misses, doubles or cannot hold atoms."""


class PromptError(InputError):
    """A prompt or sampling option that cannot be served."""


class UsageError(InputError):
    """Options of a command that do not go together; its exit code is 2."""


class ResourceError(HeadwiseError):
    """Too little memory, disk or KV pages."""


class RemoteError(HeadwiseError):
    """Another process of the cluster failed."""


class FaultyAgentError(RemoteError):
    """An agent answers, but its numbers cannot be right.

    Attributes:
        agent: its name.
    """

    def __init__(self, text: str, agent: str) -> None:
        super().__init__(text)
        self.agent = agent


class AgentLostError(RemoteError):
    """An agent died, froze or was cut off.

    Attributes:
        agent: its name, "" = the text says all.
    """

    def __init__(self, text: str, agent: str = "") -> None:
        super().__init__(text)
        self.agent = agent


class LateAgentsError(AgentLostError):
    """Agents did not get ready for a plan in time.

    Attributes:
        agents: their names.
    """

    def __init__(self, text: str, agents: Iterable[str]) -> None:
        super().__init__(text)
        self.agents = tuple(agents)


class WireError(RemoteError):
    """A frame or message that does not follow docs/wire.md."""
