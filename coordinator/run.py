"""The `run` verb: one prompt, its text on stdout as it arrives.

The text comes from the coordinator that runs on this machine, or from a cluster of this process.
It goes to stdout; everything else (placement, speed, errors) to stderr. With --json stdout holds
nothing but the JSON object, and the text streams to stderr. Also `python -m coordinator`.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Protocol, TextIO

import msgspec

from coordinator.admin_messages import Generate
from coordinator.attach import RemoteText, add_attach_argument, attach
from coordinator.cluster_args import add_cluster_arguments, cluster_options
from coordinator.plan import Plan
from coordinator.report import speed_line
from coordinator.results import Result, Token
from coordinator.sampling import SamplingOptions
from coordinator.stops import StopMatcher
from kernels.errors import PromptError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise run`."""
    parser.add_argument(
        "-p",
        "--prompt",
        default="",
        help="text to continue; empty (default): begin a text; - : read stdin",
    )
    parser.add_argument("--prompt-ids", metavar="IDS", help="token ids instead, such as 1,403,407")
    parser.add_argument("-n", "--max-tokens", type=int, default=256, help="most tokens to generate")
    parser.add_argument("--echo", action="store_true", help="print the prompt before its text")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--stats", action="store_true", help="print placement and speed on stderr")
    add_sampling_arguments(parser)
    add_attach_argument(parser)
    add_cluster_arguments(parser)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sampler's options; the defaults are greedy decoding."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature", "--temp", type=float, default=0.0, help="0: greedy (default)"
    )
    group.add_argument("--top-k", type=int, default=0, help="keep the K likeliest; 0: all")
    group.add_argument(
        "--top-p", type=float, default=1.0, help="keep this much probability; 1: all"
    )
    group.add_argument("--min-p", type=float, default=0.0, help="drop below this share of the best")
    group.add_argument("--repeat-penalty", type=float, default=1.0, help="1: off")
    group.add_argument("--repeat-last-n", type=int, default=64, help="tokens the penalty looks at")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="repeatable")


def run(args: argparse.Namespace) -> int:
    """Generate one text and return the exit code.

    Raises:
        HeadwiseError: whatever went wrong, in words for the user.
    """
    options = SamplingOptions(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repeat_penalty=args.repeat_penalty,
        repeat_last_n=args.repeat_last_n,
        seed=args.seed,
    )
    prompt, prompt_ids = _prompt(args)
    # Found now rather than after every board has loaded its weights.
    StopMatcher(args.stop)
    if args.max_tokens < 1:
        raise PromptError(f"max tokens is {args.max_tokens}; ask for at least 1")
    ask = Generate(prompt, prompt_ids, args.max_tokens, options, args.stop, args.wait_s)
    client = attach(args)
    if client is not None:
        with client:
            _print(args, prompt, RemoteText(client, ask))
    else:
        # Kernels take a second to import; whoever attaches does without them.
        from coordinator.cluster import Cluster
        from coordinator.local_text import LocalText

        with Cluster(**cluster_options(args)) as cluster:
            _print(args, prompt, LocalText(cluster, ask))
    return 0


class _Text(Protocol):
    """A text that is being written, wherever that happens."""

    placement: str
    has_text: bool

    @property
    def plan(self) -> Plan | None:
        """The plan it was written under."""

    def __iter__(self) -> Iterator[Token]: ...

    def close(self) -> None:
        """End it, finished or not."""

    def result(self) -> Result:
        """Return all that was written."""


def _print(args: argparse.Namespace, prompt: str | None, text: _Text) -> None:
    """Print a text as it arrives, and what else the options ask for."""
    if args.stats:
        print(text.placement, file=sys.stderr, flush=True)
    out = sys.stderr if args.json else sys.stdout
    if args.echo and prompt:
        _write(out, prompt)
    result = _stream(out, text)
    if args.stats:
        print(speed_line(result), file=sys.stderr)
    if args.json:
        print(_json_line(result, text.plan))


def _stream(out: TextIO, text: _Text) -> Result:
    """Print tokens as they arrive; ids, space-separated, for a model without a tokenizer."""
    began = False
    try:
        for token in text:
            _write(out, token.text if text.has_text else f"{token.id} ")
            began = True
    finally:
        text.close()
        if began:
            print(file=out, flush=True)
    return text.result()


def _write(out: TextIO, text: str) -> None:
    if text:
        out.write(text)
        out.flush()


def _json_line(result: Result, plan: Plan | None) -> str:
    fields = msgspec.to_builtins(result)
    fields["plan"] = msgspec.to_builtins(plan)
    return msgspec.json.encode(fields).decode()


def _prompt(args: argparse.Namespace) -> tuple[str | None, list[int] | None]:
    if args.prompt_ids is not None:
        if args.prompt:
            raise PromptError("give either --prompt or --prompt-ids")
        try:
            return None, [int(word) for word in args.prompt_ids.replace(",", " ").split()]
        except ValueError as e:
            raise PromptError(
                f"--prompt-ids {args.prompt_ids!r} is no list of ids; write it like 1,403,407"
            ) from e
    return (sys.stdin.read() if args.prompt == "-" else args.prompt), None
