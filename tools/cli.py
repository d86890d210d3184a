"""The `headwise` command: one verb each, imported only when it is used.

A verb module offers `add_arguments(parser)` and `run(args) -> int`, or a table `VERBS` of several
verbs. A missing extra gives the pip command that adds it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from agent.shell import run_verb

__all__ = ["VERBS", "main"]

# verb: (module, extra it needs, one line of help)
VERBS: dict[str, tuple[str, str, str]] = {
    "run": ("coordinator.run", "run", "generate text on a cluster of agents"),
    "serve": ("coordinator.serve", "run", "keep a coordinator that agents and clients come to"),
    "status": ("coordinator.status_verb", "run", "show agents, what they hold and how it goes"),
    "drain": ("coordinator.admin_verbs", "run", "free an agent of its work"),
    "undrain": ("coordinator.admin_verbs", "run", "let a drained agent have work again"),
    "cordon": ("coordinator.admin_verbs", "run", "leave an agent what it has, give it nothing new"),
    "uncordon": ("coordinator.admin_verbs", "run", "let a cordoned agent have new work again"),
    "stop": ("coordinator.admin_verbs", "run", "end the coordinator that runs on this machine"),
    "agent": ("agent.main", "", "offer this board's memory and cores to a coordinator"),
    "keys": ("coordinator.keys_verb", "run", "say which agents may join"),
    "cache": ("agent.cache_verb", "", "list, verify or remove models pulled to this board"),
    "plan": ("coordinator.plan_verb", "run", "show who would hold what, and how fast"),
    "verify": ("coordinator.verify", "run", "check that placement does not change the words"),
    "bench": ("tools.bench", "", "measure how fast this machine runs and reads a model"),
    "simulate": ("tools.simulate", "", "judge the planner against baselines and optima"),
    "convert": ("tools.convert", "convert", "make a headwise model from a Hugging Face directory"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0, 1 for an error, 2 for wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        print(f"headwise {_version()}")
        return 0
    if words[0] not in VERBS:
        print(f"error: {words[0]!r} is no verb of headwise\n\n{_usage()}", file=sys.stderr)
        return 2
    module_name, extra, text = VERBS[words[0]]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.split(".")[0] in module_name:
            raise
        print(
            f"error: `headwise {words[0]}` needs the Python package {e.name!r}; "
            f"add it with: pip install 'headwise[{extra or 'all'}]'",
            file=sys.stderr,
        )
        return 1
    several = getattr(module, "VERBS", {})
    verb = several.get(words[0]) or (module.add_arguments, module.run)
    return run_verb(f"headwise {words[0]}", f"{text.capitalize()}.", verb, words[1:])


def _usage() -> str:
    lines = [f"  {name:<9}{text}" for name, (_, _, text) in VERBS.items()]
    return "\n".join(
        ["usage: headwise VERB [options]   (headwise VERB --help explains a verb)", "", *lines]
    )


def _version() -> str:
    try:
        return version("headwise")
    except PackageNotFoundError:
        return "0.1.0 (source tree)"


if __name__ == "__main__":
    sys.exit(main())
